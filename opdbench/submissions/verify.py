"""What CI asks of a submission; every answer is computed from its files, and none of them is executed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from opdbench import registry
from opdbench.errors import UserError
from opdbench.regrade import Grader, Regraded
from opdbench.report.entries import Entry, select
from opdbench.report.runs import Run, read_records, read_run, setting_of
from opdbench.schema.board import Board
from opdbench.source import SourceError
from opdbench.store import run_path
from opdbench.submissions import base, rules
from opdbench.submissions.bundle import Bundle
from opdbench.submissions.method import code_sha256
from opdbench.text import table
from opdbench.untrusted import inert

ENDED = ("completed", "diverged", "oom", "error")


class Check(NamedTuple):
    name: str
    passed: bool
    message: str


class Verdict(NamedTuple):
    """What was checked, and where the submission would stand."""

    checks: list[Check]
    comparison: str

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)


@dataclass(frozen=True)
class Place:
    """What a submission is compared with.

    Attributes:
        results, leaderboards: reference records and the boards' rules.
        base: branch or commit that it wants to join; None leaves that out.
        repository: a checkout that knows `base`.
        grader: regrades its runs.
    """

    results: Path
    leaderboards: Path
    grader: Grader
    base: str | None = None
    repository: Path = Path()


def verify(bundle: Bundle, place: Place) -> Verdict:
    """Check a submission whose files are known to be what its manifest says."""
    files = Check("files", True, f"{len(bundle.manifest.files)} files, each what the manifest says")
    try:
        runs = [_read(bundle, path) for path in bundle.records]
        if not runs:
            raise UserError("there is no record in it")
        _check_whole(bundle, runs)
    except UserError as error:
        return Verdict([files, Check("records", False, error.problem)], "")
    graded = [place.grader.regrade(run) for run in runs]
    runs = [replace(one.run, trust=one.level) for one in graded]
    reference = _reference(place.results, runs)
    checks = [files, Check("records", True, _count(runs)), _method(bundle), _grades(graded),
              _check("budget", (rules.budget(run.record) for run in runs if run.record.status == "completed"),
                     "spent, and not exceeded"),
              _division(bundle, runs, place.leaderboards),
              _check("references", [rules.models_are_named(runs), rules.references_agree(runs, reference)],
                     "teacher and starting student are what they are called, and score as for others"),
              _base(bundle, place)]
    comparison = _comparison(bundle, runs, reference, place.leaderboards)
    return Verdict([*checks, *([comparison] if isinstance(comparison, Check) else [])],
                   "" if isinstance(comparison, Check) else comparison)


def _read(bundle: Bundle, path: Path) -> Run:
    run = read_run(path)
    if path != bundle.root / "results" / run_path(run.record.recipe, run.record.id) / path.name:
        raise UserError(f"{path.parent.name} is not where a run of its task, method, seed and recipe belongs")
    if run.problem is not None:
        raise UserError(f"{path.parent.name}: {run.problem}")
    return run


def _check_whole(bundle: Bundle, runs: Sequence[Run]) -> None:
    """The runs are those of one method, each once, ended, by committed code, with all their outcomes."""
    manifest = bundle.manifest
    stated = set()
    for run in runs:
        record, where = run.record, run.path.name
        stated |= {str(run.path.relative_to(bundle.root) / file.file) for file in record.outcomes.values()}
        if (record.recipe.method, record.recipe.method_sha256) != (manifest.method, manifest.method_sha256):
            raise UserError(f"{where} is a run of another method, or of other code, than the manifest names")
        if record.status not in ENDED:
            raise UserError(f"{where} is {record.status}: a submission holds runs that have ended")
        if record.provenance.get("dirty"):
            raise UserError(f"{where} was made with changes to opdbench itself that no commit holds")
    if len({run.record.recipe_sha256 for run in runs}) < len(runs):
        raise UserError("two of its records are of one run")
    there = {file.path for file in manifest.files if file.path.endswith(".gz")}
    if there != stated:
        raise UserError(f"{min(there ^ stated)} is there without a record that names it, or named and not there")


def _count(runs: Sequence[Run]) -> str:
    failed = sum(run.record.status != "completed" for run in runs)
    return f"{len(runs)} runs on {', '.join(rules.by_task(runs))}" + (f", {failed} of them failed" if failed else "")


def _method(bundle: Bundle) -> Check:
    manifest = bundle.manifest
    try:
        found = code_sha256(bundle.method_file, manifest.method)
    except SourceError as error:
        return Check("method", False, str(error).replace(f"{bundle.root}/", ""))
    if found != manifest.method_sha256:
        return Check("method", False, f"the code of {bundle.method_file.name} is not what the runs were made with (one "
                                      "file must hold it all, or build on methods of opdbench)")
    if manifest.method in registry.names("method"):
        installed = registry.describe("method", manifest.method).path
        if installed is None or code_sha256(installed, manifest.method) != found:
            return Check("method", False, f"there is another method called {manifest.method}")
    return Check("method", True, f"{bundle.method_file.name} is the code of all runs")


def _grades(graded: Sequence[Regraded]) -> Check:
    problems = [f"{one.run.path.name}: {one.problem}" for one in graded if one.wrong]
    unconfirmed = {one.problem for one in graded if one.problem and not one.wrong}
    texts = sum(one.graded for one in graded)
    remarks = [f"{texts:,} texts graded again, all as recorded" if texts else "", *sorted(unconfirmed)]
    return _check("grades", problems, "; ".join(filter(None, remarks)))


def _division(bundle: Bundle, runs: Sequence[Run], leaderboards: Path) -> Check:
    if bundle.manifest.division == "open":
        return Check("division", True, "open")
    return _check("division", [rules.closed(runs, leaderboards)], "closed: rules and seeds are kept")


def _base(bundle: Bundle, place: Place) -> Check:
    if place.base is None:
        return Check("base", True, "not compared with a branch (--base)")
    return _check("base", [base.changes(bundle, place.base, place.repository)], f"only adds to {place.base}")


def _check(name: str, problems: Iterator[str | None] | Sequence[str | None], otherwise: str) -> Check:
    first = next(filter(None, problems), None)
    return Check(name, first is None, first or otherwise)


def _reference(results: Path, runs: Sequence[Run]) -> list[Run]:
    """Records of the same tasks that are not the submission's own."""
    if not results.is_dir():
        return []
    own, tasks = {run.record.recipe_sha256 for run in runs}, set(rules.by_task(runs))
    return [run for run in read_records(results)[0]
            if run.record.recipe.task in tasks and run.record.recipe_sha256 not in own]


