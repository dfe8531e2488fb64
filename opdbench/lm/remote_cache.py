"""What a teacher said, on disk: reused across seeds, methods and processes, and a teacher by itself when it is whole.

A folder with a manifest (which teacher, which vocabulary, how many of its most likely tokens) and two tables: log-
probabilities of sequences, and completions. A table is a file of fixed-size entries, and beside it one plain array a
column that is mapped into memory. Entries are found by the sha256 of what was asked, and each carries a checksum over
its rows. Rows are written before the entry that names them, under a lock, so that a process which dies leaves nothing
but rows that nobody names.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opdbench.errors import UserError
from opdbench.lm.answers import Identity
from opdbench.store import write_atomically, writing

MANIFEST = "teacher_cache.json"
_ENTRY = np.dtype([("key", "V32"), ("first", "<u8"), ("rows", "<u4"), ("flag", "<u4"), ("checksum", "V16")])
_LOCK_SECONDS = 60.0
_FIX = "delete the folder (what it held is asked for again), or name another with --set teacher_cache=DIR"

Rows = Mapping[str, NDArray[Any]]  # column -> [n] or [n, width]


class Asked(NamedTuple):
    """Whose answers a cache holds.

    Attributes:
        teacher: the model's name as served, and `probe` what it said of a fixed sequence: its identity.
        teacher_sha256: the checksum of that identity when it was first asked; the name of the teacher in recipes.
        vocabulary_sha256: of the local tokenizer's vocabulary, which gives token ids their meaning.
        top_k: tokens a position.
        context_length: of the teacher, in tokens; None where it is not known.
    """

    teacher: str
    probe: tuple[float, ...]
    teacher_sha256: str
    vocabulary_sha256: str
    top_k: int
    context_length: int | None = None

    @property
    def identity(self) -> Identity:
        return Identity(self.teacher, self.probe)


class Cache:
    """The cache in `folder`, made when it is not there.

    Args:
        asked: who is asked now; a cache with more tokens a position serves one that wants fewer.

    Raises:
        UserError: it holds another teacher's answers, or another vocabulary's, or fewer tokens a position; it is
            damaged or cannot be written.
    """

    def __init__(self, folder: Path, asked: Asked) -> None:
        self.folder = folder
        if not (folder / MANIFEST).exists():
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                if not (folder / MANIFEST).exists():
                    write_atomically(folder / MANIFEST, _manifest(asked))
        self.asked = read_manifest(folder)
        _require_same(folder, self.asked, asked)
        top_k = self.asked.top_k
        self.scores = Table(folder, "scores", {"logp": ("<f4", ()), "topk_id": ("<i4", (top_k,)),
                                               "topk_logp": ("<f4", (top_k,))})
        self.completions = Table(folder, "completions", {"token": ("<i4", ()), "logp": ("<f4", ())})


def key(teacher_sha256: str, tokens: Sequence[int], **question: Any) -> bytes:
    """Names what was asked: whom, about which tokens, and how."""
    digest = hashlib.sha256(json.dumps([teacher_sha256, question], sort_keys=True).encode())
    digest.update(np.asarray(tokens, "<i4").tobytes())
    return digest.digest()


def is_cache(path: Path) -> bool:
    """Whether `path` is a folder that holds a teacher's answers."""
    return os.path.isfile(path / MANIFEST)  # False, too, for what is too long for a path


