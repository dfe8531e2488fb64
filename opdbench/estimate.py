"""What a plan will cost, before anything is started: bounds from sizes, not promises.

Tokens are an upper bound (every trajectory as long as the horizon). FLOPs follow from them and the parameter counts,
which are read from the headers of the weight files. Time is FLOPs at the speed of a matrix product measured now, and so
a lower bound: small models are bound by dispatch, environments and tokenizers cost extra.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from opdbench.distiller import Needs
from opdbench.resolve import Plan
from opdbench.schema.spec import Execution
from opdbench.task import ControlTask

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2}


class Estimate(NamedTuple):
    """None where a budget does not say (seconds only)."""

    steps: int | None
    tokens: int | None  # upper bound on what is sampled, by the student or the teacher as the method has it
    flops: float | None
    memory_bytes: int  # weights, gradients, optimizer state and one chunk of logits
    seconds: float | None  # lower bound
    student_parameters: int
    teacher_parameters: int


def estimate(plan: Plan) -> Estimate:
    """Bounds on the cost of training; evaluation comes on top."""
    training, execution = plan.spec.recipe.training, plan.spec.execution
    student = _student_parameters(plan)
    teacher = parameters(plan.teacher) if plan.teacher is not None else 0
    per_step = training.batch * (training.horizon or 1)
    steps = _steps(plan, per_step)
    tokens = None if steps is None else steps * per_step
    scored = plan.needs not in (Needs.NOTHING, Needs.TEXT)
    flops = None if tokens is None else tokens * (2.0 * student + 6.0 * student + 2.0 * teacher * scored)
    seconds = None if flops is None else flops / _flops_per_second(execution)
    return Estimate(steps, tokens, flops, _memory(execution, student, teacher, _vocabulary(plan)), seconds, student,
                    teacher)


def parameters(path: Path) -> int:
    """Number of parameters in a model's safetensors files, from their headers."""
    from safetensors import safe_open

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    total = 0
    for file in files:
        with safe_open(file, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 - not a dict
                size = 1
                for extent in weights.get_slice(name).get_shape():
                    size *= extent
                total += size
    return total


def _student_parameters(plan: Plan) -> int:
    if plan.student is not None:
        return parameters(plan.student)
    assert isinstance(plan.task, ControlTask)
    from opdbench.rl.world import fresh_student

    return fresh_student(plan.task, plan.spec.recipe.seed).n_parameters()


def _steps(plan: Plan, per_step: int) -> int | None:
    """Fewest steps that some limit allows; token limits are reached with at most `per_step` tokens a step."""
    budget = plan.spec.recipe.budget
    limits = [] if budget.steps is None else [budget.steps]
    limits += [-(-limit // per_step) for limit in (budget.student_tokens, budget.teacher_tokens) if limit is not None]
    return min(limits) if limits else None


def _vocabulary(plan: Plan) -> int:
    """Size of the action space, as far as the configuration says it."""
    import json

    for path in (plan.student, plan.teacher):
        for name, key in (("config.json", "vocab_size"), ("policy.json", "n_actions")):
            if path is not None and (path / name).is_file():
                return int(json.loads((path / name).read_text()).get(key, 0))
    return 0


def _memory(execution: Execution, student: int, teacher: int, actions: int) -> int:
    width = _BYTES[execution.dtype]
    weights = student * (width + width + 2 * width) + teacher * _BYTES[execution.teacher_dtype]
    # Logits of student and teacher, their log-probabilities and the gradient, in float32, for one chunk of rows.
    return weights + 5 * 4 * execution.row_chunk * actions


def _flops_per_second(execution: Execution) -> float:
    """Speed of one matrix product on the execution's device, in its precision, measured for about 0.1 s."""
    import torch

    size = 256 if execution.device == "cpu" else 4096
    a = torch.ones(size, size, dtype=getattr(torch, execution.dtype), device=execution.device)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.1:
        (a @ a)[0, 0].item()
        count += 1
    return count * 2 * size**3 / (time.perf_counter() - began)
