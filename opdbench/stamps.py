"""Whether files are what they were: by names, sizes and times, as `make` looks at them.

Contents are not read again: at 20,000 records that would take longer than all else in an unchanged rebuild.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def fingerprint(inputs: Iterable[Path], *words: str) -> str:
    """One checksum over names, sizes and times of all files below these folders, or of these files; and over words."""
    digest = hashlib.sha256("\n".join(words).encode())
    for place in inputs:
        for name, size, modified in sorted(stamps(str(place))):
            digest.update(f"{name}\0{size}\0{modified}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def stamps(folder: str, prefix: str = "") -> Iterator[tuple[str, int, int]]:
    """Name, size and time of the files below a folder, or of the file; links are not followed."""
    if os.path.isfile(folder):
        stat = os.stat(folder)
        yield folder, stat.st_size, stat.st_mtime_ns
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name == "__pycache__":
                    continue
                yield from stamps(entry.path, f"{prefix}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                stat = entry.stat(follow_symlinks=False)
                yield prefix + entry.name, stat.st_size, stat.st_mtime_ns