def _comparison(bundle: Bundle, runs: Sequence[Run], reference: Sequence[Run], leaderboards: Path) -> str | Check:
    """A board for each task, with the submission's runs among the others'."""
    parts = []
    for task, of_task in rules.by_task(runs).items():
        try:
            board = _board(bundle, of_task, leaderboards)
            entries = select(board, [*reference, *of_task]).entries
        except UserError as error:
            return Check("comparison", False, error.problem)
        parts.append(f"{task}, {board.division} division\n{_table(entries, of_task)}")
    return "\n\n".join(parts)


def _board(bundle: Bundle, runs: Sequence[Run], leaderboards: Path) -> Board:
    try:
        return rules.board_for(leaderboards, runs, bundle.manifest.division)
    except UserError:
        recipe = runs[0].record.recipe
        return Board(title="comparison", task=recipe.task, division="open", budget=recipe.budget.limits(),
                     examples=recipe.evaluation.examples)


def _table(entries: Sequence[Entry], submitted: Sequence[Run]) -> str:
    own = {setting_of(run.record) for run in submitted}
    rows = [["-" if entry.rank is None else str(entry.rank), entry.tie,
             f"{entry.method}{' (submitted)' if entry.setting in own else ''}",
             ", ".join(f"{name}={value}" for name, value in entry.changed.items()), str(entry.seeds), _gap(entry),
             entry.facts["trust"][0] if entry.facts["trust"] else "", str(len(entry.failures) or "")]
            for entry in entries]
    return inert(table(["rank", "tie", "method", "setting", "seeds", "gap recovered", "trust", "failed"], rows))


def _gap(entry: Entry) -> str:
    gap = entry.ranked_gap or entry.gaps.get("mean")
    if gap is None:
        return "-"
    found = gap.estimate.interval()
    return f"{100 * found.mean:.1f}% ({100 * found.low:.1f} to {100 * found.high:.1f})"
