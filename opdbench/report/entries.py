"""From the runs that a board's rules admit to its entries: who scores what, at which cost, and who ties with whom."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opdbench import stats
from opdbench.errors import UserError
from opdbench.parallel import chunks
from opdbench.report.runs import COSTS as COSTS
from opdbench.report.runs import Run, Setting, Study, by_setting, changed, study, with_outcomes
from opdbench.report.timing import Time, times
from opdbench.schema.board import Board, Rules
from opdbench.schema.spec import ModelRef, Recipe
from opdbench.stats import Estimate, Interval
from opdbench.trust import lowest

Array = NDArray[np.float64]
_TOGETHER = 64  # pairs of entries whose difference is estimated in one go


class Failure(NamedTuple):
    """A run that has no score, and why."""

    method: str
    seed: int
    status: str
    reason: str


class Gap(NamedTuple):
    """Gap recovered: its estimate, and the matrix [S, E] whose mean it is (`stats.gap_recovered`)."""

    estimate: Estimate
    value_se: Array


@dataclass(frozen=True)
class Entry:
    """One line of a board: a method in one setting."""

    setting: Setting
    changed: Mapping[str, Any]  # settings that are not the task's or the method's defaults
    study: Study | None  # None: no run completed
    scores: Mapping[tuple[str, str], Interval]  # by phase and mode
    gaps: Mapping[str, Gap]  # by mode, and "mean"; without those that cannot be measured
    costs: Mapping[str, float]  # means over the completed seeds
    facts: Mapping[str, tuple[str, ...]]  # hardware, commits and dates of the completed runs
    failures: tuple[Failure, ...]
    ranked_gap: Gap | None = None  # the one that the board ranks by; None: not ranked
    rank: int | None = None  # 1 + the number of entries that are significantly better
    tie: str = ""  # letters: entries that share one cannot be told apart
    detectable: float | None = None  # smallest difference to the best entry that was likely to be found
    underpowered: bool = False
    seed_costs: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # the same by cost and seed
    time: Time | None = None  # on a timed board

    @property
    def method(self) -> str:
        return self.setting.method

    @property
    def seeds(self) -> int:
        return len(self.study.seeds) if self.study else 0


class Selection(NamedTuple):
    """What the rules make of a folder of records."""

    entries: list[Entry]  # best first; those without a rank last
    left_out: Counter[str]  # runs of the same task by the rule that they break


def select(board: Board, runs: Iterable[Run]) -> Selection:
    """The entries of a board over one task.

    Raises:
        UserError: a method of a closed board has several settings, or the admitted runs cannot be compared.
    """
    admitted, left_out = [], Counter[str]()
    for run in runs:
        if run.record.recipe.task != board.task:
            continue
        if (broken := broken_rule(board, run)) is None:
            admitted.append(with_outcomes(run))
        else:
            left_out[broken] += 1
    groups = by_setting(admitted)
    if board.division == "closed":
        _check_one_setting(groups)
    entries = [entry_of(setting, group) for setting, group in groups.items()]
    if board.timed is not None:
        found = times(board.timed, groups)
        entries = [replace(entry, time=found[entry.setting]) for entry in entries]
    check_same_problems(admitted)
    return Selection(ranked(board, entries), left_out)


def broken_rule(board: Board, run: Run) -> str | None:
    """The first rule that a run of the board's task breaks, in words; None when it belongs on the board."""
    recipe = run.record.recipe
    parameters = {name: value for name, value in board.task_params.items() if recipe.task_params.get(name) != value}
    checks = (
        ("a method whose constants are not public",
         board.division == "closed" and bool(recipe.params.get("approximate"))),
        ("another budget", recipe.budget.limits() not in board.budgets),
        ("another teacher", not is_model(board.teacher, recipe.teacher)),
        ("another student", not is_model(board.student, recipe.student)),
        (f"another value of the task's {', '.join(parameters)}", bool(parameters)),
        ("another number of test examples", recipe.evaluation.examples != board.examples),
        (f"another setting of {recipe.method}", not _has(recipe, board.settings.get(recipe.method, {}))),
    )
    return next((rule for rule, broken in checks if broken), None)


