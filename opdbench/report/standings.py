"""Boards over several tasks: each method's mean gap recovered, who ties with whom, and what is missing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from opdbench import stats
from opdbench.errors import UserError
from opdbench.report.arms import Chosen, chosen, members
from opdbench.report.entries import COSTS, Entry, Failure, difference, placements
from opdbench.report.runs import Run
from opdbench.schema.board import SuiteBoard
from opdbench.schema.suite import Arm
from opdbench.stats import Estimate, Interval


@dataclass(frozen=True)
class Standing:
    """One line of a board over several tasks: an arm of its suites."""

    name: str
    arm: Arm
    by_task: Mapping[str, Entry]  # by name@version; without the tasks where the arm has no run
    missing: tuple[str, ...]  # tasks without enough seeds or without a gap that can be measured
    gap: Estimate | None = None  # mean over the tasks; None unless nothing is missing
    middle: Interval | None = None  # interquartile mean over tasks and seeds
    rank: int | None = None
    tie: str = ""
    detectable: float | None = None
    underpowered: bool = False

    @property
    def seeds(self) -> int:
        """The fewest on any of the board's tasks."""
        return 0 if not self.by_task else min(entry.seeds for entry in self.by_task.values())

    @property
    def costs(self) -> dict[str, float]:
        """Sums over the tasks, of means over seeds."""
        return {name: sum(entry.costs[name] for entry in self.by_task.values())
                for name in COSTS if self.by_task and all(name in entry.costs for entry in self.by_task.values())}

    @property
    def facts(self) -> dict[str, tuple[str, ...]]:
        kinds = {kind: None for entry in self.by_task.values() for kind in entry.facts}
        return {kind: tuple(sorted({fact for entry in self.by_task.values() for fact in entry.facts.get(kind, ())}))
                for kind in kinds}

    @property
    def failures(self) -> list[tuple[str, Failure]]:
        return [(task, failure) for task, entry in self.by_task.items() for failure in entry.failures]


class Standings(NamedTuple):
    lines: list[Standing]  # best first; those without a rank last
    left_out: Counter[str]
    budgets: dict[str, str]  # by task, as the suite says it


def standings(board: SuiteBoard, runs: Sequence[Run], results: Path) -> Standings:
    """The lines of a board over several tasks.

    Raises:
        UserError: a suite lacks a task or is not there, two suites mean different things by one name, or runs cannot
            be compared.
    """
    suites = {name: chosen(name, results) for name in dict.fromkeys(rules.suite for rules in board.tasks.values())}
    found: dict[str, dict[str, Entry]] = {}
    left_out: Counter[str] = Counter()
    budgets = {}
    for task, rules in board.tasks.items():
        suite = suites[rules.suite]
        name = task.partition("@")[0]
        if name not in suite.suite.tasks:
            raise UserError(f"suite {suite.name} does not run {name}", "name the suite that does, in board.yaml")
        budgets[task] = suite.suite.tasks[name].budget
        of_task = members(suite, task, runs, rules.teacher, rules.student)
        left_out.update(of_task.left_out)
        for arm, entry in of_task.entries.items():
            found.setdefault(arm, {})[task] = entry
    arms = _arms(list(suites.values()))
    lines = [_standing(board, name, arms[name], by_task) for name, by_task in sorted(found.items())]
    return Standings(_ranked(board, lines), left_out, budgets)


def _arms(suites: Sequence[Chosen]) -> dict[str, Arm]:
    arms: dict[str, Arm] = {}
    for suite in suites:
        for name, arm in suite.suite.arms.items():
            if arms.setdefault(name, arm) != arm:
                raise UserError(f"the suites of this board mean different methods by {name}",
                                "give arms that differ different names")
    return arms


def _standing(board: SuiteBoard, name: str, arm: Arm, by_task: Mapping[str, Entry]) -> Standing:
    missing = tuple(task for task in board.tasks if task not in by_task or by_task[task].seeds < board.min_seeds
                    or board.rank_by not in by_task[task].gaps)
    ordered = {task: by_task[task] for task in board.tasks if task in by_task}
    if missing:
        return Standing(name, arm, ordered, missing)
    gaps = [entry.gaps[board.rank_by] for entry in ordered.values()]
    return Standing(name, arm, ordered, (), stats.mean_of([gap.estimate for gap in gaps]),
                    _middle([gap.value_se.mean(1) for gap in gaps]))


def _middle(by_task: Sequence[np.ndarray]) -> Interval:
    """Interquartile mean over seeds and tasks; the bootstrap's generator is fixed, so that equal records give equal
    bytes. Tasks count the same, with as many seeds as all of them have."""
    seeds = min(len(score_s) for score_s in by_task)
    score_rt = np.stack([score_s[:seeds] for score_s in by_task], axis=1)
    return stats.bootstrap(stats.interquartile_mean, [score_rt], np.random.default_rng(0))


def _ranked(board: SuiteBoard, lines: Sequence[Standing]) -> list[Standing]:
    eligible = sorted((line for line in lines if line.gap is not None),
                      key=lambda line: (-round(_mean(line), 9), line.name))
    found = {(i, j): _difference(board, eligible[i], eligible[j])
             for i in range(len(eligible)) for j in range(i + 1, len(eligible))}
    placed = [replace(line, **place._asdict())
              for line, place in zip(eligible, placements(board, len(eligible), found), strict=True)]
    return [*placed, *(line for line in lines if line.gap is None)]


def _difference(board: SuiteBoard, first: Standing, second: Standing) -> Estimate | None:
    """First minus second: the mean over tasks of differences paired over each task's seeds and examples."""
    by_task = [difference(first.by_task[task], second.by_task[task], board.rank_by) for task in board.tasks]
    estimates = [estimate for estimate in by_task if estimate is not None]
    return stats.mean_of(estimates) if len(estimates) == len(by_task) else None


def _mean(line: Standing) -> float:
    assert line.gap is not None
    return line.gap.mean
