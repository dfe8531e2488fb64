"""A phase's raw outcomes read back: every field checked, the scores made again, and means laid out by mode and example.

Runs of one task and seed have the same file of what stood before training, and of the teacher, whatever the method. A
file is opened once for all runs that hold it at one time: the checksum of what was read names it, so that a file which
differs in one byte is another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from opdbench import untrusted
from opdbench.schema.record import OutcomeFile, Score
from opdbench.scores import Columns, Outcome, score
from opdbench.store import read_stored

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Means:
    """The mean score of every example, over its samples where there are several."""

    example_e: tuple[str, ...]
    score_e: Array


@dataclass(frozen=True, eq=False)
class Tested:
    """What one file of raw outcomes holds, and what it makes."""

    columns: Columns
    scores: Mapping[str, Score]  # by mode
    means: Mapping[str, Means]  # by mode

    def __len__(self) -> int:
        return len(self.columns.id)

    @property
    def outcomes(self) -> list[Outcome]:
        return list(map(Outcome._make, zip(*self.columns, strict=True)))

    @property
    def has_texts(self) -> bool:
        """Whether every outcome is a text; episodes have none."""
        return None not in self.columns.output


_held: WeakValueDictionary[tuple[str, str], Tested] = WeakValueDictionary()


def read_tested(folder: Path, file: OutcomeFile, metric: str) -> Tested:
    """The file that a record describes.

    Raises:
        UserError: it is missing, altered, or beyond a limit.
        ValueError, TypeError, KeyError, OverflowError: its lines are no outcomes.
    """
    def opened(content: bytes) -> Tested:
        known = _held.get((file.sha256, metric))
        if known is None:
            found = _outcomes(untrusted.gunzip(content, untrusted.OUTCOMES_UNPACKED))
            known = _held[file.sha256, metric] = _tested(found, metric)
        return known

    return read_stored(folder, file, opened)


def _tested(columns: Columns, metric: str) -> Tested:
    by_mode = columns.by_mode()
    means = {mode: of_mode.means() for mode, of_mode in by_mode.items()}
    return Tested(columns, {mode: score(of_mode, metric) for mode, of_mode in by_mode.items()},
                  {mode: Means(tuple(found), np.array(list(found.values()))) for mode, found in means.items()})


def _outcomes(content: bytes) -> Columns:
    """The outcomes that lines of JSON hold, as columns; what cannot be read quickly is read again, which says why.

    All lines are one list to the quick parser. Its elements are the lines: where two of these meet, a value ends and
    another begins, and as no outcome holds a list, that is nowhere but between outcomes.
    """
    text = content.removesuffix(b"\n")
    joined = b"[" + text.replace(b"}\n{", b"},{") + b"]"
    try:
        lines = from_json(joined, allow_inf_nan=False)
        columns = _columns(lines)
    except (ValueError, TypeError, KeyError):
        return _columns(untrusted.parse_lines(content))
    keys = len(Outcome._fields) * len(lines) + sum(map(len, columns.extra))
    if (b"\n" not in joined and len(lines) == text.count(b"\n") + 1 <= untrusted.OUTCOMES
            and keys == untrusted.keys_written(joined)):
        return columns
    return _columns(untrusted.parse_lines(content))


def _columns(lines: Sequence[Any]) -> Columns:
    """Outcomes checked by columns: one after the other takes five times as long."""
    if set(map(len, lines)) != {len(Outcome._fields)}:
        raise ValueError("an outcome has other fields")
    columns = Columns(*(tuple([line[name] for line in lines]) for name in Outcome._fields))
    kinds = {name: set(map(type, column)) for name, column in columns._asdict().items()}
    names = "".join(columns.id) if kinds["id"] == {str} else ""
    if not (names and all(columns.id) and max(map(len, columns.id)) <= untrusted.LONGEST_NAME
            and (names.isprintable() or not untrusted.HIDDEN.search(names))
            and set(columns.mode) <= {"greedy", "sampled"} and _are_scores(columns.score) and kinds["extra"] == {dict}
            and all(_are_scores(tuple(extra.values())) for extra in filter(None, columns.extra))
            and kinds["length"] == {int} and min(columns.length) >= 0
            and max(columns.length) <= untrusted.LARGEST_SCORE
            and kinds["truncated"] == {bool} and kinds["output"] <= {str, NoneType}):
        raise ValueError("an outcome's field is of another kind")
    return columns if kinds["score"] == {float} else columns._replace(score=tuple(map(float, columns.score)))


def _are_scores(values: Sequence[Any]) -> bool:
    return (set(map(type, values)) <= {int, float} and min(values) >= -untrusted.LARGEST_SCORE
            and max(values) <= untrusted.LARGEST_SCORE)
