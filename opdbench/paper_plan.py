"""Which runs a paper's tables and claims need, and what they will cost on a hardware profile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from opdbench.cli.arguments import seed_range
from opdbench.errors import UserError
from opdbench.estimate import Estimate, estimate
from opdbench.report.arms import Chosen
from opdbench.report.evidence import Evidence
from opdbench.resolve import Request, resolve
from opdbench.schema.paper import Paper


class Place(NamedTuple):
    """An arm of a suite on a task (without version)."""

    suite: str
    task: str
    arm: str

    @property
    def command(self) -> str:
        return f"opdbench run suite:{self.suite} --only {self.task}/{self.arm}"


class Need(NamedTuple):
    """The runs of one place: how many are there, how many are not, and what one of them costs."""

    place: Place
    there: int
    missing: int  # of the suite's seeds
    tuning: int  # runs of the grid that come first
    cost: Estimate | None  # of one run; None when it cannot be said
    problem: str  # why not

    @property
    def runs(self) -> int:
        return self.missing + self.tuning

    @property
    def seconds(self) -> float | None:
        """Of training, for all runs that are missing."""
        return None if self.cost is None or self.cost.seconds is None else self.runs * self.cost.seconds


def places(paper: Paper, table: str | None = None) -> list[Place]:
    """What a paper, or one of its tables, names: arms of tables first, then those of claims. A recipe's stages are not
    among them: one command makes them all (`opdbench.report.claims.command`)."""
    found = [Place(ours.suite, _bare(ours.task), arm) for ours in paper.ours if table in (None, ours.table)
             for arms in ours.arms.values() for arm in arms.values()]
    if table is None:
        found += [Place(suite, _bare(each.task), arm) for claim in paper.claims for each in claim.experiments
                  if each.suite
                  for suite, arm in ((each.suite, each.first), (each.second_suite or each.suite, each.second)) if arm]
    return list(dict.fromkeys(found))


def needs(paper: Paper, evidence: Evidence, profile: str = "auto", table: str | None = None) -> Iterator[Need]:
    """The runs of every place, in the order in which `run` makes them.

    Raises:
        UserError: a suite or an arm that the paper names does not exist.
    """
    for place in places(paper, table):
        chosen = evidence.suite(place.suite)
        seeds = seed_range(chosen.suite.seeds)
        there = evidence.completed(place.suite, place.task, place.arm)
        missing = len([seed for seed in seeds if seed not in there])
        known = chosen.has(place.task, place.arm)
        grid = 0 if known or chosen.suite.tune is None else len(chosen.suite.tune.values)
        try:
            cost, problem = estimate(resolve(_request(chosen, place, seeds[0], profile))), ""
        except UserError as error:
            cost, problem = None, error.problem
        yield Need(place, len(there), missing, grid, cost, problem)


def _request(chosen: Chosen, place: Place, seed: int, profile: str) -> Request:
    """One run of a place, as `opdbench run --dry-run` would have it."""
    if (place.task, place.arm) not in chosen.suite.places():
        raise UserError(f"suite {chosen.name} does not run {place.arm} on {place.task}", "mend the paper's file")
    where, arm = chosen.suite.tasks[place.task], chosen.suite.arms[place.arm]
    return Request(method=arm.method, task=place.task, profile=profile, seed=seed, budget=(where.budget,),
                   settings=(*where.set, *arm.set), preset=arm.preset, teacher=arm.teacher or where.teacher,
                   student=arm.student or where.student)


def _bare(task: str) -> str:
    return task.partition("@")[0]
