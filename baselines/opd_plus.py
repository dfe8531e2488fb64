"""OPD+: from sampled actions alone, the policy gradient of any f-divergence."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.policy_gradient import importance_sampled
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows


class OPDPlus(Distiller):
    """A divergence has one reward that descends it, and only for the reverse KL is that minus its own integrand.

        D = E_{y ~ q} f(u),  u = p(y) / q(y);   - grad D = E_{y ~ q} [ w(u) grad log q(y) ],   w(u) = u f'(u) - f(u)
        L = - E sum_t [ q(y_t) / q_old(y_t) ] sg[ w(u_t) - w(1) ]
        reverse KL: w = log u        forward KL: w = u        JSD(1/2): w = 1/2 log((1 + u) / 2)

    w(1) is a baseline: it takes nothing from the mean gradient, and makes every sample's vanish at q = p. The naive
    reward -f(u) is what a PPO trainer is easily given; for the forward KL and the JSD it descends something else.

    Deviations from the paper:
        The weights are derived, and tested against finite differences; the paper's text was not at hand. Which
        divergence it recommends is not known: the default is ours, and so is the baseline. log u is held to +-6, as in
        a re-implementation: the forward KL's weight is a likelihood ratio without a bound.
    """

    name: ClassVar[str] = "opd-plus"
    paper: ClassVar[str] = "OPD+, 2026 (arXiv 2606.01039), rewards of f-divergences"
    needs: ClassVar[Needs] = Needs.SAMPLED

    class Params(Distiller.Params):
        divergence: Literal["jsd", "forward_kl", "reverse_kl"] = Field("jsd", description="D, what is minimised")
        clip: float = Field(6.0, gt=0, description="largest |log u|")

    def weight(self, log_u_n: Tensor) -> Tensor:
        """w(u) - w(1), given log u."""
        log_u_n = log_u_n.clamp(-self.params.clip, self.params.clip)
        if self.params.divergence == "reverse_kl":
            return log_u_n
        if self.params.divergence == "forward_kl":
            return log_u_n.expm1()
        return torch.log1p(log_u_n.expm1() / 2) / 2

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        log_u_n = rows.columns[TEACHER_LOGP] - rows.behaviour_logp_n
        value_n = importance_sampled(rows.student.logp(rows.action_n), rows.behaviour_logp_n, self.weight(log_u_n))
        return Loss(value_n, {"sampled_reverse_kl": -log_u_n})
