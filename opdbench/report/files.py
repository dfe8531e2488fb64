"""Generated files beside their rules: written only where they differ, and held against what the records give."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from opdbench.errors import UserError
from opdbench.store import write_atomically

BEFORE, SHOWN = 40, 160  # characters: of what agrees before a difference, and altogether


class Generated(Protocol):
    """Files that are made of records."""

    @property
    def folder(self) -> Path: ...

    @property
    def files(self) -> Mapping[str, str]: ...  # content by name


def write(built: Generated) -> list[str]:
    """Write the files that are not yet what they should be, and name them."""
    changed = differing(built)
    built.folder.mkdir(parents=True, exist_ok=True)
    for file in changed:
        write_atomically(built.folder / file, built.files[file].encode(), flush=False)
    return changed


def differing(built: Generated) -> list[str]:
    """The files on disk that are not what the records give."""
    return [file for file, content in built.files.items() if _read(built.folder / file) != content.encode()]


def first_difference(built: Generated, file: str) -> str:
    """Where a file on disk leaves what the records give, in one sentence."""
    there = _read(built.folder / file)
    if there is None:
        return f"{built.folder / file} is missing"
    lines, wanted = there.decode(errors="replace").split("\n"), built.files[file].split("\n")
    number = next((index for index, pair in enumerate(zip(lines, wanted, strict=False)) if pair[0] != pair[1]),
                  min(len(lines), len(wanted)))
    pair = ["" if number >= len(text) else text[number] for text in (lines, wanted)]
    agree = next((index for index, (a, b) in enumerate(zip(*pair, strict=False)) if a != b), min(map(len, pair)))
    start = max(0, agree - BEFORE)
    said, says = (repr(text[start:start + SHOWN]) if text else "nothing" for text in pair)
    return f"{built.folder / file}, line {number + 1}: committed {said}, from the records {says}"


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
