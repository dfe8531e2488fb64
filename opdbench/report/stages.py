"""The runs of an outer recipe, found among records: which stage a run is, and whose student it began with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opdbench.errors import UserError
from opdbench.report.arms import is_of, models_given, settings_in
from opdbench.report.entries import Entry, check_same_problems, entry_of
from opdbench.report.runs import Run, setting_of, with_outcomes
from opdbench.schema.outer import BEST, STAGE, OuterRecipe, Stage, read
from opdbench.schema.spec import ModelRef
from opdbench.settings import parse_budget

Chain = Mapping[str, Run]  # by stage, the runs of one seed


def entry(recipe: str, stage: str, task: str, runs: Sequence[Run]) -> Entry | None:
    """The runs of one stage over all seeds; None where there are none. What they began with and learnt from is each
    seed's own, so runs that differ in nothing else are repetitions of each other.

    Raises:
        UserError: no such recipe or stage, or the runs are of several versions.
    """
    _, outer = read(recipe)
    if stage not in outer.stages:
        raise UserError(f"recipe {recipe} has no stage {stage}", f"its stages are {', '.join(outer.stages)}")
    found = [with_outcomes(chain[stage]) for seed in sorted({run.seed for run in runs})
             if stage in (chain := _chain(outer, [run for run in runs if run.seed == seed]))
             and chain[stage].record.recipe.task == task]
    if not found:
        return None
    check_same_problems(found)
    settings = {_without_models(run) for run in found}
    if len(settings) > 1:
        raise UserError(f"the records of stage {stage} of recipe {recipe} are of {len(settings)} versions of the "
                        "method or its settings", "keep those of one version, and run the recipe again")
    return entry_of(setting_of(found[0].record), found)


def _chain(outer: OuterRecipe, runs: Sequence[Run]) -> Chain:
    """The stages that were run, each with the students that the ones before it left."""
    chain: dict[str, Run] = {}
    for name, stage in outer.stages.items():
        found = next((run for run in runs if _is_stage(stage, run, chain)), None)
        if found is not None:
            chain[name] = found
    return chain


def _is_stage(stage: Stage, run: Run, chain: Chain) -> bool:
    recipe = run.record.recipe
    budget, _ = parse_budget([stage.budget], {})
    return (recipe.method == stage.method and recipe.task.partition("@")[0] == stage.task
            and recipe.budget.limits() == budget.limits()
            and models_given(run) == (stage.teacher is not None, stage.student is not None)
            and _builds_on(stage.student, recipe.student, chain) and _builds_on(stage.teacher, recipe.teacher, chain)
            and is_of(stage.preset, settings_in(stage.set), run))


def _builds_on(wanted: str | None, model: ModelRef | None, chain: Chain) -> bool:
    """Whether a model is what the stages that `wanted` names left, or the best of them: their folders are in its
    reference."""
    names = STAGE.findall(wanted or "")
    found = [name in chain and model is not None and chain[name].path.name in model.reference for name in names]
    return any(found) if (wanted or "").startswith(BEST) else all(found)


def _without_models(run: Run) -> str:
    recipe = run.record.recipe
    blank = ModelRef(reference="", sha256="")
    same = recipe.model_copy(update={"student": blank, "teacher": None if recipe.teacher is None else blank})
    return setting_of(run.record.model_copy(update={"recipe": same})).digest
