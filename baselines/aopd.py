"""AOPD: reward where the teacher likes the token better, a correction where it does not."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.divergences import forward_kl, generalized_jsd
from opdbench.policy_gradient import reinforce
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.support import Comparison


class AOPD(Distiller):
    """A negative advantage says what not to write and never what to write instead; the teacher's top tokens do.

        l_t = log p(y_t) - log q(y_t), held constant;   L_t = - l_t log q(y_t) if l_t > 0, else D(p || q) on top K of p

    Known: both branches, and a mean within each answer (`--set reduction=sequence`). Missing: K, and in which setting D
    is the forward KL and in which the JSD.

    Deviations from the paper:
        Ours: K = 16, the forward KL, and what lies outside of the K as one more event.
    """

    name: ClassVar[str] = "aopd"
    paper: ClassVar[str] = "AOPD 2026 (arXiv 2605.06387); from notes"
    standing: ClassVar[Standing] = "unspecified"
    needs: ClassVar[Needs] = Needs.FULL

    class Params(Distiller.Params):
        approximate: bool = Field(False, description="run it although parts of it are ours")
        top_k: int = Field(16, ge=1, description="K, of the teacher's most likely actions")
        divergence: Literal["forward_kl", "jsd"] = Field("forward_kl", description="D; JSD is of 0.5")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        logq_n = rows.student.logp(rows.action_n)
        ratio_n = (rows.teacher_logp_n - logq_n).detach()
        sides = rows.pair(Comparison("teacher", self.params.top_k))
        corrected_n = forward_kl(*sides) if self.params.divergence == "forward_kl" else generalized_jsd(*sides, 0.5)
        value_n = torch.where(ratio_n > 0, reinforce(logq_n, ratio_n), corrected_n)
        return Loss(value_n, {"corrected": (ratio_n <= 0).double(), "log_ratio": ratio_n})
