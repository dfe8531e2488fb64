"""What glibc's malloc does with freed memory: a tenth of a small model's training step."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt(3)
_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Let the process keep freed blocks below 1 GiB instead of returning them to the system at once.

    Every step frees and asks again for the same matrices. By default the large ones go back to the system each time,
    and each time their pages are faulted in and cleared anew. Memory in use does not rise above its peak.

    Returns:
        Whether this C library has the setting (glibc does); without it steps are only slower.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    options = (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD)
    return mallopt is not None and all(mallopt(option, _BYTES) == 1 for option in options)
