"""The optimizer: float32 masters of bfloat16 weights, and learning-rate schedules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from opdbench.optimizer import Optimizer, learning_rate
from opdbench.schema.spec import Training


def train(parameter: nn.Parameter, steps: int) -> Optimizer:
    optimizer = Optimizer([parameter], Training(lr=1e-5, grad_clip=None))
    for step in range(steps):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step(step, 0.0)
    return optimizer


def test_bfloat16_weights_move_as_float32_weights_do() -> None:
    """300 steps of 1e-5 move a weight of 1 by 0.003, each of them by less than bfloat16 can express."""
    exact, rounded = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    train(exact, 300)
    train(rounded, 300)
    assert exact[0].item() == pytest.approx(0.997, abs=1e-4)
    assert torch.equal(rounded, exact.bfloat16()) and rounded[0] != 1


def test_masters_are_part_of_the_state() -> None:
    whole = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    train(whole, 300)
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    state = train(half, 150).state_dict()
    resumed = nn.Parameter(half.detach().clone())
    optimizer = Optimizer([resumed], Training(lr=1e-5, grad_clip=None))
    optimizer.load_state_dict(state)
    for step in range(150, 300):
        resumed.grad = torch.ones_like(resumed)
        optimizer.step(step, 0.0)
    assert torch.equal(resumed, whole)


def test_clip_returns_the_norm_that_was_there() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    optimizer = Optimizer([parameter], Training(grad_clip=1.0))
    parameter.grad = torch.full((4,), 3.0)
    assert optimizer.clip() == pytest.approx(6.0)
    assert parameter.grad.norm().item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(("schedule", "at_half", "at_end"),
                         [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)])
def test_schedules_end_where_they_say(schedule: str, at_half: float, at_end: float) -> None:
    training = Training(lr=0.1, schedule=schedule, warmup_steps=10)  # type: ignore[arg-type]
    assert learning_rate(training, 0, 0.0) == pytest.approx(0.01)
    assert learning_rate(training, 100, 0.5) == pytest.approx(0.1 * at_half)
    assert learning_rate(training, 100, 1.0) == pytest.approx(0.1 * at_end)
