"""Grade again what a run wrote, with the task and the grader that are installed here.

A record's scores are always recomputed from its raw outcomes. Whether the outcomes themselves are right shows where a
run kept what its models wrote: every stored text goes through the grader again and must get the scores that are stored
beside it, and every test problem must be there. Episodes of control tasks leave no text; who doubts them runs them
again and compares (`again`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from opdbench import registry
from opdbench.errors import UserError
from opdbench.report.comparison import Side, compare
from opdbench.report.runs import Run, setting_of, study, with_outcomes
from opdbench.schema.record import Phase
from opdbench.schema.spec import Recipe
from opdbench.scores import Outcome
from opdbench.task import Example, LanguageTask, Task
from opdbench.trust import LEVELS, SELF_REPORTED, Level

RE_GRADED, REPRODUCED = LEVELS[1], LEVELS[2]
TOLERANCE = 1e-9


class Regraded(NamedTuple):
    """What grading again found of one run."""

    run: Run
    level: Level  # what it is worth now
    graded: int  # texts
    problem: str | None  # why it is worth no more, or what is wrong
    wrong: bool  # whether the record is contradicted, and not merely unconfirmed


class _ContradictedError(Exception):
    """The record says something that the grader here does not find."""


@dataclass
class Grader:
    """Grades runs; a task with its problems is made once for all of them.

    Attributes:
        plugins, data: as for `opdbench run`.
        execute: whether to grade tasks whose grading runs programs that models wrote.
    """

    plugins: Sequence[str] = ()
    data: str | None = None
    execute: bool = False
    _tasks: dict[str, tuple[Task, str]] = field(default_factory=dict)  # with its checksum

    def regrade(self, run: Run) -> Regraded:
        """Check a run's scores against its raw outcomes, and those against its texts."""
        run = with_outcomes(run)
        if run.problem is not None:
            return Regraded(run, SELF_REPORTED, 0, run.problem, True)
        if run.record.status != "completed":
            return Regraded(run, SELF_REPORTED, 0, f"it is {run.record.status}, so there is nothing to grade", False)
        try:
            task = self._task(run.record.recipe)
            graded = self._grade(run, task)
        except _ContradictedError as error:
            return Regraded(run, SELF_REPORTED, 0, str(error), True)
        except UserError as error:
            return Regraded(run, SELF_REPORTED, 0, error.problem, False)
        if not graded:
            return Regraded(run, SELF_REPORTED, 0, "episodes leave no text to grade again", False)
        return Regraded(run, RE_GRADED, graded, None, False)

    def _task(self, recipe: Recipe) -> Task:
        key = json.dumps([recipe.task, recipe.task_params], sort_keys=True)
        if key not in self._tasks:
            task = self._make(recipe)
            self._tasks[key] = task, task.checksum()
        task, checksum = self._tasks[key]
        if checksum != recipe.task_sha256:
            raise _ContradictedError(f"its problems are not those that {task.id} has here")
        return task

    def _make(self, recipe: Recipe) -> Task:
        task_class: type[Task] = registry.load("task", recipe.task, self.plugins)
        if task_class.executes and not self.execute:
            raise UserError(f"grading {recipe.task} runs programs that models wrote", "add --execute-code")
        try:
            return task_class(data=self.data, params=task_class.Params(**recipe.task_params))
        except (ValidationError, TypeError):
            raise _ContradictedError(f"its settings are none of {recipe.task}") from None

    def _grade(self, run: Run, task: Task) -> int:
        """The number of texts that were graded, all of them as the record says; 0 for episodes."""
        metrics = {score.metric for phase in run.outcomes for score in getattr(run.record, phase).values()}
        if metrics != {task.metric}:
            raise _ContradictedError(f"its scores are of {', '.join(sorted(metrics))}, and {task.id} has {task.metric}")
        tested = run.record.recipe.evaluation.examples
        if not isinstance(task, LanguageTask):
            n = tested or getattr(task, "evaluation_episodes", None)
            _check_episodes(run, n, [f"{game.name}/" for game in task.games()] or [""])
            return 0
        examples = {example.id: example for example in list(task.examples("test"))[:tested]}
        for phase, outcomes in run.outcomes.items():
            _check_problems(phase, outcomes, examples, task.samples)
            _check_grades(phase, outcomes, examples, task)
        return sum(map(len, run.outcomes.values()))


