"""The runs of a suite, found among records: which arm a run belongs to, and which setting the suite's grid chose."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from opdbench.errors import UserError
from opdbench.references import as_new
from opdbench.report.entries import Entry, check_same_problems, entry_of, is_model
from opdbench.report.runs import Run, by_setting, changed, with_outcomes
from opdbench.schema.suite import Suite, read
from opdbench.settings import parse_budget

CHOICES = "suites"  # the folder below a results folder where suites keep what their grids chose


class Chosen(NamedTuple):
    """A suite and, by (task, arm), the value that its grid chose; None for a suite without a grid."""

    name: str
    suite: Suite
    values: Mapping[tuple[str, str], float] | None

    def has(self, task: str, arm: str) -> bool:
        return self.values is None or (task, arm) in self.values

    def settings(self, task: str, arm: str) -> dict[str, Any]:
        """Every setting that a run of the arm was given, by its bare name."""
        where, method = self.suite.tasks[task], self.suite.arms[arm]
        found = settings_in((*where.set, *method.set))
        if self.suite.tune is not None and self.values is not None:
            found[self.suite.tune.key.rpartition(".")[2]] = self.values[task, arm]
        return found


def settings_in(texts: Iterable[str]) -> dict[str, Any]:
    """KEY=VALUE settings by their bare names; a later one stands."""
    pairs = dict(text.split("=", 1) for text in texts)
    return {key.rpartition(".")[2]: yaml.safe_load(text) for key, text in pairs.items()}


class Members(NamedTuple):
    """The entries of a task by arm, and how many of its other runs broke which rule."""

    entries: dict[str, Entry]
    left_out: Counter[str]


def chosen(name: str, results: Path) -> Chosen:
    """A suite with the choices of its grid in `results/suites/NAME.json`; none were made where there is no such file.

    Raises:
        UserError: no such suite, or choices that are not what the suite's rule makes of their scores.
    """
    name, suite = read(name)
    if suite.tune is None:
        return Chosen(name, suite, None)
    path = results / CHOICES / f"{name}.json"
    if not path.exists():
        return Chosen(name, suite, {})
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = {_place(key): (float(entry["value"]), {value: None if score is None else float(score)
                                                       for value, score in entry["scores"].items()})
                 for key, entry in content["choices"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise UserError(f"{path} does not hold a suite's choices", f"opdbench run suite:{name}") from None
    for place, (value, _) in found.items():
        if value != suite.tune.best([found[other][1] for other in suite.tuned_with(*place) if other in found]):
            raise UserError(f"{path}: {value:g} is not what the grid of suite {name} chooses for {'/'.join(place)}",
                            f"opdbench run suite:{name}")
    return Chosen(name, suite, {place: value for place, (value, _) in found.items()})


def members(chosen: Chosen, task: str, runs: Iterable[Run], teacher: str | None, student: str | None) -> Members:
    """The entries of one task, given as name@version, by arm; an arm without runs has none.

    Raises:
        UserError: an arm's runs are of several settings or versions, or the runs cannot be compared.
    """
    groups: dict[str, list[Run]] = {}
    left_out: Counter[str] = Counter()
    for run in runs:
        if run.record.recipe.task != task:
            continue
        arm, broken = _place_of(chosen, task, run, teacher, student)
        if arm is None:
            left_out[broken] += 1
        else:
            groups.setdefault(arm, []).append(with_outcomes(run))
    check_same_problems([run for group in groups.values() for run in group])
    return Members({arm: _entry(arm, group) for arm, group in sorted(groups.items())}, left_out)


def _place_of(chosen: Chosen, task: str, run: Run, teacher: str | None, student: str | None) -> tuple[str | None, str]:
    """The arm that a run belongs to; or None, and the first rule that it breaks, in words."""
    recipe, name = run.record.recipe, task.partition("@")[0]
    budget, _ = parse_budget([chosen.suite.tasks[name].budget], {})
    if recipe.budget.limits() != budget.limits():
        return None, "another budget"
    if not is_model(student, recipe.student):
        return None, "another student"
    arms = [arm for task_name, arm in chosen.suite.places() if task_name == name
            and chosen.suite.arms[arm].method == recipe.method]
    if not arms:
        return None, f"a method that is not in suite {chosen.name}"
    if all(chosen.suite.arms[arm].teacher is None for arm in arms) and not (
            is_model(teacher, recipe.teacher) or recipe.teacher is None):
        return None, "another teacher"
    for arm in arms:
        if (chosen.has(name, arm) and _models_of(chosen.suite, name, arm) == models_given(run)
                and _is_student(chosen.suite.arms[arm].student, run)
                and is_of(chosen.suite.arms[arm].preset, chosen.settings(name, arm), run)):
            return arm, ""
    return None, f"a setting that the grid of suite {chosen.name} did not choose"


def _models_of(suite: Suite, task: str, arm: str) -> tuple[bool, bool]:
    """Whether a run of the arm is given a teacher and a student, in place of the task's own."""
    where = suite.tasks[task]
    method = suite.arms[arm]
    return (method.teacher or where.teacher) is not None, (method.student or where.student) is not None


def _is_student(wanted: str | None, run: Run) -> bool:
    """Whether a run began with the student that an arm names, if it names one."""
    return is_model(as_new(wanted), run.record.recipe.student)


def models_given(run: Run) -> tuple[bool, bool]:
    """Whether a run was given a teacher and a student, in place of the task's own."""
    origins = run.record.origins
    return origins.get("teacher") == "user", origins.get("student") == "user"


def is_of(preset: str | None, settings: Mapping[str, Any], run: Run) -> bool:
    """Whether a run has these settings and this preset, and was asked for no others."""
    recipe, origins = run.record.recipe, run.record.origins
    presets = {origin for origin in origins.values() if origin.startswith("preset ")}
    by_preset = {key.rpartition(".")[2] for key, origin in origins.items() if origin in presets}
    values = {**run.record.execution.model_dump(), **recipe.task_params, **recipe.evaluation.model_dump(),
              **recipe.training.model_dump(), **recipe.params}
    return (presets == ({f"preset {preset}"} if preset else set())
            and changed(run.record).keys() - by_preset <= settings.keys()
            and all(name in values and values[name] == value for name, value in settings.items()))


def _entry(arm: str, runs: Sequence[Run]) -> Entry:
    groups = by_setting(runs)
    if len(groups) > 1:
        raise UserError(f"the records of {arm} on {runs[0].record.recipe.task} are of {len(groups)} versions of the "
                        "method or its settings", "keep those of one version, and run the suite again")
    setting, group = next(iter(groups.items()))
    return entry_of(setting, group)


def _place(key: str) -> tuple[str, str]:
    task, _, arm = key.partition("/")
    return task, arm
