"""Sittings: what names the runs that one command made on one machine, one after the other, so that their times compare.

Each run writes the sitting's name into its record, among what is measured by a clock and outside the recipe.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
from functools import cache
from pathlib import Path

VARIABLE = "OPDBENCH_SITTING"
_BOOT = Path("/proc/sys/kernel/random/boot_id")  # on Linux; another after each start of the machine


@cache
def token() -> str:
    """What the command that started this process calls its sitting; a new name where it calls it nothing."""
    return os.environ.get(VARIABLE) or secrets.token_hex(16)


def current() -> str:
    """The sitting's name: other digits for another command, another machine, or the same one after it was started
    again, whatever the environment says."""
    return hashlib.sha256(f"{token()} {_machine()}".encode()).hexdigest()[:12]


def _machine() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return platform.node()
