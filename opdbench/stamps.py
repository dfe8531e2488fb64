"""Whether files are what they were: by names, sizes and times, as `make` looks at them.

Contents are not read again: at 20,000 records that would take longer than all else in an unchanged rebuild.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path


def fingerprint(inputs: Iterable[Path], *words: str) -> str:
    """One checksum over names, sizes and times of all files below these folders, or of these files; and over words."""
    digest = hashlib.sha256("\n".join(words).encode())
    for place in inputs:
        lines = [f"{name}\0{size}\0{modified}\n" for name, size, modified in sorted(stamps(str(place)))]
        digest.update("".join(lines).encode(errors="surrogateescape"))
    return digest.hexdigest()


def stamps(place: str) -> list[tuple[str, int, int]]:
    """Name, size and time of the files below a folder, or of the file; links are not followed."""
    if os.path.isfile(place):
        stat = os.stat(place)
        return [(place, stat.st_size, stat.st_mtime_ns)]
    found, todo = [], [(place, "")]
    while todo:
        folder, prefix = todo.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    stat = entry.stat(follow_symlinks=False)
                    found.append((prefix + entry.name, stat.st_size, stat.st_mtime_ns))
                elif entry.name != "__pycache__" and entry.is_dir(follow_symlinks=False):
                    todo.append((entry.path, f"{prefix}{entry.name}/"))
    return found


def find(folder: Path, name: str) -> list[str]:
    """The paths of this name below a folder, in the order of their parts; links are not followed."""
    found, todo = [], [str(folder)]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.name == name:
                    found.append(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    return sorted(found, key=lambda path: path.split(os.sep))
