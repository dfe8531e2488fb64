"""A resolved plan as text and as JSON: every value with where it came from, and what it will cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.references import Mix, Model, Route, Teacher
from opdbench.schema.spec import ModelRef
from opdbench.text import fields, table

if TYPE_CHECKING:
    from opdbench.estimate import Estimate
    from opdbench.resolve import Plan


def as_text(plan: Plan, cost: Estimate, seeds: Sequence[int], results: str) -> str:
    recipe = plan.spec.recipe
    head = fields([
        ("method", f"{recipe.method} (needs from the teacher: {plan.needs})"),
        ("task", recipe.task),
        ("teacher", _teacher(recipe.teacher, plan.teacher)),
        ("student", _model(recipe.student, plan.student)),
        ("profile", f"{plan.spec.execution.profile}: {plan.profile_reason}"),
        ("seeds", ", ".join(map(str, seeds))),
        ("record", _place(plan, results)),
    ])
    settings = table(["setting", "value", "from"], _rows(plan))
    return f"{head}\n\n{settings}\n\n{fields(_costs(cost))}\n\nnothing was started (--dry-run)"


def as_json(plan: Plan, cost: Estimate, seeds: Sequence[int], results: str) -> dict[str, Any]:
    return {"status": "planned", "seeds": list(seeds), "record": _place(plan, results),
            "command": plan.request.command(), "profile_reason": plan.profile_reason, "needs": str(plan.needs),
            "recipe": plan.spec.recipe.model_dump(mode="json"), "recipe_sha256": plan.spec.recipe.digest(),
            "execution": plan.spec.execution.model_dump(mode="json"), "origins": plan.spec.origins,
            "estimate": cost._asdict()}


def _rows(plan: Plan) -> Iterator[tuple[str, str, str]]:
    recipe = plan.spec.recipe
    sections: dict[str, dict[str, Any]] = {
        "method": recipe.params, "training": recipe.training.model_dump(), "evaluation": recipe.evaluation.model_dump(),
        "task": recipe.task_params, "execution": plan.spec.execution.model_dump()}
    for axis, limit in recipe.budget.limits().items():
        yield f"budget.{axis}", f"{limit:,}", plan.spec.origins["budget"]
    for section, values in sections.items():
        for key, value in values.items():
            yield f"{section}.{key}", str(value), plan.spec.origins.get(f"{section}.{key}", "default")


def _costs(cost: Estimate) -> Iterator[tuple[str, str]]:
    yield "parameters", f"student {cost.student_parameters:,}, teacher {cost.teacher_parameters:,}"
    if cost.steps is None or cost.tokens is None or cost.flops is None:
        yield "tokens", "unknown: the budget names seconds only"
    else:
        prompts = f", {cost.prompt_tokens:,} of prompts" if cost.prompt_tokens else ""
        yield "tokens", f"at most {cost.tokens:,} sampled in {cost.steps:,} steps{prompts}"
        yield "compute", f"at most {cost.flops:.3g} FLOPs (more for methods that train on a batch several times)"
        yield "time", ("unknown: the device is not on this machine" if cost.seconds is None else
                       f"about {cost.seconds:,.0f} s of training on this machine; evaluation comes on top")
    yield "memory", f"about {cost.memory_bytes / 2**20:,.0f} MiB at the peak"


def _teacher(ref: ModelRef | None, named: Teacher | None) -> str:
    """Of one that is made of several, every one on its own line."""
    if ref is None or not isinstance(named, Mix | Route):
        return _model(ref, named.path if isinstance(named, Model) else None)
    parts = (_teacher(*part) for part in zip(ref.parts, named.parts, strict=True))
    return "\n".join([_model(ref, None), *(f"  {part}" for part in parts)])


def _model(reference: Any, path: Path | None) -> str:
    if reference is None:
        return "none"
    return f"{reference.reference} (sha256 {reference.sha256[:12]}{f', {path}' if path else ''})"


def _place(plan: Plan, results: str) -> str:
    from opdbench.run import run_folder
    from opdbench.store import RECORD

    return str(run_folder(Path(results), plan.spec.recipe).path / RECORD)
