"""A submission as a zip, or as files in a checkout: written, and read back as what a stranger sent.

Reading takes nothing on trust. Every path must have one of three forms, so none can leave the folder it is unpacked
in; every size is limited before anything is unpacked, and held to while it is; every file must hash to what the
manifest says; nothing may be there that the manifest does not name.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pydantic import ValidationError

from opdbench import untrusted
from opdbench.errors import UserError
from opdbench.schema.submission import Manifest
from opdbench.untrusted import RefusedError

CHECK_FAILED = 3
MANIFEST = "manifest.json"
_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}(?:[.:][A-Za-z0-9_+-]{1,100}){0,3}"
_RUN = rf"results/{_NAME}/{_NAME}/s[0-9]{{1,9}}-[0-9a-f]{{12}}"
_LIMITS = (  # what a submission may hold, and how large each may be
    (re.compile(rf"submissions/([a-z0-9][a-z0-9-]{{0,63}})/{MANIFEST}"), untrusted.MANIFEST_BYTES),
    (re.compile(r"submissions/[a-z0-9][a-z0-9-]{0,63}/[A-Za-z_][A-Za-z0-9_]{0,63}\.py"), untrusted.METHOD_BYTES),
    (re.compile(rf"{_RUN}/record\.json"), untrusted.RECORD_BYTES),
    (re.compile(rf"{_RUN}/(?:before|teacher|after)\.jsonl\.gz"), untrusted.OUTCOMES_BYTES),
)
_END_OF_DIRECTORY, _END_OF_DIRECTORY_64 = b"PK\x05\x06", b"PK\x06\x07"
_DIRECTORY_ENTRY = 1024  # bytes that one file may take in the directory


class Bundle(NamedTuple):
    """A submission whose files are what its manifest says."""

    manifest: Manifest
    root: Path  # the manifest's paths start here
    unpacked: bool  # from a zip; else the files lie in a checkout

    @property
    def records(self) -> list[Path]:
        return [self.root / file.path for file in self.manifest.files if file.path.endswith("/record.json")]

    @property
    def method_file(self) -> Path:
        return self.root / self.manifest.method_file


def manifest_path(name: str) -> str:
    return f"submissions/{name}/{MANIFEST}"


def pack(files: Mapping[str, bytes]) -> bytes:
    """A zip of files by path; equal files give equal bytes."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in sorted(files.items()):
            entry = zipfile.ZipInfo(path)  # without a time of its own: that of 1980
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, (stat.S_IFREG | 0o644) << 16
            archive.writestr(entry, content)
    return target.getvalue()


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """A bundle, unpacked as long as it is looked at; or the submission of a checkout, by its folder.

    Raises:
        UserError: it is not there (exit code 1), or is not a sound submission (3).
    """
    try:
        if path.is_dir():
            yield _read(path.absolute().parent.parent, path.absolute().name, unpacked=False)
            return
        with TemporaryDirectory(prefix="opdbench-") as place:
            root = Path(place)
            yield _read(root, _unpack(untrusted.read(path, untrusted.BUNDLE_BYTES), root), unpacked=True)
    except RefusedError as error:
        raise UserError(f"{path} is no sound submission: it {error}", exit_code=CHECK_FAILED) from None
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from None


def limit_of(path: str) -> int:
    """How large a file of a submission may be.

    Raises:
        RefusedError: a submission has no such file.
    """
    for pattern, limit in _LIMITS:
        if pattern.fullmatch(path):
            return limit
    raise RefusedError(f"holds a file {path[:200]!r}, and submissions have none of that name")


def _unpack(content: bytes, root: Path) -> str:
    """Write a zip's files below `root`, and return the submission's name."""
    _check_directory(content)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            _check_entries(entries)
            for entry in entries:
                target = root / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as packed:
                    target.write_bytes(_exactly(packed.read(entry.file_size + 1), entry))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, RefusedError):
            raise
        raise RefusedError("is a damaged zip") from None
    found = [match.group(1) for entry in entries if (match := _LIMITS[0][0].fullmatch(entry.filename))]
    if len(found) != 1:
        raise RefusedError(f"holds {len(found)} manifests, and must hold one")
    return found[0]


