"""A phase's raw outcomes read back: every field checked, the scores made again, and means laid out by mode and example.

Runs of one task and seed have the same file of what stood before training, and of the teacher, whatever the method. A
file is opened once for all runs that hold it at one time: the checksum of what was read names it, so that a file which
differs in one byte is another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any
from weakref import WeakValueDictionary

from opdbench import untrusted
from opdbench.schema.record import OutcomeFile, Score
from opdbench.scores import Outcome, scores
from opdbench.store import read_stored, unpacked


@dataclass(frozen=True, eq=False)
class Tested:
    """What one file of raw outcomes holds, and what it makes."""

    outcomes: Sequence[Outcome]
    scores: Mapping[str, Score]  # by mode
    means: Mapping[str, Mapping[str, float]]  # by mode and example; over samples where there are several


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
            known = _held[file.sha256, metric] = _tested(_outcomes(unpacked(content)), metric)
        return known

    return read_stored(folder, file, opened)


def _tested(outcomes: Sequence[Outcome], metric: str) -> Tested:
    samples: dict[str, dict[str, list[float]]] = {}
    for outcome in outcomes:
        samples.setdefault(outcome.mode, {}).setdefault(outcome.id, []).append(outcome.score)
    means = {mode: {name: found[0] if len(found) == 1 else fmean(found) for name, found in of_mode.items()}
             for mode, of_mode in samples.items()}
    return Tested(outcomes, scores(outcomes, metric), means)


_fields = itemgetter(*Outcome._fields)


def _outcomes(lines: Sequence[Any]) -> list[Outcome]:
    """The outcomes that lines hold, checked by columns: one after the other takes five times as long."""
    if set(map(len, lines)) != {len(Outcome._fields)}:
        raise ValueError("an outcome has other fields")
    columns = dict(zip(Outcome._fields, zip(*map(_fields, lines), strict=True), strict=True))
    kinds = {name: set(map(type, column)) for name, column in columns.items()}
    ids, extras = columns["id"], columns["extra"]
    if not (kinds["id"] == {str} and all(ids) and max(map(len, ids)) <= untrusted.LONGEST_NAME
            and not untrusted.HIDDEN.search("".join(ids)) and set(columns["mode"]) <= {"greedy", "sampled"}
            and all(map(_is_score, columns["score"])) and kinds["extra"] == {dict}
            and all(_is_score(value) for extra in extras if extra for value in extra.values())
            and kinds["length"] == {int} and min(columns["length"]) >= 0
            and max(columns["length"]) <= untrusted.LARGEST_SCORE
            and kinds["truncated"] == {bool} and kinds["output"] <= {str, type(None)}):
        raise ValueError("an outcome's field is of another kind")
    columns["score"] = tuple(map(float, columns["score"]))
    return list(map(Outcome._make, zip(*columns.values(), strict=True)))


def _is_score(value: Any) -> bool:
    return type(value) in (int, float) and -untrusted.LARGEST_SCORE <= value <= untrusted.LARGEST_SCORE
