"""How far a record was confirmed by somebody else than who made it.

- self-reported: the scores are recomputed from the raw outcomes that lie beside the record, and nothing more is known.
- re-graded: the stored outputs were graded again here, and gave the same outcomes (`opdbench regrade --write`).
- reproduced: somebody ran it again, and could not tell the two apart (`opdbench regrade --rerun DIR --write`).

The level lies beside the record in `trust.json`, with the checksum of the record that it was given to: a record that
is changed afterwards has lost it. Who submits a record cannot bring that file along.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

from pydantic import ValidationError

from opdbench import untrusted
from opdbench.errors import UserError
from opdbench.schema.spec import Frozen
from opdbench.store import write_atomically

Level = Literal["self-reported", "re-graded", "reproduced"]
LEVELS: tuple[Level, ...] = get_args(Level)
SELF_REPORTED = LEVELS[0]
TRUST = "trust.json"


class Trust(Frozen):
    """What `trust.json` says."""

    level: Level
    record_sha256: str
    by: str


def trust_of(folder: Path, record_sha256: str) -> Level:
    """The level of the record in a run's folder.

    Raises:
        UserError: the file that gives one cannot be read.
    """
    path = folder / TRUST
    if not os.path.lexists(path):  # of most records
        return SELF_REPORTED
    try:
        given = Trust.model_validate_json(untrusted.read(path, untrusted.RECORD_BYTES), strict=True)
    except (OSError, untrusted.RefusedError, ValidationError):
        raise UserError(f"{path} gives no level of trust", f"remove it, and type opdbench regrade {folder} --write"
                        ) from None
    return given.level if given.record_sha256 == record_sha256 else SELF_REPORTED


def give(folder: Path, level: Level, record_sha256: str, by: str) -> None:
    """Write a level beside the record that it is given to."""
    content = Trust(level=level, record_sha256=record_sha256, by=by).model_dump()
    write_atomically(folder / TRUST, (json.dumps(content, indent=1) + "\n").encode())


def lowest(levels: Iterable[str]) -> Level:
    """The level of several runs together."""
    given = set(levels)
    return next(level for level in LEVELS if level in given)