def _check_directory(content: bytes) -> None:
    """Before Python reads a zip's directory, which it does whole, make sure that it is small."""
    end = content[-22:]
    if len(end) < 22 or end[:4] != _END_OF_DIRECTORY or content[-42:-38] == _END_OF_DIRECTORY_64:
        raise RefusedError("is not a plain zip, or is cut short")
    count, size = int.from_bytes(end[10:12], "little"), int.from_bytes(end[12:16], "little")
    if count > untrusted.BUNDLE_FILES or size > untrusted.BUNDLE_FILES * _DIRECTORY_ENTRY:
        raise RefusedError(f"holds more than {untrusted.BUNDLE_FILES:,} files")


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    for entry in entries:
        limit = limit_of(entry.filename)
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise RefusedError(f"holds {entry.filename}, which is no regular file")
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise RefusedError(f"holds {entry.filename} encrypted, or packed by a method other than deflate")
        if entry.file_size > limit:
            raise RefusedError(f"holds {entry.filename}, which is larger than {untrusted.in_words(limit)}")
    if len(set(names)) < len(names):
        raise RefusedError("holds two files of one name")
    if sum(entry.file_size for entry in entries) > untrusted.BUNDLE_UNPACKED:
        raise RefusedError(f"is larger than {untrusted.in_words(untrusted.BUNDLE_UNPACKED)} when unpacked")


def _exactly(content: bytes, entry: zipfile.ZipInfo) -> bytes:
    if len(content) != entry.file_size:
        raise RefusedError(f"holds {entry.filename} in another size than it says")
    return content


def _read(root: Path, name: str, *, unpacked: bool) -> Bundle:
    """Read the manifest, and hold every file to it."""
    manifest = _manifest(root, name)
    paths = [file.path for file in manifest.files]
    if len(set(paths)) < len(paths) or len(paths) > untrusted.BUNDLE_FILES:
        raise RefusedError("names a file twice, or too many files")
    if manifest.method_file not in paths or not manifest.method_file.startswith(f"submissions/{name}/"):
        raise RefusedError("does not bring its method's file")
    total = 0
    for file in manifest.files:
        try:
            content = untrusted.read(_inside(root, file.path), limit_of(file.path))
        except FileNotFoundError:
            raise RefusedError(f"does not bring {file.path}, which its manifest names") from None
        total += len(content)
        if len(content) != file.bytes or hashlib.sha256(content).hexdigest() != file.sha256:
            raise RefusedError(f"has another {file.path} than its manifest describes")
    if total > untrusted.BUNDLE_UNPACKED:
        raise RefusedError(f"is larger than {untrusted.in_words(untrusted.BUNDLE_UNPACKED)}")
    wanted = {*paths, manifest_path(name)}
    there = {str(path.relative_to(root)) for path in (root.rglob("*") if unpacked else (root / "submissions" / name)
                                                      .rglob("*")) if not path.is_dir()}
    if more := sorted(there - wanted):
        raise RefusedError(f"holds {more[0]}, which its manifest does not name")
    return Bundle(manifest, root, unpacked)


def _manifest(root: Path, name: str) -> Manifest:
    text = untrusted.read(_inside(root, manifest_path(name)), untrusted.MANIFEST_BYTES)
    untrusted.parse_json(text)
    try:
        manifest = Manifest.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise RefusedError(f"has a manifest that is none: {place[:200]}: {first['msg']}") from None
    if manifest.name != name:
        raise RefusedError("calls itself otherwise than its folder")
    return manifest


def _inside(root: Path, path: str) -> Path:
    """A file of the submission, with no symbolic link on the way to it."""
    limit_of(path)
    if (root / path).resolve() != root.resolve() / path:
        raise RefusedError(f"has a symbolic link on the way to {path}")
    return root / path
