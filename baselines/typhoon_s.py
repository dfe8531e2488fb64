"""Typhoon-S: a recipe of three phases, imitation, on-policy distillation, reinforcement with a little text."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from opdbench.actors import Student, Teacher
from opdbench.baselines.grpo import GRPO
from opdbench.context import Context
from opdbench.distiller import Loss, Needs
from opdbench.divergences import forward_kl, negative_log_likelihood
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows

IMITATE, DISTIL, REINFORCE = range(3)


class TyphoonS(GRPO):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """A small lab's post-training: what is cheap first, on-policy distillation next, reinforcement for what is left.

        phase 1:  L = - E_{y ~ data} sum_t log q(y_t)
        phase 2:  L = KL(p || q) on y ~ q with probability lmbda, else on y ~ data    (GKD with beta -> 0)
        phase 3:  L = L_GRPO,  and in a step with probability `text`  - log q(y_t) on y ~ data beside it

    Deviations from the paper:
        The phases are runs of their own there, of one epoch each; here they share the budget, in equal parts. Their
        settings differ there (learning rate, lengths) and are the run's here. The text of phase 3 is of the domain;
        here it is the same data as in phase 1. `lmbda` is the student's share, 0.25 as in the code.
    """

    name: ClassVar[str] = "typhoon-s"
    paper: ClassVar[str] = "Typhoon-S 2026 (arXiv 2601.18129); official code"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    compares: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    class Params(GRPO.Params):  # type: ignore[misc]
        kl_coefficient: float = Field(0.0, ge=0, description="of the penalty to the starting student; none")
        imitation: float = Field(1 / 3, ge=0, le=1, description="share of the budget for phase 1")
        distillation: float = Field(1 / 3, ge=0, le=1, description="share of the budget for phase 2")
        lmbda: float = Field(0.25, ge=0, le=1, description="share of phase 2's steps on the student's own samples")
        text: float = Field(0.1, ge=0, le=1, description="share of phase 3's steps with a likelihood beside")
        data: Literal["teacher", "solutions"] = Field(
            "teacher", description="the other texts: the teacher's samples, or the task's reference solutions")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.phase = IMITATE

    def asks(self, ctx: Context) -> Needs:
        imitated, distilled = self.params.imitation, self.params.imitation + self.params.distillation
        self.phase = IMITATE if ctx.progress < imitated else DISTIL if ctx.progress < distilled else REINFORCE
        return Needs.FULL if self.phase == DISTIL else Needs.TEXT

    def collect(self, ctx: Context) -> Rollouts:
        coin = ctx.rng("data").random()
        if self.phase == REINFORCE:
            sampled: Rollouts = super().collect(ctx)
            return Rollouts.cat_parts([sampled, self.demonstrations(ctx)]) if coin < self.params.text else sampled
        if self.phase == DISTIL and coin < self.params.lmbda:
            return ctx.rollout(Student(ctx.training.temperature))
        return self.demonstrations(ctx)

    def demonstrations(self, ctx: Context) -> Rollouts:
        if self.params.data == "solutions":
            return ctx.demonstrations()
        return ctx.rollout(Teacher(ctx.training.teacher_temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        phase_b = torch.full_like(rollouts.length_b, self.phase)
        if self.phase != REINFORCE:
            return rollouts.with_columns(per_trajectory={"phase": phase_b})
        part_b = rollouts.columns.get("part", torch.zeros_like(phase_b))
        prepared: Rollouts = super().prepare(rollouts, ctx)
        return prepared.with_columns(
            per_trajectory={"phase": torch.where(part_b == 0, REINFORCE, IMITATE)})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        phase_n = rows.columns["phase"]
        if (phase_n == DISTIL).all():  # a batch is of one phase, but for the text beside phase 3
            return Loss(forward_kl(*rows.pair()))
        value_n = negative_log_likelihood(rows.student, rows.action_n)
        if (phase_n == REINFORCE).any():
            value_n = torch.where(phase_n == REINFORCE, super().loss(rows, ctx).value_n, value_n)
        return Loss(value_n)
