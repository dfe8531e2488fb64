"""From a plan to a world: loads the models of a task's domain. The heavy imports of a run happen here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opdbench import hardware
from opdbench.allocator import keep_freed_memory
from opdbench.errors import UserError
from opdbench.resolve import Plan
from opdbench.schema.spec import Execution
from opdbench.task import ControlTask, LanguageTask
from opdbench.world import World


def build(plan: Plan) -> World:
    """The task with its student and its teacher, on the execution's device and in its precision.

    Raises:
        UserError: a model folder is missing, corrupt or does not fit the task; tokenizers that disagree; a GPU that is
            asked for and not there.
    """
    _check_device(plan.spec.execution)
    if (devices := plan.spec.execution.devices) > 1:
        raise UserError(f"profile {plan.spec.execution.profile} asks for {devices} devices, and training on more than "
                        "one is not there yet", "choose a profile with one device, such as --profile gpu-80g")
    if isinstance(plan.task, LanguageTask):
        return _language(plan, plan.task)
    if isinstance(plan.task, ControlTask):
        return _control(plan, plan.task)
    raise TypeError(f"{type(plan.task).__name__} is neither a LanguageTask nor a ControlTask")


def _language(plan: Plan, task: LanguageTask) -> World:
    from opdbench.lm.model import load
    from opdbench.lm.world import LanguageWorld

    execution = plan.spec.execution
    assert plan.student is not None
    student = load(plan.student, dtype=_dtype(execution.dtype), device=execution.device)
    teacher = None
    if plan.teacher is not None:
        teacher = load(plan.teacher, dtype=_dtype(execution.teacher_dtype), device=execution.device)
    return LanguageWorld(task, student, teacher, seed=plan.spec.recipe.seed,
                         generation_batch=execution.generation_batch, teacher_batch=execution.teacher_batch)


def _control(plan: Plan, task: ControlTask) -> World:
    from opdbench.rl.load import load_policy
    from opdbench.rl.world import ControlWorld, fresh_student

    recipe, execution = plan.spec.recipe, plan.spec.execution

    def load(path: Path, reference: str) -> Any:
        activation = reference.partition("#")[2] or None
        return load_policy(path, activation=activation, trust_pickle=plan.request.trust_pickle)

    # bfloat16 is for large models: it would round observations, and a small network gains nothing from it.
    dtype = _dtype("float64" if execution.dtype == "float64" else "float32")
    student = (fresh_student(task, recipe.seed) if plan.student is None
               else load(plan.student, recipe.student.reference)).to(execution.device, dtype)
    teacher = None
    if plan.teacher is not None and recipe.teacher is not None:
        teacher = load(plan.teacher, recipe.teacher.reference).to(execution.device, dtype)
    return ControlWorld(task, student, teacher, seed=recipe.seed)


def _check_device(execution: Execution) -> None:
    import torch

    if execution.device == "cuda" and not torch.cuda.is_available():
        why = hardware.torch_cuda_problem() or "torch finds no GPU here"
        raise UserError(f"profile {execution.profile} computes on a GPU, but {why}",
                        "leave --profile out, or pass --profile cpu-2; opdbench doctor looks at this machine")


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def set_threads(execution: Execution) -> None:
    """CPU threads, memory and determinism; before any computation."""
    import torch

    if execution.device == "cpu":
        keep_freed_memory()
    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It also fills new memory with NaN, which finds reads of unset memory at the price of a pass over every tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
