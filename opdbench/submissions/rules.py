"""What a division asks of a submission's runs, as checks: each returns what is wrong in one sentence, or nothing.

Closed: task, teacher, student, test problems and budget are those of a board, and so is what a step of a budget in
steps may see; a method has one setting of its own parameters on all tasks; and its seeds are the first of the published
list, each of them, so that nobody chooses the lucky ones. Open: anything, as long as it can be re-graded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opdbench import models, registry
from opdbench.errors import UserError
from opdbench.report import board as boards
from opdbench.report.entries import broken_rule
from opdbench.report.runs import FRESH, Run
from opdbench.schema.board import Board, read_board
from opdbench.schema.record import Record, Score
from opdbench.schema.spec import ModelRef
from opdbench.schema.submission import Division

SAMPLED = {"steps": "steps", "student_tokens": "student_tokens", "teacher_tokens": "teacher_tokens",
           "seconds": "seconds"}
COLLECTED = ("student_tokens", "teacher_tokens", "data_tokens")


def boards_of(leaderboards: Path, task: str) -> list[Board]:
    """The boards over one task alone."""
    found = [read_board(leaderboards / name) for name in boards.names(leaderboards)]
    return [board for board in found if isinstance(board, Board) and board.task == task]


def board_for(leaderboards: Path, runs: Sequence[Run], division: Division) -> Board:
    """The board whose rules the runs of one task keep.

    Raises:
        UserError: there is none, with the rule that is broken.
    """
    task = runs[0].record.recipe.task
    found = [board for board in boards_of(leaderboards, task) if board.division == division]
    broken = [next(filter(None, (broken_rule(board, run) for run in runs)), None) for board in found]
    for board, rule in zip(found, broken, strict=True):
        if rule is None:
            return board
    if not found:
        raise UserError(f"there is no {division} board of {task}")
    raise UserError(f"runs on {task} have {broken[0]} than the {division} board {found[0].title!r} asks for")


def closed(runs: Sequence[Run], leaderboards: Path) -> str | None:
    """Whether these runs, of one method, belong into the closed division."""
    if len({json.dumps(run.record.recipe.params, sort_keys=True) for run in runs}) > 1:
        return "the method has another setting of its parameters on one task than on another, and a closed one has one"
    for task, of_task in by_task(runs).items():
        try:
            board = board_for(leaderboards, of_task, "closed")
        except UserError as error:
            return error.problem
        if problem := _seeds(task, of_task, board) or _steps(task, of_task):
            return problem
    return None


def models_are_named(runs: Sequence[Run]) -> str | None:
    """A recipe's checksum covers what its models contain, and not what they were called; boards go by both."""
    shipped = models.shipped_models()
    for run in runs:
        for role in ("teacher", "student"):
            model: ModelRef | None = getattr(run.record.recipe, role)
            if model is None:
                continue
            content = model.sha256
            if model.reference.startswith(FRESH):
                content = hashlib.sha256(f"{model.reference} seed {run.seed}".encode()).hexdigest()
            elif model.reference in shipped:
                content = models.checksum(shipped[model.reference])
            if content != model.sha256:
                return f"seed {run.seed} calls its {role} {model.reference}, and had another model"
    return None


def by_task(runs: Iterable[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(run.record.recipe.task, []).append(run)
    return found


def _seeds(task: str, runs: Sequence[Run], board: Board) -> str | None:
    first, last = map(int, board.seeds.split(":"))
    seeds = sorted(run.seed for run in runs)
    if len(seeds) < board.min_seeds:
        return f"there are {len(seeds)} runs on {task}, and a closed board asks for {board.min_seeds} seeds"
    if seeds != list(range(first, min(last, first + len(seeds)))):
        return (f"the seeds on {task} are {', '.join(map(str, seeds))}, and must be the first of the published list, "
                f"{first}, {first + 1}, ..., each once, and those whose run failed too")
    return None


def _steps(task: str, runs: Sequence[Run]) -> str | None:
    """A budget in steps says little where a step may be of any size."""
    task_class = registry.load("task", task)
    for run in runs:
        recipe = run.record.recipe
        for name in ("batch", "horizon"):
            own = task_class.training.get(name, getattr(task_class, "max_new_tokens", None))
            if recipe.budget.steps is not None and getattr(recipe.training, name) != own:
                return f"the budget on {task} is in steps, and {name} is {getattr(recipe.training, name)} and not {own}"
    return None


def budget(record: Record) -> str | None:
    """Whether a completed run spent what its budget says: at least one limit reached, and none passed by more than
    what a step may take."""
    limits = record.recipe.budget.limits()
    ledger: Mapping[str, Any] = record.ledger
    missing = [name for name in ("steps", *COLLECTED[:2], "seconds") if name not in ledger]
    if missing or not ledger["steps"]:
        return f"the ledger of seed {record.recipe.seed} has no {', '.join(missing) or 'steps'}"
    spent = {axis: _spent(ledger, axis) for axis in limits}
    for axis, limit in limits.items():
        if spent[axis] > limit + 2 * spent[axis] / ledger["steps"] * (axis != "steps"):
            return f"seed {record.recipe.seed} spent {spent[axis]:,.0f} {axis}, and its budget is {limit:,.0f}"
    if record.stopped_by not in limits or spent[record.stopped_by] < limits[record.stopped_by]:
        return f"seed {record.recipe.seed} stopped before its budget was spent"
    return None


def _spent(ledger: Mapping[str, Any], axis: str) -> float:
    if axis == "tokens":
        return float(sum(ledger.get(name, 0) for name in COLLECTED))
    return float(ledger[SAMPLED[axis]])


def references_agree(runs: Sequence[Run], reference: Sequence[Run]) -> str | None:
    """Teacher and starting student are given, so their scores must be those that others measured of the same models
    at the same seed: a low start or a low teacher makes a large share of the gap."""
    for run in runs:
        for phase, role in (("before", "student"), ("teacher", "teacher")):
            for other in _with_same_model(run, reference, role):
                if problem := _disagree(run, other, phase):
                    return problem
    return None


def _with_same_model(run: Run, reference: Sequence[Run], role: str) -> Iterator[Run]:
    recipe = run.record.recipe
    for other in reference:
        theirs = other.record.recipe
        models = getattr(recipe, role), getattr(theirs, role)
        if (other.usable and theirs.task_sha256 == recipe.task_sha256 and other.seed == run.seed
                and theirs.evaluation == recipe.evaluation and None not in models
                and models[0].sha256 == models[1].sha256):
            yield other


def _disagree(run: Run, other: Run, phase: str) -> str | None:
    for mode, stated in getattr(run.record, phase).items():
        theirs: Score | None = getattr(other.record, phase).get(mode)
        if theirs is not None and (stated.high < theirs.low or stated.low > theirs.high):
            return (f"seed {run.seed} states {stated.mean:.4g} {phase}, {mode}, and a run of "
                    f"{other.record.recipe.method} measured {theirs.mean:.4g} of the same model")
    return None
