"""Published data sets whose files have names and forms of their own: JSON lines, parquet, and text line by line.

`opdbench.lm.data` reads those that come in splits of plain columns. Here too, what cannot be used is an error with its
file and line, and only JSON, text and parquet are read, so a hostile file is inert.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from opdbench import hub
from opdbench.errors import UserError
from opdbench.lm.data import ENVIRONMENT_VARIABLE

_CHANGED = "the file was cut short or changed: copy it anew from its source"


@dataclass(frozen=True)
class Files:
    """Where a data set's files are.

    Attributes:
        name: its folder's name below a folder of data sets.
        hub_id: where the hub has it.
        patterns: the files to fetch from the hub, relative to it; local ones have the same names, or with `.gz`.
        contents: what a local folder must hold, for messages.
    """

    name: str
    hub_id: str
    patterns: tuple[str, ...]
    contents: str

    def folder(self, data: str | None, *, shared: bool = False) -> Path:
        """The folder of the files: below or at `data`, else OPDBENCH_DATA, else a snapshot of the hub's.

        Args:
            shared: several data sets are read, so that `data` is a folder of them, and never this one's own.

        Raises:
            UserError: no such folder, no such files in it, or nothing at hand and no network.
        """
        origin, chosen = ("--data", data) if data else (ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE))
        if not chosen:
            return hub.snapshot(self.hub_id, kind="dataset", allow=self.patterns, instead=self._instead)
        local = Path(chosen).expanduser()
        if not local.is_dir():
            raise UserError(f"{origin} names a folder that does not exist: {chosen}", self.how_to_get)
        for place in (local / self.name,) if shared else (local / self.name, local):
            if any(_plain_or_compressed(place, pattern) for pattern in self.patterns):
                return place
        raise UserError(f"{origin} names {chosen}, which has no folder {self.name}/ with {self.contents}",
                        self.how_to_get)

    def file(self, folder: Path, *names: str) -> Path:
        """The first of some files that is there, plain or compressed.

        Raises:
            UserError: none is.
        """
        if found := next((file for name in names for file in _plain_or_compressed(folder, name)), None):
            return found
        raise UserError(f"{folder} has no {' and no '.join(names)}", self.how_to_get)

    @property
    def how_to_get(self) -> str:
        return f"`hf download --repo-type dataset {self.hub_id}` where there is network, or {self._instead}"

    @property
    def _instead(self) -> str:
        return f"pass --data FOLDER (or set {ENVIRONMENT_VARIABLE}), where FOLDER/{self.name}/ holds {self.contents}"


def has(folder: Path, name: str) -> bool:
    """Whether a file is there, plain or compressed."""
    return bool(_plain_or_compressed(folder, name))


def json_rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of every line that is not blank."""
    for where, line in _lines(file):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not one JSON object ({error})", _CHANGED) from error
            if not isinstance(row, dict):
                raise UserError(f"{where} is not a JSON object", _CHANGED)
            yield where, row


def text_lines(file: Path, limit: int | None = None) -> list[str]:
    """The first `limit` lines of a text file, blank ones too; only line feeds end a line."""
    return [line.rstrip("\r\n") for _, line in islice(_lines(file), limit)]


def parquet_column(files: Sequence[Path], column: str, limit: int | None = None) -> list[Any]:
    """The first `limit` values of one column, batch by batch: a large file is not read beyond them."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{files[0]} is a parquet file, and pyarrow is not installed",
                        "pip install 'opdbench[lm]'") from None
    values: list[Any] = []
    for file in files:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=4096, columns=[column]):
                values += batch.to_pydict()[column]
                if limit is not None and len(values) >= limit:
                    return values[:limit]
        except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
            raise UserError(f"{file} is not a readable parquet file with a column {column!r} ({error})",
                            _CHANGED) from error
    return values


def text(where: str, row: dict[str, Any], field: str) -> str:
    """A field that must be a text, and not blank.

    Raises:
        UserError: with file, line and field.
    """
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        problem = "is missing" if field not in row else "is not a text, or empty"
        raise UserError(f"{where}: field {field!r} {problem}", _CHANGED)
    return value


def _plain_or_compressed(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) or sorted(folder.glob(f"{pattern}.gz"))


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    number = 0
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                yield f"{file} line {number}", line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} line {number} is not UTF-8 ({error})", _CHANGED) from error
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{file} after line {number} cannot be read ({error})", _CHANGED) from error
