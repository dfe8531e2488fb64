"""The folder that a site lies in: pages written only where they change, pages that are no longer made taken away, and
a manifest by which an unchanged rebuild knows that there is nothing to do."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from opdbench.errors import UserError
from opdbench.site.pages import Page
from opdbench.stamps import stamps
from opdbench.store import writing

MANIFEST = ".manifest.json"


class Written(NamedTuple):
    """What a page holds, for the manifest."""

    path: str
    size: int
    sha256: str
    changed: bool


class Manifest(NamedTuple):
    """What was built from what."""

    inputs: str  # `stamps.fingerprint`; empty while a build is under way
    files: Mapping[str, tuple[int, str]]  # size and sha256 by path


def read_manifest(out: Path) -> Manifest | None:
    """The manifest of a site, None where there is nothing yet.

    Raises:
        UserError: the folder holds something else.
    """
    try:
        content = json.loads((out / MANIFEST).read_bytes())
        return Manifest(str(content["inputs"]), {str(path): (int(size), str(digest)) for path, (size, digest) in
                                                 content["files"].items() if _is_below(path)})
    except (FileNotFoundError, NotADirectoryError):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is there and is no site of opdbench",
                            "name another folder with --out DIR") from None
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{out / MANIFEST} is no manifest of a site", f"remove {out}, or name another --out") from None


def write_manifest(out: Path, manifest: Manifest) -> None:
    content = {"inputs": manifest.inputs, "files": dict(sorted(manifest.files.items()))}
    with writing(out / MANIFEST):
        out.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def is_whole(out: Path, manifest: Manifest) -> bool:
    """Whether every page is still there, in its size."""
    there = {name: size for name, size, _ in stamps(os.path.realpath(out))}
    return all(there.get(path) == size for path, (size, _) in manifest.files.items())


def write_page(out: Path, page: Page) -> Written:
    """Write a page unless it is there already."""
    place = os.path.join(out, page.path)
    try:
        changed = _create(place, page.content)
        if not changed and (changed := _content(place) != page.content):
            with open(place, "wb") as handle:
                handle.write(page.content)
    except OSError:
        with writing(Path(place)):
            raise
    return Written(page.path, len(page.content), hashlib.sha256(page.content).hexdigest(), changed)


def remove(out: Path, paths: Iterable[str]) -> None:
    """Take pages away, and the folders that this empties."""
    for path in sorted(paths):
        place = out / path
        place.unlink(missing_ok=True)
        for folder in place.relative_to(out).parents:
            if folder.parts and (out / folder).is_dir() and not any((out / folder).iterdir()):
                (out / folder).rmdir()


def _create(place: str, content: bytes) -> bool:
    """Write a file, unless there is one already; most pages of a first build lie in a folder that is there."""
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        handle = os.open(place, new, 0o666)
    except FileExistsError:
        return False
    except FileNotFoundError:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        handle = os.open(place, new, 0o666)
    with open(handle, "wb", buffering=0) as file:
        while content:
            content = content[file.write(content):]
    return True


def _content(place: str) -> bytes | None:
    try:
        with open(place, "rb") as handle:
            return handle.read()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _is_below(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not PurePosixPath(path).is_absolute() and ".." not in parts
