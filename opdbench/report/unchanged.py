"""Whether boards need to be built again: `leaderboards/.built.json` says what they were made of, and what came out.

It is a shortcut past work, and no source of figures. Only `opdbench board build` of all boards looks at it, and does
nothing where names, sizes and times of all inputs are what they were and the files on disk are those that it made.
Who forges it can so keep a board from being written, on a disk that he can write to anyway, and can put nothing on it;
`opdbench board check`, which CI runs, never looks at it. It can be deleted at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from opdbench import registry, untrusted
from opdbench.errors import UserError
from opdbench.report.board import Tables
from opdbench.schema.board import RULES
from opdbench.schema.spec import Frozen
from opdbench.stamps import fingerprint
from opdbench.store import write_atomically

MADE = ".built.json"


class Facts(Frozen):
    """What is said of a board when it is built."""

    board: str
    entries: int
    left_out: dict[str, int]  # runs by the rule that they break


class Made(Frozen):
    """An earlier build of all boards."""

    inputs: str
    files: dict[str, str]  # sha256 by path below the leaderboards
    boards: list[Facts]


def facts(board: Tables) -> Facts:
    return Facts(board=board.name, entries=board.entries, left_out=dict(sorted(board.left_out.items())))


def inputs_of(results: Path, leaderboards: Path) -> str:
    """One checksum for all that boards are made of: records, rules, suites, code; "" where there are no records."""
    if not results.is_dir():
        return ""
    methods = {found.path for found in registry.descriptions("method") if found.path is not None}
    package = Path(str(files("opdbench")))
    return fingerprint([results, *sorted(leaderboards.glob(f"*/{RULES}")), package,
                        Path(str(files("opdbench.configs"))), *sorted(methods)], str(results))


def made_of(leaderboards: Path, inputs: str) -> list[Facts] | None:
    """What was said of the boards when they were built of these inputs, if their files are still there as they were."""
    try:
        made = Made.model_validate_json(untrusted.read(leaderboards / MADE, untrusted.MANIFEST_BYTES), strict=True)
    except (OSError, untrusted.RefusedError, ValidationError):
        return None
    if not inputs or made.inputs != inputs:
        return None
    there = all(_sha256(leaderboards / name) == digest for name, digest in made.files.items())
    return made.boards if there else None


def remember(leaderboards: Path, inputs: str, built: Sequence[Tables]) -> None:
    """Note what was made, once its files are written."""
    digests = {f"{board.name}/{file}": hashlib.sha256(content.encode()).hexdigest()
               for board in built for file, content in board.files.items()}
    made = Made(inputs=inputs, files=digests, boards=[facts(board) for board in built])
    with suppress(UserError):  # a folder that cannot be written has no such file, and is built again each time
        write_atomically(leaderboards / MADE, (made.model_dump_json(indent=1) + "\n").encode())


def _sha256(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