def read_manifest(folder: Path) -> Asked:
    """
    Raises:
        UserError: it is cut short, altered, or of another version.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        asked = Asked(**{**content["asked"], "probe": tuple(map(float, content["asked"]["probe"]))})
        whole = content == json.loads(_manifest(asked))
    except (OSError, ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"the manifest of the teacher cache {folder} is cut short, altered or of another version", _FIX)
    return asked


class Table:
    """Entries and their rows; only ever appended to.

    Args:
        columns: name -> (type, shape of a row's value); one of no values is not kept.
    """

    def __init__(self, folder: Path, name: str, columns: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self._folder, self._name = folder, name
        self._columns = {column: np.dtype((kind, shape)) for column, (kind, shape) in columns.items() if 0 not in shape}
        self._index: dict[bytes, tuple[int, int, int, bytes]] = {}
        self._read = self._rows = 0  # entries read so far, and the rows that they name

    def find(self, key: bytes) -> tuple[Rows, int] | None:
        """The rows and the flag of an entry; None when it is not there.

        Raises:
            UserError: the files are cut short or altered.
        """
        if key not in self._index:
            self._refresh()
        if key not in self._index:
            return None
        first, n, flag, checksum = self._index[key]
        rows = {column: self._slice(column, kind, first, n) for column, kind in self._columns.items()}
        if _checksum(key, flag, rows) != checksum:
            raise UserError(f"the teacher cache {self._folder} is altered: an entry of {self._name} does not have its "
                            "checksum", _FIX)
        return rows, flag

    def add(self, entries: Sequence[tuple[bytes, Rows, int]]) -> None:
        """Store entries (key, rows, flag) that are not there yet; safe beside other processes.

        Raises:
            UserError: there is no room, or the files are damaged.
        """
        with locked(self._folder), writing(self._folder):
            self._refresh()
            self._mend()
            new = {key: (rows, flag) for key, rows, flag in entries if key not in self._index}
            if not new:
                return
            for column, kind in self._columns.items():
                parts = [np.ascontiguousarray(rows[column], kind.base).tobytes() for rows, _ in new.values()]
                _append(self._path(column), b"".join(parts))
            index, first = np.zeros(len(new), _ENTRY), self._rows
            for place, (key, (rows, flag)) in enumerate(new.items()):
                n = len(next(iter(rows.values())))
                index[place] = (key, first, n, flag, _checksum(key, flag, {name: rows[name] for name in self._columns}))
                first += n
            _append(self._path("index"), index.tobytes())
            self._refresh()

    def __len__(self) -> int:
        self._refresh()
        return len(self._index)

    def _path(self, part: str) -> Path:
        return self._folder / f"{self._name}.{part}.bin"

    def _refresh(self) -> None:
        """Read the entries that were added since, by whomever. An entry that is still being written is left."""
        path = self._path("index")
        if not path.exists() or path.stat().st_size // _ENTRY.itemsize == self._read:
            return
        with path.open("rb") as file:
            file.seek(self._read * _ENTRY.itemsize)
            content = file.read()
        found = np.frombuffer(content[:len(content) // _ENTRY.itemsize * _ENTRY.itemsize], _ENTRY)
        for entry in found:
            first, n = int(entry["first"]), int(entry["rows"])
            if first != self._rows:
                raise UserError(f"the teacher cache {self._folder} is altered: the entries of {self._name} do not "
                                "follow each other", _FIX)
            self._index.setdefault(entry["key"].tobytes(), (first, n, int(entry["flag"]), entry["checksum"].tobytes()))
            self._rows += n
        self._read += len(found)

    def _mend(self) -> None:
        """Cut off what a process that died in the middle of `add` has left behind the last entry."""
        sizes = {"index": self._read * _ENTRY.itemsize,
                 **{column: self._rows * kind.itemsize for column, kind in self._columns.items()}}
        for part, size in sizes.items():
            path = self._path(part)
            there = path.stat().st_size if path.exists() else 0
            if there < size:
                raise UserError(f"the teacher cache {self._folder} is cut short: {path.name} has {there} of {size} "
                                "bytes", _FIX)
            if there > size:
                os.truncate(path, size)

    def _slice(self, column: str, kind: np.dtype[Any], first: int, n: int) -> NDArray[Any]:
        path = self._path(column)
        there = path.stat().st_size if path.exists() else 0
        if there < (first + n) * kind.itemsize:
            raise UserError(f"the teacher cache {self._folder} is cut short: {path.name} has {there} bytes, and an "
                            f"entry lies at {first * kind.itemsize}", _FIX)
        if n == 0:
            return np.zeros((0, *kind.shape), kind.base)
        mapped = np.memmap(path, kind.base, "r", offset=first * kind.itemsize, shape=(n, *kind.shape))
        return np.array(mapped)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the cache for writing. The kernel frees it however a process ends.

    Raises:
        UserError: another process has held it for a minute.
    """
    with writing(folder):
        handle = open(folder / ".lock", "w")  # noqa: SIM115 - closed below
    end = time.monotonic() + _LOCK_SECONDS
    with handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise UserError(f"another process keeps the teacher cache {folder} locked",
                                    "wait for it, or name another with --set teacher_cache=DIR") from None
                time.sleep(0.02)
        yield


def _manifest(asked: Asked) -> bytes:
    content = {"what": "answers of a teacher, kept by opdbench", "version": 1, "asked": asked._asdict()}
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "sha256": checksum}, indent=1) + "\n").encode()


def require_identity(folder: Path, has: Asked, now: Identity) -> None:
    """
    Raises:
        UserError: the answers in the cache are another's than of who answers now.
    """
    if not has.identity.matches(now):
        other = f"{has.teacher!r}" if has.teacher != now.model else "the name is the same, the weights are others"
        raise UserError(f"the teacher cache {folder} holds the answers of another teacher than {now.model!r}: {other}",
                        "name another folder with --set teacher_cache=DIR")


def _require_same(folder: Path, has: Asked, wants: Asked) -> None:
    require_identity(folder, has, wants.identity)
    if has.vocabulary_sha256 != wants.vocabulary_sha256:
        raise UserError(f"the teacher cache {folder} was made with another tokenizer than the student's",
                        "name another folder with --set teacher_cache=DIR")
    if has.top_k < wants.top_k:
        raise UserError(f"the teacher cache {folder} holds the {has.top_k} most likely tokens of a position, and "
                        f"{wants.top_k} are wanted", f"--set top_k={has.top_k}, or another folder with --set "
                                                     "teacher_cache=DIR")


def _checksum(key: bytes, flag: int, rows: Rows) -> bytes:
    digest = hashlib.blake2b(key + flag.to_bytes(4, "little"), digest_size=16)
    for column in rows:
        digest.update(np.ascontiguousarray(rows[column]).tobytes())
    return digest.digest()


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