def again(first: Sequence[Run], rerun: Sequence[Run]) -> None:
    """Whether running the same again gave the same: equal recipes, and no difference that can be told from chance.

    Raises:
        UserError: it did not, with what differs.
    """
    by_digest = {run.record.recipe_sha256: run for run in rerun}
    pairs = [(run, by_digest.get(run.record.recipe_sha256)) for run in first]
    if missing := [str(run.seed) for run, other in pairs if other is None]:
        raise UserError(f"there is no second run of seed {', '.join(missing)}")
    sides = [Side("it", setting_of(first[0].record), found) for group in (first, [other for _, other in pairs if other])
             if (found := study([with_outcomes(run) for run in group])) is not None]
    if len(sides) < 2:
        raise UserError("no second run of it is complete")
    for difference in compare(*sides):
        if difference.p < 0.01:
            raise UserError(f"running it again gives {difference.scores[1].mean:.4g} {difference.measure}, and the "
                            f"record says {difference.scores[0].mean:.4g}")


def _check_episodes(run: Run, n: int | None, games: Sequence[str]) -> None:
    wanted = {f"{game}episode-{index}" for index in range(n or 0) for game in games}
    for phase, outcomes in run.outcomes.items():
        ids = Counter((outcome.mode, outcome.id) for outcome in outcomes)
        if n is not None and ({name for _, name in ids} != wanted or set(ids.values()) != {1}):
            raise _ContradictedError(f"phase {phase} does not hold each of the {n} episodes once")
        if any(outcome.output is not None for outcome in outcomes):
            raise _ContradictedError(f"phase {phase} holds texts, and its task has none")


def _check_problems(phase: Phase, outcomes: Sequence[Outcome], examples: Mapping[str, Example], samples: int) -> None:
    for mode, times in (("greedy", 1), ("sampled", samples)):
        counts = Counter(outcome.id for outcome in outcomes if outcome.mode == mode)
        if counts and counts != dict.fromkeys(examples, times):
            raise _ContradictedError(f"phase {phase} does not answer each of the {len(examples)} test problems "
                                     f"{times} times, {mode}")


def _check_grades(phase: Phase, outcomes: Sequence[Outcome], examples: Mapping[str, Example], task: LanguageTask
                  ) -> None:
    for outcome in outcomes:
        if outcome.output is None:
            raise _ContradictedError(f"the text of {outcome.id} is missing from phase {phase}")
        grades = _graded(task, examples[outcome.id], outcome.output)
        if not _equal(grades, {task.metric: outcome.score, **outcome.extra}):
            raise _ContradictedError(f"{outcome.id} ({outcome.mode}, {phase}) is recorded with {task.metric} "
                                     f"{outcome.score:g}, and its text is graded {grades[task.metric]:g}")


def _graded(task: LanguageTask, example: Example, text: str) -> dict[str, float]:
    try:
        return task.grade(example, text)
    except UserError:
        raise
    except Exception as error:  # a stranger's text may be what a grader's author never thought of
        raise _ContradictedError(f"the text of {example.id} cannot be graded: {type(error).__name__}") from error


def _equal(first: Mapping[str, float], second: Mapping[str, float]) -> bool:
    return first.keys() == second.keys() and all(abs(first[name] - second[name]) <= TOLERANCE for name in first)


def grader_in_words() -> str:
    """Which grader this is, for `trust.json`."""
    from opdbench.provenance import checkout, packages

    commit = checkout().commit
    return f"opdbench {packages().get('opdbench', '')}" + (f" at {commit[:12]}" if commit else "")


def folders(paths: Sequence[Path]) -> list[Any]:
    """The runs below each path; a path may be a record file.

    Raises:
        UserError: there is none, or one cannot be read.
    """
    from opdbench.report.runs import read_records
    from opdbench.store import RECORD

    found = []
    for path in paths:
        runs, unreadable = read_records(path.parent if path.name == RECORD else path)
        if unreadable:
            raise UserError(unreadable[0].problem)
        if not runs:
            raise UserError(f"there are no records in {path}")
        found += runs
    return found
