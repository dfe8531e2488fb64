"""Two methods, or two groups of records, on one task: the paired difference, and what it could have shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opdbench import stats
from opdbench.errors import UserError, unknown
from opdbench.report.entries import difference_of, gaps
from opdbench.report.runs import Run, Setting, Study, by_setting, read_records, study, with_outcomes
from opdbench.stats import Estimate, Interval
from opdbench.text import fields, table


class Side(NamedTuple):
    """One of the two: the setting that its runs share, and their scores."""

    name: str
    setting: Setting
    study: Study


class Difference(NamedTuple):
    """First minus second in one measure; `scores` are theirs alone."""

    measure: str  # "after greedy", "gap recovered, sampled", ...
    scores: tuple[Interval, Interval]
    difference: Interval
    p: float  # two-sided, of this comparison alone
    detectable: float


def side(name: str, task: str | None, results: Path) -> Side:
    """The completed runs that a name means: a folder of records, `METHOD`, or `METHOD:SETTING` by its first digits.

    Raises:
        UserError: nothing is meant, no run of it completed, or it has several settings or tasks (names them).
    """
    runs = read_records(Path(name))[0] if Path(name).is_dir() else _of_method(name, read_records(results)[0])
    groups = {setting: group for setting, group in by_setting(runs).items() if task in (None, *_ids(setting))}
    if not groups:
        where = f" on {task}" if task else ""
        raise UserError(f"there are no records of {name}{where}", "name the folder of records with --results DIR")
    if len({setting.task for setting in groups}) > 1:
        tasks = ", ".join(sorted({setting.task for setting in groups}))
        raise UserError(f"there are records of {name} on {tasks}", "choose one with --task")
    if len(groups) > 1:
        raise UserError(f"there are records of {name} in {len(groups)} settings",
                        "choose one: " + ", ".join(f"{each.method}:{each.digest}" for each in groups))
    setting, group = next(iter(groups.items()))
    found = study([with_outcomes(run) for run in group])
    if found is None:
        raise UserError(f"no run of {name} is complete and agrees with its raw outcomes")
    return Side(name, setting, found)


def compare(first: Side, second: Side) -> list[Difference]:
    """Every measure that both have, paired over common seeds and examples.

    Raises:
        UserError: another task, other examples, or fewer than two common seeds.
    """
    if first.setting.task != second.setting.task:
        raise UserError(f"{first.name} is on {first.setting.task} and {second.name} on {second.setting.task}",
                        "compare on one task")
    return list(_differences(first.study, second.study))


def as_json(first: Side, second: Side, found: Sequence[Difference]) -> dict[str, Any]:
    return {**{key: {"name": one.name, **one.setting._asdict(), "seeds": one.study.seeds}
               for key, one in (("first", first), ("second", second))},
            "common_seeds": _common(first.study, second.study), "examples": len(first.study.example_e),
            "differences": [{"measure": each.measure, "first": each.scores[0]._asdict(),
                             "second": each.scores[1]._asdict(), "difference": each.difference._asdict(),
                             "p": each.p, "detectable": each.detectable} for each in found]}


def as_text(first: Side, second: Side, found: Sequence[Difference]) -> str:
    examples = f"{len(first.study.example_e)} " + ("examples" if first.study.shared else "episodes a seed")
    facts = fields([("task", first.setting.task), ("paired over", f"{len(_common(first.study, second.study))} seeds, "
                                                                 f"{examples}")])
    rows = [[each.measure, *(f"{score.mean:.4g}" for score in each.scores), _with_bounds(each.difference),
             f"{each.p:.2g}", f"{each.detectable:.2g}", _verdict(each, first.name, second.name)] for each in found]
    header = ["", first.name, second.name, "difference (95% interval)", "p", "detectable", "verdict"]
    return f"{facts}\n\n{table(header, rows)}\n\ndetectable: the true difference that had an 80% chance to be found"


def _differences(first: Study, second: Study) -> Iterator[Difference]:
    for mode in first.modes:
        if mode in second.modes:
            yield _difference(f"after {mode}", first, first.score_se["after", mode], second,
                              second.score_se["after", mode])
    gaps_of_first, gaps_of_second = gaps(first), gaps(second)
    for mode, gap in gaps_of_first.items():
        if mode in gaps_of_second:
            yield _difference(f"gap recovered, {mode}", first, gap.value_se, second, gaps_of_second[mode].value_se)


def _difference(measure: str, first: Study, first_se: Any, second: Study, second_se: Any) -> Difference:
    estimate: Estimate | None = difference_of(first, first_se, second, second_se)
    if estimate is None:
        raise UserError("the two have fewer than two seeds in common", "run both with --seeds 0:5")
    alone = tuple(stats.mean_score(score_se, shared=first.shared) for score_se in (first_se, second_se))
    return Difference(measure, (alone[0], alone[1]), estimate.interval(), estimate.p_value(),
                      stats.detectable(estimate))


def _verdict(found: Difference, first: str, second: str) -> str:
    if found.p >= 0.05:
        return "cannot be told apart"
    return f"{first if found.difference.mean > 0 else second} is higher"


def _with_bounds(found: Interval) -> str:
    return f"{found.mean:+.4g} ({found.low:+.4g} to {found.high:+.4g})"


def _common(first: Study, second: Study) -> list[int]:
    return [seed for seed in first.seeds if seed in second.seeds]


def _of_method(name: str, runs: Sequence[Run]) -> list[Run]:
    method, _, digits = name.partition(":")
    methods = {run.record.recipe.method for run in runs}
    if method not in methods:
        raise unknown("method in these records:", method, methods)
    return [run for group, members in by_setting(runs).items() for run in members
            if group.method == method and group.digest.startswith(digits)]


def _ids(setting: Setting) -> tuple[str, str]:
    """A task's id with and without its version."""
    return setting.task, setting.task.partition("@")[0]