def ranked(board: Board, entries: Sequence[Entry]) -> list[Entry]:
    """The entries with ranks and ties, by gap recovered; those with too few seeds or no gap come behind the others."""
    eligible = [replace(entry, ranked_gap=entry.gaps[board.rank_by]) for entry in entries
                if entry.seeds >= board.min_seeds and board.rank_by in entry.gaps]
    # Equal gaps keep one order: by name, then by setting.
    eligible.sort(key=lambda entry: (-round(_gap(entry).estimate.mean, 9), entry.setting))
    names = {entry.setting for entry in eligible}
    rest = sorted((entry for entry in entries if entry.setting not in names), key=lambda entry: entry.setting)
    return [*_with_ties(board, eligible), *rest]


def difference(first: Entry, second: Entry, mode: str) -> Estimate | None:
    """First minus second in gap recovered, paired over the seeds and examples that both have; None when fewer than two
    seeds are common.

    Raises:
        UserError: they were tested on different examples.
    """
    gaps, studies = (first.gaps.get(mode), second.gaps.get(mode)), (first.study, second.study)
    if gaps[0] is None or gaps[1] is None or studies[0] is None or studies[1] is None:
        return None
    return difference_of(studies[0], gaps[0].value_se, studies[1], gaps[1].value_se)


def differences(entries: Sequence[Entry]) -> dict[tuple[int, int], Estimate | None]:
    """Differences of all pairs (i, j) with i < j, by what the entries are ranked by; many are estimated in one go.

    Raises:
        UserError: two were tested on different examples.
    """
    tables = [(entry.study, _gap(entry).value_se) for entry in entries if entry.study is not None]
    pairs = {(i, j): _paired(*tables[i], *tables[j]) for i in range(len(tables)) for j in range(i + 1, len(tables))}
    found: dict[tuple[int, int], Estimate | None] = dict.fromkeys(pairs)
    alike: dict[tuple[bool, tuple[int, ...]], list[tuple[int, int]]] = {}
    for (i, j), pair_se in pairs.items():
        if pair_se is not None:
            alike.setdefault((tables[i][0].shared, pair_se.shape), []).append((i, j))
    for (shared, _), where in alike.items():
        for some in chunks(where, _TOGETHER):
            pair_kse = np.stack([pair_se for pair in some if (pair_se := pairs[pair]) is not None])
            found.update(zip(some, _means(pair_kse, shared), strict=True))
    return found


def difference_of(first: Study, first_se: Array, second: Study, second_se: Array) -> Estimate | None:
    """The mean of the differences over common seeds; None when there are fewer than two."""
    pair_se = _paired(first, first_se, second, second_se)
    return None if pair_se is None else _means(pair_se[None], first.shared)[0]


def _means(pair_kse: Array, shared: bool) -> list[Estimate]:
    # Rounded, since a difference of equal numbers must be none at all.
    return stats.each(np.round(pair_kse, 12), shared=shared)


def _paired(first: Study, first_se: Array, second: Study, second_se: Array) -> Array | None:
    if first.example_e != second.example_e:
        raise UserError("the two were not tested on the same examples", "compare runs of one version of the task")
    common = [seed for seed in first.seeds if seed in second.seeds]
    if len(common) < 2:
        return None
    if first.seeds == second.seeds:
        return first_se - second_se
    index = ([first.seeds.index(seed) for seed in common], [second.seeds.index(seed) for seed in common])
    return first_se[index[0]] - second_se[index[1]]


class Placement(NamedTuple):
    """Where an entry stands among others."""

    rank: int  # 1 + the number of entries that are significantly better
    tie: str  # letters: entries that share one cannot be told apart
    detectable: float | None  # smallest difference to the best entry that was likely to be found
    underpowered: bool


def placements(board: Rules, n: int, found: Mapping[tuple[int, int], Estimate | None]) -> list[Placement]:
    """Ranks, tie letters and power of `n` entries, best first, from the differences of all pairs (i, j) with i < j;
    the p-values are Holm's over the board."""
    adjusted = stats.holm([1.0 if estimate is None else estimate.p_value() for estimate in found.values()])
    differ = {pair for pair, p in zip(found, adjusted, strict=True) if p < board.alpha}
    ties = stats.letters(n, differ)
    placed = []
    for index in range(n):
        to_best = found.get((0, index))
        detectable = None if to_best is None else stats.detectable(to_best, board.alpha)
        unresolved = index > 0 and (0, index) not in differ
        placed.append(Placement(1 + sum(pair[1] == index for pair in differ), ties[index], detectable,
                                unresolved and (detectable is None or detectable > board.smallest_effect)))
    return placed


