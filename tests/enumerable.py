"""Exact expectations on the conformance suite's enumerable language: what an estimator must average to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opdbench.conformance.enumerable import EnumerableWorld, PrefixPolicy, trajectory_logp
from opdbench.conformance.harness import ALL, make_rows
from opdbench.context import Context
from opdbench.distiller import Distiller
from opdbench.distributions import Categorical
from opdbench.ledger import Ledger
from opdbench.loop import Trainer
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts
from opdbench.schema.spec import Budget, Execution, Training
from opdbench.store import pack, unpack
from opdbench.world import World


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_logits(*shape: int, seed: int = 0, scale: float = 1.5) -> Tensor:
    return scale * torch.empty(shape, dtype=torch.float64).normal_(generator=generator(seed))


def near(first: Tensor | float, second: Tensor | float, tolerance: float = 1e-12) -> bool:
    """Whether no entries differ by `tolerance` or more."""
    gap = torch.as_tensor(first, dtype=torch.float64) - torch.as_tensor(second, dtype=torch.float64)
    return bool(gap.abs().max() < tolerance)


def leaf(*shape: int, seed: int = 0) -> Tensor:
    """Random logits that gradients flow to."""
    return random_logits(*shape, seed=seed).requires_grad_()


def small_language(*, echo: bool = False, tabular: bool = False, seed: int = 0) -> EnumerableWorld:
    """A student and a teacher that disagree, over three tokens and three steps."""
    student = PrefixPolicy(generator(1), scale=1.0, tabular=tabular)
    teacher = PrefixPolicy(generator(2), scale=1.0, tabular=tabular)
    return EnumerableWorld(student, teacher, echo=echo, seed=seed)


def context(world: World, *, execution: Execution | None = None, seed: int = 0, budget: Budget | None = None,
            **training: Any) -> Context:
    execution = execution or Execution(dtype="float64", teacher_dtype="float64", micro_batch=ALL, row_chunk=ALL)
    settings = Training(**{"lr": 0.05, "batch": 8, "horizon": 3, **training})
    return Context(world, settings, budget or Budget(steps=ALL), execution, Ledger(), seed)


def make(cls: type[Distiller], **params: Any) -> Distiller:
    return cls(cls.Params(**params))


def expected_loss(method: Distiller, ctx: Context, rollouts: Rollouts, actor: Policy) -> Tensor:
    """E over trajectories of `actor` of the sum over steps of the method's loss; `rollouts` are all trajectories.

    The visited states are held fixed, as every method here holds them: no gradient flows through `actor`'s weights.
    """
    value_n = method.loss(make_rows(ctx, prepared(method, ctx, rollouts)), ctx).value_n
    return (trajectory_weights(rollouts, actor).detach() * value_n).sum()


def prepared(method: Distiller, ctx: Context, rollouts: Rollouts) -> Rollouts:
    """Scored by the teacher and prepared by the method, as the loop does."""
    return method.prepare(ctx.score(rollouts, method.requires()), ctx)


def trajectory_weights(rollouts: Rollouts, actor: Policy) -> Tensor:
    """The probability [N] of the trajectory that each row is in, prompts being equally likely."""
    n_prompts = len(rollouts.columns["example"].unique())
    return (trajectory_logp(actor, rollouts).exp() / n_prompts).repeat_interleave(rollouts.mask_bt.sum(1))


def flat_gradient(total: Tensor, policy: Policy, **keywords: Any) -> Tensor:
    """The gradient of a scalar in all of a policy's weights, as one vector."""
    found = torch.autograd.grad(total, list(policy.parameters()), allow_unused=True, **keywords)
    return torch.cat([torch.zeros_like(parameter).flatten() if grad is None else grad.flatten()
                      for parameter, grad in zip(policy.parameters(), found, strict=True)])


def distributions(world: EnumerableWorld, rollouts: Rollouts) -> tuple[Categorical, Categorical]:
    """(teacher, student) in every row, both differentiable."""
    assert world.teacher is not None
    mask_bt = rollouts.mask_bt
    return tuple(  # type: ignore[return-value]
        Categorical(policy.project(policy.features(rollouts.input_bt, rollouts.length_b)[mask_bt]))
        for policy in (world.teacher, world.student))


def interrupted(trainer: Callable[[], Trainer], *, steps: int = 4) -> tuple[Trainer, Trainer, Trainer]:
    """Three trainings: one of `steps`, one stopped halfway, and one that went on from the latter's checkpoint."""
    whole, half, resumed = trainer(), trainer(), trainer()
    for _ in range(steps):
        whole.step()
    for _ in range(steps // 2):
        half.step()
    resumed.load_state_dict(unpack(pack(half.state_dict())))
    for _ in range(steps - steps // 2):
        resumed.step()
    return whole, half, resumed
