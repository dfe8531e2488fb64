"""What the frontier's tests share: expected gradients over all completions, and rows that a test makes up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from opdbench.conformance.enumerable import EnumerableWorld, PrefixPolicy
from opdbench.conformance.harness import make_rows
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.schema.spec import Budget
from tests.enumerable import context, distributions, flat_gradient, generator, trajectory_weights

Objective = Callable[[Tensor, Tensor], Tensor]  # (p constant, q) [N, A] each -> [N]


def world_of(*, teacher: int = 2, echo: bool = True, scale: float = 1.0) -> EnumerableWorld:
    """`teacher=1` has the student's very weights."""
    return EnumerableWorld(PrefixPolicy(generator(1), scale=scale), PrefixPolicy(generator(teacher), scale=scale),
                           echo=echo)


def rows_of(method: Distiller, ctx: Context, rollouts: Rollouts) -> Rows:
    """Scored and prepared as the loop does."""
    ctx.begin_step()
    return make_rows(ctx, method.prepare(ctx.score(rollouts, method.asks(ctx)), ctx))


def loss_of(method: Distiller, ctx: Context, rollouts: Rollouts) -> Loss:
    return method.loss(rows_of(method, ctx, rollouts), ctx)


def unrewarded(rollouts: Rollouts) -> Rollouts:
    return replace(rollouts, reward_bt=torch.zeros_like(rollouts.reward_bt))


def expected_slope(method: Distiller, world: EnumerableWorld, **training: Any) -> Tensor:
    """The gradient of the method's loss, expected over everything that the student may write, states held fixed."""
    rollouts = unrewarded(world.completions())
    ctx = context(world, budget=Budget(steps=100), **training)
    value_n = loss_of(method, ctx, rollouts).value_n
    return flat_gradient((trajectory_weights(rollouts, world.student).detach() * value_n).sum(), world.student)


def stated_slope(objective: Objective, world: EnumerableWorld) -> Tensor:
    """Likewise of an objective that is written in probabilities."""
    rollouts = world.completions()
    teacher, student = distributions(world, rollouts)
    weight_n = trajectory_weights(rollouts, world.student).detach()
    return flat_gradient((weight_n * objective(teacher.p_na.detach(), student.p_na)).sum(), world.student)


def kl(first: Tensor, second: Tensor) -> Tensor:
    return (first * (first / second).log()).sum(-1)


def reverse(p: Tensor, q: Tensor) -> Tensor:
    return kl(q, p)


def forward(p: Tensor, q: Tensor) -> Tensor:
    return kl(p, q)
