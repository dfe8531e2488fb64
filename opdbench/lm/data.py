"""Published data sets, read row by row from a local folder or from the hub's parquet files.

A row that cannot be used is an error with its file and line, and a split of the wrong length is an error too: a score
on other problems than the published ones must not carry the data set's name.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from opdbench import hub
from opdbench.errors import UserError

ENVIRONMENT_VARIABLE = "OPDBENCH_DATA"


class Row(NamedTuple):
    """One published row."""

    where: str  # file and line, for messages
    fields: dict[str, str]


@dataclass(frozen=True)
class Dataset:
    """What a published data set must look like.

    Attributes:
        name: its folder's name below a folder of data sets.
        hub_id: where the hub has it; None when it is not there, and then `url` says where it is.
        config: the hub's configuration, which is the folder of its parquet files.
        counts: the number of rows of each published split.
        fields: the columns a row must have, as non-empty strings.
        optional: columns that a row may have as strings; what is missing or null is read as "".
        lists: those of `fields` that are lists of strings, which are read as lines.
        numbers: those of `fields` and `optional` that may be numbers, which are read as text (27.0 as "27").
        files: names (patterns) of a split's files, the first that is there, instead of `<split>.jsonl` and its like.
    """

    name: str
    hub_id: str | None
    config: str
    counts: Mapping[str, int]
    fields: tuple[str, ...]
    optional: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    url: str = ""


def load(dataset: Dataset, split: str, data: str | None = None) -> list[Row]:
    """All rows of a published split, in its order.

    Args:
        data: a folder (the data set's own, or one that holds it), or a hub id; None means what OPDBENCH_DATA says, and
            the data set's own hub id when that is not set.

    Raises:
        UserError: no data at hand, a corrupt or incomplete row (with file and line), or a wrong number of rows.
    """
    files = _split_files(_folder(dataset, data), dataset, split)
    rows = [_checked(where, row, dataset) for file in files for where, row in _raw_rows(file)]
    if len(rows) != dataset.counts[split]:
        raise UserError(f"{files[0]} has {len(rows)} rows, but {dataset.name}'s {split} split has "
                        f"{dataset.counts[split]}", _how_to_get(dataset))
    return rows


def at_hand(dataset: Dataset, data: str | None = None) -> bool:
    """Whether a local folder (`data`, else OPDBENCH_DATA) has any of the data set's files."""
    chosen = data or os.environ.get(ENVIRONMENT_VARIABLE)
    return chosen is not None and _local_folder(Path(chosen).expanduser(), dataset) is not None


def _folder(dataset: Dataset, data: str | None) -> Path:
    """The folder that holds the splits' files: `data`, else OPDBENCH_DATA, else a snapshot of the hub's."""
    origin, chosen = ("--data", data) if data else (ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE))
    chosen = chosen or dataset.hub_id
    if chosen is None:
        raise UserError(f"{dataset.name} is not on the hub, and no folder with it is given", _how_to_get(dataset))
    local = Path(chosen).expanduser()
    if not local.exists():
        if not hub.is_id(chosen):
            raise UserError(f"{origin} names a folder that does not exist: {chosen}", _how_to_get(dataset))
        named = [pattern for patterns in dataset.files.values() for pattern in patterns]
        return hub.snapshot(chosen, kind="dataset", allow=[f"{dataset.config}/*.parquet", *named],
                            instead=_pass_a_folder(dataset))
    if folder := _local_folder(local, dataset):
        return folder
    raise UserError(f"{origin} names {chosen}, which holds neither {dataset.name}'s files nor a folder {dataset.name}/ "
                    "with them", _how_to_get(dataset))


def _local_folder(local: Path, dataset: Dataset) -> Path | None:
    """The data set's own folder, given itself or a folder of data sets."""
    return next((folder for folder in (local, local / dataset.name)
                 if any(_candidates(folder, dataset, split) for split in dataset.counts)), None)


