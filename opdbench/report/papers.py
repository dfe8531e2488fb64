"""A paper's tables with our runs beside them, cell by cell, and the verdict on each.

At the paper's scale a cell is judged by its value: the reported one lies in our 95% interval (reproduced, or within
noise when that interval is too wide to have told), or outside (not reproduced). At tiny scale values mean nothing, so a
cell is judged by its difference to the table's reference cell: ours, paired over seeds and examples, has the reported
sign (reproduced), cannot be told from none (within noise), or has the other sign (not reproduced).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from opdbench import stats
from opdbench.report.claims import Finding, judge
from opdbench.report.entries import Entry, difference
from opdbench.report.evidence import Evidence
from opdbench.schema.paper import Ours, Paper, Place, Row, Scale, Table
from opdbench.stats import Estimate, Interval

Verdict = Literal["reproduced", "within noise", "not reproduced", "reference", "not run"]
ALPHA = 0.05


class Cell(NamedTuple):
    """One published number, and what our records say to it."""

    table: str
    row: str
    column: str
    reported: float
    std: float | None
    ci95: tuple[float, float] | None
    verified: bool
    digitised: bool
    verdict: Verdict
    why: str  # why it was not run, or what the verdict is about
    scale: Scale | None = None
    ours: Interval | None = None  # in the table's unit at the paper's scale; gap recovered, in percent, at tiny scale
    runs: str = ""  # "ARM on TASK, suite SUITE"
    seeds: int = 0


class Reproduction(NamedTuple):
    """A paper with the cells of every table, and its claims judged."""

    paper: Paper
    cells: Mapping[str, Mapping[tuple[str, str], Cell]]  # by table, then by row and column
    claims: Sequence[Finding]

    def count(self, verdict: Verdict) -> int:
        return sum(cell.verdict == verdict for table in self.cells.values() for cell in table.values())


def reproduce(paper: Paper, evidence: Evidence) -> Reproduction:
    """Every cell and claim of a paper against the records."""
    cells = {table.id: {(row.method, column): _cell(paper, table, row, column, evidence)
                        for row in table.rows for column in table.columns if column in row.values}
             for table in paper.tables}
    return Reproduction(paper, cells, [judge(claim, evidence) for claim in paper.claims])


def _cell(paper: Paper, table: Table, row: Row, column: str, evidence: Evidence) -> Cell:
    cell = Cell(table.id, row.method, column, row.values[column], row.std.get(column), row.ci95.get(column),
                table.is_verified(row), bool(table.precision), "not run", paper.not_run)
    place = Place(row=row.method, column=column)
    # The paper's scale says more where there are runs of both.
    sources = sorted((ours for ours in paper.ours if ours.table == table.id), key=lambda ours: ours.scale == "tiny")
    for ours in sources:
        arm = ours.arm(place)
        if arm is None:
            continue
        entry = evidence.entry(ours.suite, ours.task, arm)
        if entry is None:
            cell = cell._replace(scale=ours.scale, runs=_runs(ours, arm), why=f"no records of {_runs(ours, arm)}")
            continue
        cell = cell._replace(scale=ours.scale, runs=_runs(ours, arm), seeds=entry.seeds)
        return _at_paper_scale(cell, ours, entry) if ours.scale == "paper" else _at_tiny_scale(
            cell, ours, table, entry, evidence)
    return cell


def _runs(ours: Ours, arm: str) -> str:
    return f"{arm} on {ours.task}, suite {ours.suite}"


def _at_paper_scale(cell: Cell, ours: Ours, entry: Entry) -> Cell:
    found = entry.scores.get(("after", ours.mode))
    if found is None:
        return cell._replace(why=f"its runs have no {ours.mode} score")
    assert ours.tolerance is not None
    interval = Interval(ours.factor * found.mean, ours.factor * found.low, ours.factor * found.high, found.kind)
    if not interval.low <= cell.reported <= interval.high:
        verdict: Verdict = "not reproduced"
    else:
        verdict = "reproduced" if (interval.high - interval.low) / 2 <= ours.tolerance else "within noise"
    return cell._replace(ours=interval, verdict=verdict, why="")


def _at_tiny_scale(cell: Cell, ours: Ours, table: Table, entry: Entry, evidence: Evidence) -> Cell:
    gap = entry.gaps.get("mean")
    if gap is None:
        return cell._replace(why="the gap between teacher and student cannot be measured")
    cell = cell._replace(ours=gap.estimate.scaled(100).interval())
    assert ours.reference is not None
    if (cell.row, cell.column) == (ours.reference.row, ours.reference.column):
        return cell._replace(verdict="reference", why="the other cells of ours are compared with this one")
    arm, value = ours.arm(ours.reference), table.value(ours.reference.row, ours.reference.column)
    base = None if arm is None else evidence.entry(ours.suite, ours.task, arm)
    estimate = None if base is None else difference(entry, base, "mean")
    if estimate is None or value is None or table.higher_is_better is None:
        return cell._replace(why=f"no records to compare it with: {arm} on {ours.task}")
    reported = (cell.reported - value) * (1 if table.higher_is_better else -1)
    return cell._replace(verdict=_by_sign(reported, estimate), why=_difference_in_words(estimate))


def _by_sign(reported: float, ours: Estimate) -> Verdict:
    if ours.p_value() >= ALPHA:
        return "within noise"
    return "reproduced" if reported * ours.mean > 0 else "not reproduced"


def _difference_in_words(estimate: Estimate) -> str:
    found = stats.Estimate(*estimate).scaled(100).interval()
    return f"{found.mean:+.1f} ({found.low:+.1f} to {found.high:+.1f}) against the reference"