def _with_ties(board: Board, entries: list[Entry]) -> list[Entry]:
    return [replace(entry, **placed._asdict())
            for entry, placed in zip(entries, placements(board, len(entries), differences(entries)), strict=True)]


def _gap(entry: Entry) -> Gap:
    assert entry.ranked_gap is not None
    return entry.ranked_gap


def entry_of(setting: Setting, runs: Sequence[Run]) -> Entry:
    """The line of one setting, from its runs with their outcomes."""
    table, usable = study(runs), [run for run in runs if run.usable]
    return Entry(
        setting=setting, changed=changed(runs[0].record), study=table,
        scores={} if table is None else dict(zip(table.score_se, stats.mean_scores(
            np.stack(list(table.score_se.values())), shared=table.shared), strict=True)),
        gaps={} if table is None else gaps(table),
        costs={name: fmean(run.record.ledger[name] for run in usable) for name in COSTS if usable},
        seed_costs={name: {run.seed: run.record.ledger[name] for run in usable} for name in COSTS if usable},
        facts=_facts(usable),
        failures=tuple(Failure(run.record.recipe.method, run.seed, *_failed(run)) for run in runs if not run.usable))


def gaps(table: Study) -> dict[str, Gap]:
    """Gap recovered by mode, and their mean when every mode has one."""
    found: dict[str, Gap] = {}
    for mode in table.modes:
        phases = [table.score_se.get((phase, mode)) for phase in ("before", "teacher", "after")]
        try:
            if phases[0] is not None and phases[1] is not None and phases[2] is not None:
                found[mode] = Gap(*stats.gap_recovered(phases[0], phases[1], phases[2], shared=table.shared))
        except ValueError:
            continue  # not measurable: the teacher is not better
    if found and found.keys() == set(table.modes):
        value_se = np.mean([gap.value_se for gap in found.values()], axis=0)
        found["mean"] = Gap(stats.each(value_se[None], shared=table.shared)[0], value_se)
    return found


def _failed(run: Run) -> tuple[str, str]:
    if run.problem is not None:
        return "refused", run.problem
    return run.record.status, run.record.reason or ("it is under way, or was killed" if run.record.status == "started"
                                                    else "")


def _facts(runs: Sequence[Run]) -> dict[str, tuple[str, ...]]:
    def distinct(values: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(set(values)))

    return {
        "hardware": distinct(_hardware(run) for run in runs),
        "commit": distinct(_commit(run.record.provenance) for run in runs),
        "date": distinct((run.record.times.finished or "")[:10] for run in runs),
        "trust": (lowest(run.trust for run in runs),) if runs else (),
    }


def _hardware(run: Run) -> str:
    machine = run.record.hardware
    if run.record.execution.device == "cpu":
        return f"{machine.get('cpu')}, {machine.get('cores')} cores"
    return ", ".join(str(gpu.get("name")) for gpu in machine.get("gpus", []))


def _commit(provenance: Mapping[str, Any]) -> str:
    return f"{(provenance.get('commit') or 'unknown')[:9]}{'+' if provenance.get('dirty') else ''}"


def is_model(wanted: str | None, model: ModelRef | None) -> bool:
    if wanted is None or model is None:
        return wanted is None
    return model.reference == wanted or (len(wanted) >= 12 and model.sha256.startswith(wanted))


def _has(recipe: Recipe, wanted: Mapping[str, Any]) -> bool:
    if not wanted:
        return True
    values = {**recipe.evaluation.model_dump(), **recipe.training.model_dump(), **recipe.params}
    return all(name in values and values[name] == value for name, value in wanted.items())


def _check_one_setting(groups: Iterable[Setting]) -> None:
    counts = Counter(setting.method for setting in groups)
    several = [method for method, count in counts.items() if count > 1]
    if several:
        raise UserError(
            f"a closed board takes one setting for each method, and there are records of {counts[several[0]]} settings "
            f"of {several[0]}",
            f"say which counts, with `settings: {{{several[0]}: {{lr: ...}}}}` in board.yaml, or make the board open")


def check_same_problems(runs: Sequence[Run]) -> None:
    versions = {run.record.recipe.task_sha256 for run in runs if run.usable}
    if len(versions) > 1:
        raise UserError(f"the records of {runs[0].record.recipe.task} were made with {len(versions)} versions of its "
                        "problems", "run the older ones again")
