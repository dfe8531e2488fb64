"""Whether files are what they were: by names, sizes and times, as `make` looks at them.

Contents are not read again: at 20,000 records that would take longer than all else in an unchanged rebuild.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from opdbench.parallel import chunks, mapped

_CHUNK, _FEW = 50, 400  # places that a process looks at at a time; from how many on a second process is worth its start


def fingerprint(inputs: Iterable[Path], *words: str) -> str:
    """One checksum over names, sizes and times of all files below these folders, or of these files; and over words."""
    digest = hashlib.sha256("\n".join(words).encode())
    for top in map(str, inputs):
        found = places(top, 2)
        todo = chunks(found, _CHUNK)
        sums = mapped(_checksum, top, todo) if len(found) > _FEW else (_checksum(top, each) for each in todo)
        digest.update("".join(sums).encode())
    return digest.hexdigest()


def _checksum(top: str, some: Sequence[str]) -> str:
    lines = [f"{name}\0{size}\0{modified}\n" for place in some
             for name, size, modified in sorted(stamps(place, place.removeprefix(top)))]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def places(top: str, depth: int) -> list[str]:
    """What work on all files below a folder is divided into, in the order of their parts: its folders so many levels
    down, and the files above these. A folder of results has one for every task, and in that one for every method. Of a
    file, itself."""
    if not os.path.isdir(top):
        return [os.path.realpath(top)]
    found: list[str] = []
    folders = [top]
    for _ in range(depth):
        inner: list[str] = []
        for entry in (entry for folder in folders for entry in os.scandir(folder)):
            (inner if entry.is_dir(follow_symlinks=False) else found).append(entry.path)
        folders = inner
    return sorted([*found, *folders], key=_parts)


def stamps(place: str, name: str = "") -> Iterator[tuple[str, int, int]]:
    """Name, size and time of the files below a folder, or of a file; links are not followed. `name` is the place's
    own."""
    status = os.lstat(place)
    if stat.S_ISREG(status.st_mode):
        yield name, status.st_size, status.st_mtime_ns
    todo = [(place, name and f"{name}/")] if stat.S_ISDIR(status.st_mode) else []
    while todo:
        folder, prefix = todo.pop()
        if folder.endswith("__pycache__"):
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    yield prefix + entry.name, status.st_size, status.st_mtime_ns
                elif entry.is_dir(follow_symlinks=False):
                    todo.append((entry.path, f"{prefix}{entry.name}/"))


def find(place: str, name: str) -> list[str]:
    """The paths of this name below a folder, or of the place itself, in the order of their parts; links are not
    followed."""
    found = [place] if os.path.basename(place) == name else []
    todo = [place] if os.path.isdir(place) and not os.path.islink(place) else []
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.name == name:
                    found.append(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    return sorted(found, key=_parts)


def _parts(path: str) -> list[str]:
    return path.split(os.sep)
