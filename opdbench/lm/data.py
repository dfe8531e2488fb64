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
from dataclasses import dataclass
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
        hub_id: where the hub has it.
        config: the hub's configuration, which is the folder of its parquet files.
        counts: the number of rows of each published split.
        fields: the columns a row must have, as non-empty strings.
    """

    name: str
    hub_id: str
    config: str
    counts: Mapping[str, int]
    fields: tuple[str, ...]


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


def _folder(dataset: Dataset, data: str | None) -> Path:
    """The folder that holds the splits' files: `data`, else OPDBENCH_DATA, else a snapshot of the hub's."""
    origin, chosen = ("--data", data) if data else (ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE))
    chosen = chosen or dataset.hub_id
    local = Path(chosen).expanduser()
    if not local.exists():
        if not hub.is_id(chosen):
            raise UserError(f"{origin} names a folder that does not exist: {chosen}", _how_to_get(dataset))
        return hub.snapshot(chosen, kind="dataset", allow=[f"{dataset.config}/*.parquet"],
                            instead=_pass_a_folder(dataset))
    for folder in (local, local / dataset.name):
        if any(_candidates(folder, dataset, split) for split in dataset.counts):
            return folder
    raise UserError(f"{origin} names {chosen}, which holds neither {dataset.name}'s files nor a folder {dataset.name}/ "
                    "with them", _how_to_get(dataset))


def _candidates(folder: Path, dataset: Dataset, split: str) -> list[Path]:
    """The files of a split: one JSON-lines file, plain or compressed, or else parquet in one or more shards."""
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
    raise UserError(f"{folder} has no {split}.jsonl, {split}.jsonl.gz or {split}-*.parquet", _how_to_get(dataset))


def _raw_rows(file: Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of every row of a file; JSON lines are parsed and nothing else, so a hostile file is inert."""
    if file.suffix == ".parquet":
        yield from _parquet_rows(file)
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
    for name in dataset.fields:
        if not isinstance(row.get(name), str) or not row[name].strip():
            problem = "is missing" if name not in row else "is not a text, or empty"
            raise UserError(f"{where}: field {name!r} {problem}", _how_to_get(dataset))
    return Row(where, {name: row[name] for name in dataset.fields})


def _broken(where: str, what: str, error: Exception) -> UserError:
    return UserError(f"{where} {what} ({error})", "the file was cut short or changed: copy it anew from its source")


def _how_to_get(dataset: Dataset) -> str:
    return f"`hf download --repo-type dataset {dataset.hub_id}` where there is network, or {_pass_a_folder(dataset)}"


def _pass_a_folder(dataset: Dataset) -> str:
    files = " and ".join(f"{split}.jsonl ({count:,} rows)" for split, count in dataset.counts.items())
    return f"pass --data FOLDER (or set {ENVIRONMENT_VARIABLE}) with {files}; .jsonl.gz and parquet will do"
