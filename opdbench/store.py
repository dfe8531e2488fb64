"""The folder of one run: record, raw outcomes, checkpoint. Every file is written whole or not at all.

Untrusted bytes stay inert: JSON and safetensors, never pickle. A file that was cut short or altered is refused with a
sentence that says which and what to do.
"""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import ValidationError

from opdbench import untrusted
from opdbench.errors import UserError
from opdbench.schema.record import OutcomeFile, Record
from opdbench.schema.spec import Recipe

if TYPE_CHECKING:
    from opdbench.world import Outcome

T = TypeVar("T")
RECORD = "record.json"
CHECKPOINT = "checkpoint.safetensors"
SCHEMA_VERSION = 1


class RunFolder:
    """One run's folder below the results folder: `results/<task>/<method>/<id>`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def student(self) -> Path:
        """Where the trained student's weights go."""
        return self.path / "student"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder: two processes must not work on one run. The kernel frees it however the process ends."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = open(self.path / ".lock", "w")  # noqa: SIM115 - closed below, after it has been held
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is working on this run: {self.path}",
                                "wait for it, or choose another --seed or --results folder") from None
            yield

    def read_record(self) -> Record | None:
        path = self.path / RECORD
        return read_record(path) if path.exists() else None

    def write_record(self, record: Record) -> None:
        # A library's message may colour itself; what is written here must be read again.
        reason = None if record.reason is None else untrusted.inert(record.reason)
        content = record.model_copy(update={"reason": reason}).model_dump_json(indent=1)
        write_atomically(self.path / RECORD, (content + "\n").encode())

    def write_outcomes(self, phase: str, outcomes: list[Outcome]) -> OutcomeFile:
        """Store raw outcomes as compressed JSON lines; equal outcomes give equal bytes."""
        lines = "".join(json.dumps(outcome._asdict(), ensure_ascii=False) + "\n" for outcome in outcomes)
        content = gzip.compress(lines.encode(), compresslevel=9, mtime=0)
        name = f"{phase}.jsonl.gz"
        write_atomically(self.path / name, content)
        return OutcomeFile(file=name, sha256=hashlib.sha256(content).hexdigest(), n=len(outcomes))

    def has_checkpoint(self) -> bool:
        return (self.path / CHECKPOINT).exists()

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        write_atomically(self.path / CHECKPOINT, pack(state))

    def read_checkpoint(self) -> dict[str, Any]:
        path = self.path / CHECKPOINT
        try:
            return unpack(path.read_bytes())
        except ValueError as error:
            raise UserError(f"the checkpoint {path} cannot be used: {error}",
                            "add --fresh to start this run again from the beginning") from None

    def drop_checkpoint(self) -> None:
        (self.path / CHECKPOINT).unlink(missing_ok=True)


class Whole(NamedTuple):
    """A record with what it was parsed from: checksums are of the text, and of the recipe as it is written."""

    record: Record
    content: dict[str, Any]
    sha256: str  # of the file


def run_path(recipe: Recipe, run_id: str) -> Path:
    """`<task>/<method>/s<seed>-<id>`: where a run lies below the results folder."""
    return Path(task_folder(recipe.task), recipe.method, f"s{recipe.seed}-{run_id}")


def task_folder(task: str) -> str:
    """The name of a task's folder. Not every system allows a colon in it: `minatar:freeway@1` is `minatar-freeway`."""
    return task.partition("@")[0].translate({ord("/"): "-", ord(":"): "-"})


def read_record(path: Path) -> Record:
    """Read one record file.

    Raises:
        UserError: the file is cut short, is no record, or has a schema version that this opdbench does not know.
    """
    return read_whole(path).record


def read_whole(path: Path) -> Whole:
    """Read one record file, as `read_record` does, and keep what it was read from."""
    try:
        text = untrusted.read(path, untrusted.RECORD_BYTES)
        content = untrusted.parse_plain(text)
        record = _plain_record(content)
        if record is None:
            content = untrusted.parse_json(text)
            _check_version(path, content)
            # Strict: in JSON a number is no text, and true no number.
            record = Record.model_validate_json(text, strict=True)
        return Whole(record, content, hashlib.sha256(text).hexdigest())
    except OSError as error:
        raise UserError(f"cannot read the record {path}: {error.strerror}") from None
    except untrusted.RefusedError as error:
        raise UserError(f"{path} is not a whole record: it {error}",
                        "restore the file, or add --fresh to make the run again") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise UserError(f"{path} is not a whole record: {untrusted.inert(place)}: {first['msg']}",
                        "restore the file, or add --fresh to make the run again") from None