def _candidates(folder: Path, dataset: Dataset, split: str) -> list[Path]:
    """The files of a split: those it names itself, one JSON-lines file, plain or compressed, or parquet in shards."""
    if patterns := dataset.files.get(split):
        return next((files for pattern in patterns if (files := sorted(folder.glob(pattern)))), [])
    for name in (f"{split}.jsonl", f"{split}.jsonl.gz"):
        if (folder / name).is_file():
            return [folder / name]
    for place in (folder, folder / dataset.config):
        if files := sorted([*place.glob(f"{split}.parquet"), *place.glob(f"{split}-*.parquet")]):
            return files
    return []


def _split_files(folder: Path, dataset: Dataset, split: str) -> list[Path]:
    if files := _candidates(folder, dataset, split):
        return files
    names = dataset.files.get(split, (f"{split}.jsonl", f"{split}.jsonl.gz", f"{split}-*.parquet"))
    raise UserError(f"{folder} has no {' or '.join(names)}", _how_to_get(dataset))


def _raw_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of every row of a file; JSON is parsed and nothing else, so a hostile file is inert."""
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
        return
    if file.name.endswith((".json", ".json.gz")):
        yield from _array_rows(file)
        return
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file} line {number}", json.loads(line.decode("utf-8"))
    except (EOFError, OSError, zlib.error) as error:
        raise _broken(f"{file} after line {number}", "cannot be read", error) from error
    except (ValueError, RecursionError) as error:
        raise _broken(f"{file} line {number}", "is not one JSON object in UTF-8", error) from error


def _array_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """The elements of a file that is one JSON array."""
    try:
        content = file.read_bytes()
        rows = json.loads(gzip.decompress(content) if file.suffix == ".gz" else content)
    except (EOFError, OSError, zlib.error, ValueError, RecursionError) as error:
        raise _broken(str(file), "is not one JSON array in UTF-8", error) from error
    if not isinstance(rows, list):
        raise UserError(f"{file} is not one JSON array", "copy it anew from its source")
    yield from ((f"{file} row {number}", row) for number, row in enumerate(rows, 1))


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{file} is a parquet file, and pyarrow is not installed",
                        "pip install 'opdbench[lm]'") from None
    try:
        rows = parquet.read_table(file).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise _broken(str(file), "is not a readable parquet file", error) from error
    yield from ((f"{file} row {number}", row) for number, row in enumerate(rows, 1))


def _checked(where: str, row: Any, dataset: Dataset) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object", _how_to_get(dataset))
    texts = {name: _text(row.get(name), dataset, name) for name in (*dataset.fields, *dataset.optional)}
    for name, text in texts.items():
        empty_may_be = name in dataset.optional and (row.get(name) is None or text is not None)
        if not empty_may_be and not (text or "").strip():
            problem = "is missing" if name not in row else "is not a text, or empty"
            raise UserError(f"{where}: field {name!r} {problem}", _how_to_get(dataset))
    return Row(where, {name: text or "" for name, text in texts.items()})


def _text(value: Any, dataset: Dataset, name: str) -> str | None:
    """A string as it is, numbers and lists as text where they are expected, None for anything else."""
    if name in dataset.numbers and isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.15g}"
    if name in dataset.lists and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return value if isinstance(value, str) else None


def _broken(where: str, what: str, error: Exception) -> UserError:
    return UserError(f"{where} {what} ({error})", "the file was cut short or changed: copy it anew from its source")


def _how_to_get(dataset: Dataset) -> str:
    if dataset.hub_id is None:
        return f"download {dataset.url}, and {_pass_a_folder(dataset)}"
    return f"`hf download --repo-type dataset {dataset.hub_id}` where there is network, or {_pass_a_folder(dataset)}"


def _pass_a_folder(dataset: Dataset) -> str:
    files = " and ".join(f"{dataset.files.get(split, (f'{split}.jsonl',))[0]} ({count:,} rows)"
                         for split, count in dataset.counts.items())
    others = "" if dataset.files else "; .jsonl.gz and parquet will do"
    return f"pass --data FOLDER (or set {ENVIRONMENT_VARIABLE}) with {files}{others}"
