"""GNDPO: the log-ratio to the teacher, whitened over the whole batch before it is an advantage."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.advantages import clipped, log_ratio, masked
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.policy_gradient import ppo_clip
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows

LEAST_SPREAD = 1e-6  # of log-ratios that differ by more than the rounding of float32


class GNDPO(Distiller):
    """Log-ratios of one scale in every batch make a steady signal of a teacher that is far away.

        A = (l - mean l) / sqrt(var l + 1e-8),   l_t = clip( log p(y_t) - log q(y_t), -5, 5 )
        L = - E sum_t min( rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t ),   rho = q / q_old

    Mean and variance are over all decisions of the batch. Taking the mean away moves the fixed point: an action that
    the teacher likes more than the student, but by less than the average, is pushed down, so p = q is only one of
    many places to stop at. A batch in which all log-ratios are equal teaches nothing, and its `spread` says so.

    Deviations from the paper:
        One update a batch, where PPO's limits do nothing at sampling temperature 1. A spread that is only rounding
        counts as none.
    """

    name: ClassVar[str] = "gndpo"
    paper: ClassVar[str] = "GNDPO, 2026 (arXiv 2606.09091), globally normalised advantages; official code"
    needs: ClassVar[Needs] = Needs.SAMPLED

    class Params(Distiller.Params):
        clip: float = Field(5.0, gt=0, description="largest |log p - log q|")
        ratio_clip: float = Field(0.2, gt=0, description="eps of PPO")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt = rollouts.mask_bt
        ratio_bt = log_ratio(rollouts.columns[TEACHER_LOGP], rollouts.behaviour_logp_bt, mask_bt)
        advantage_bt, spread = normalised(clipped(ratio_bt, self.params.clip), mask_bt)
        ctx.note("spread", spread)
        return rollouts.with_columns(per_step={"log_ratio": ratio_bt, "advantage": advantage_bt})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        limit = self.params.ratio_clip
        value_n = ppo_clip(rows.student.logp(rows.action_n), rows.behaviour_logp_n, rows.columns["advantage"], limit,
                           limit)
        return Loss(value_n, {"sampled_reverse_kl": -rows.columns["log_ratio"]})


def normalised(value_bt: Tensor, mask_bt: Tensor) -> tuple[Tensor, float]:
    """Values of mean 0 and variance 1 over the decisions, zero where there is nothing to tell them apart by; and their
    standard deviation."""
    values_n = value_bt[mask_bt]
    variance, mean = torch.var_mean(values_n, correction=0)
    if variance.sqrt() < LEAST_SPREAD:
        return torch.zeros_like(value_bt), float(variance.sqrt())
    return masked((value_bt - mean) * torch.rsqrt(variance + 1e-8), mask_bt), float(variance.sqrt())