def _plain_record(content: Any) -> Record | None:
    """The record that plain JSON is; None where only the text can say.

    Python's strictness wants tuples, and takes two thirds of the time of JSON's.
    """
    try:
        recipe, execution = content["recipe"], content["execution"]
        models = {role: {**recipe[role], "parts": tuple(recipe[role]["parts"])} for role in ("teacher", "student")
                  if recipe[role] is not None}
        return Record.model_validate({**content, "recipe": {**recipe, **models},
                                      "execution": {**execution, "probes": tuple(execution["probes"])}}, strict=True)
    except (ValidationError, TypeError, KeyError):
        return None


def read_outcomes(folder: Path, file: OutcomeFile) -> list[dict[str, Any]]:
    """Raw outcomes of one phase, checked against the record's checksum."""
    return read_stored(folder, file, unpacked)


def unpacked(content: bytes) -> list[Any]:
    """The lines of a file of raw outcomes.

    Raises:
        RefusedError: it is no such file, or beyond a limit.
    """
    return untrusted.parse_lines(untrusted.gunzip(content, untrusted.OUTCOMES_UNPACKED))


def read_stored(folder: Path, file: OutcomeFile, parse: Callable[[bytes], T]) -> T:
    """What `parse` makes of a phase's file, once the file is seen to be the one that the record describes."""
    if Path(file.file).name != file.file:
        raise UserError(f"the record in {folder} has its outcomes in another folder")
    path = folder / file.file
    try:
        content = untrusted.read(path, untrusted.OUTCOMES_BYTES)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise UserError(f"{path} is not what the record describes: its checksum differs",
                            "restore the file, or add --fresh to make the run again")
        return parse(content)
    except OSError as error:
        raise UserError(f"cannot read the outcomes {path}: {error.strerror}") from None
    except untrusted.RefusedError as error:
        raise UserError(f"the raw outcomes {file.file} of {folder} cannot be used: the file {error}") from None


def _check_version(path: Path, content: Any) -> None:
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UserError(f"{path} is a record of schema version {version}, and this opdbench reads {SCHEMA_VERSION}",
                        "install a newer opdbench")


def write_atomically(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write beside, flush to disk, then rename over: a reader sees the old file or the new one, whatever happens.

    Flushing takes milliseconds, and is for what cannot be made again if the machine loses its power.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as handle:
                handle.write(content)
                if flush:
                    handle.flush()
                    os.fsync(handle.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk says no with into a sentence; whatever was written before stays as it is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"no space left while writing {path}; what was written before is intact",
                            "free some space and type the same command again: the run goes on from its last "
                            "checkpoint") from None
        raise UserError(f"cannot write {path}: {error.strerror}", "choose a folder that you can write to with "
                        "--results DIR") from None


def pack(tree: dict[str, Any]) -> bytes:
    """A tree of dicts, lists, JSON values and tensors as one safetensors file, with a checksum over all of it."""
    from safetensors.torch import save

    tensors: dict[str, Any] = {}
    structure = json.dumps(_encode(tree, tensors))
    return save(tensors, metadata={"tree": structure, "sha256": _digest(structure, tensors)})


def unpack(content: bytes) -> dict[str, Any]:
    """The inverse of `pack`.

    Raises:
        ValueError: the file is cut short, altered, or not one of ours.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = load(content)
        header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
        metadata = header["__metadata__"]
        structure, digest = metadata["tree"], metadata["sha256"]
    except (SafetensorError, KeyError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"it is cut short or not a checkpoint ({error})") from None
    if _digest(structure, tensors) != digest:
        raise ValueError("its checksum differs from its content")
    tree: dict[str, Any] = _decode(json.loads(structure), tensors)
    return tree


def _encode(node: Any, tensors: dict[str, Any]) -> Any:
    """JSON for `node`, moving tensors into `tensors`. Dicts become lists of pairs, since keys may be integers."""
    import torch

    if isinstance(node, torch.Tensor):
        key = str(len(tensors))
        tensors[key] = node.detach().cpu().contiguous().clone()
        return {"tensor": key}
    if isinstance(node, dict):
        return {"items": [[key, _encode(value, tensors)] for key, value in node.items()]}
    if isinstance(node, (list, tuple)):
        return [_encode(value, tensors) for value in node]
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise TypeError(f"a state may hold JSON values and tensors, not {type(node).__name__}")


def _decode(node: Any, tensors: dict[str, Any]) -> Any:
    if isinstance(node, dict):
        if "tensor" in node:
            return tensors[node["tensor"]]
        return {key: _decode(value, tensors) for key, value in node["items"]}
    return [_decode(value, tensors) for value in node] if isinstance(node, list) else node


def _digest(structure: str, tensors: dict[str, Any]) -> str:
    import torch

    digest = hashlib.sha256(structure.encode())
    for key in sorted(tensors, key=int):
        if tensors[key].numel():  # an empty tensor that numpy made has strides that cannot be viewed as bytes
            digest.update(tensors[key].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
