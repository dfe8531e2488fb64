"""What the student wrote beside what the teacher wrote, from the raw outcomes that lie beside a record.

Only the beginning of each file is unpacked, so that neither a long file nor one that was made to explode costs
anything.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pydantic_core import from_json

from opdbench import untrusted
from opdbench.schema.record import OutcomeFile, Phase

SHOWN = 4
_LINES, _BYTES = 24, 1 << 14  # of each file: outcomes and unpacked bytes that are looked at
_LONGEST = 2000  # characters of a text
_LARGEST_FILE = 1 << 26


class Output(NamedTuple):
    score: float
    length: int
    text: str


class Sample(NamedTuple):
    """One problem under greedy decoding; a phase that has no text for it is missing."""

    id: str
    outputs: Mapping[str, Output]  # by phase


def samples(folder: Path, files: Mapping[Phase, OutcomeFile]) -> list[Sample]:
    """A few problems of the test set: first those on which the student fails, in equal parts with those it solves."""
    by_phase = {phase: _first(folder, file) for phase, file in files.items()}
    after = by_phase.get("after", {})
    best = max((output.score for output in after.values()), default=0.0)
    failed = [name for name, output in after.items() if output.score < best][:SHOWN // 2]
    solved = [name for name, output in after.items() if output.score == best][:SHOWN - len(failed)]
    return [Sample(name, {phase: found[name] for phase, found in by_phase.items() if name in found})
            for name in (*failed, *solved)]


def _first(folder: Path, file: OutcomeFile) -> Mapping[str, Output]:
    """The first greedy texts of a file, by problem; none when the file is not the one that the record describes."""
    try:
        content = untrusted.read(f"{folder}/{Path(file.file).name}", _LARGEST_FILE)
    except (OSError, untrusted.RefusedError):
        return {}
    if hashlib.sha256(content).hexdigest() != file.sha256:
        return {}
    return _texts(content)


@lru_cache(maxsize=128)  # what stood before training, and the teacher, are the same files for many runs
def _texts(content: bytes) -> Mapping[str, Output]:
    found: dict[str, Output] = {}
    try:
        beginning = zlib.decompressobj(wbits=31).decompress(content, _BYTES)
        for line in beginning.split(b"\n", _LINES)[:-1]:
            outcome = from_json(line)
            if outcome["mode"] == "greedy" and isinstance(outcome["output"], str):
                text = outcome["output"]
                found.setdefault(str(outcome["id"]), Output(
                    float(outcome["score"]), int(outcome["length"]),
                    text if len(text) <= _LONGEST else text[:_LONGEST] + " …"))
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError, zlib.error):
        return {}
    return found
