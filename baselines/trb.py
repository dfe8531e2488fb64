"""TRB: the student samples with as much of the teacher mixed in as a trust region around it allows."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Blend, Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.support import Comparison

BISECTIONS = 40  # to 1e-12 of beta


class TRB(Distiller):
    """A weak student writes states that a teacher has no use for; blending the teacher in early on mends that.

        mu_beta ~ q^(1 - beta) p^beta,   beta* = max { beta in [0, 1] : KL(mu_beta || q) <= eps_k }
        eps_k = eps_0 (1 - k / K) in step k < K, then 0: the student alone
        L = E_{y ~ mu_beta*} sum_t KL( q(. | y_<t) || p(. | y_<t) )   on the student's 16 most likely tokens

    d/dbeta KL(mu_beta || q) = beta Var_mu[log p - log q], so the KL grows with beta and bisection finds beta* exactly.
    The loss is that of `opd`: nothing corrects for the states having been sampled from mu.

    Deviations from the paper:
        eps_0 and K are the plotted run's, out of a grid. What the loss does about tokens outside of the sixteen is not
        said: they are one more event here. Both models share a vocabulary and so an end token; the paper maps several.
    """

    name: ClassVar[str] = "trb"
    paper: ClassVar[str] = "Trust-region behaviour blending, 2026 (arXiv 2605.31159), blended policy and its schedule"
    needs: ClassVar[Needs] = Needs.FULL

    class Params(Distiller.Params):
        radius: float = Field(0.02, ge=0, description="eps_0 in nats; the paper's grid: 0.001 to 0.05")
        steps: int = Field(50, ge=1, description="K, after which the student samples alone; the paper's grid: 15 to 50")
        top_k: int = Field(16, ge=1, description="the student's most likely tokens that the loss compares")

    def collect(self, ctx: Context) -> Rollouts:
        training, radius = ctx.training, self.params.radius * max(0.0, 1 - ctx.step / self.params.steps)
        if radius == 0:
            return ctx.rollout(Student(training.temperature))
        return ctx.rollout(Blend(lambda student_ba, teacher_ba: trusted(
            student_ba / training.temperature, teacher_ba / training.teacher_temperature, radius)))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(*rows.pair(Comparison("student", self.params.top_k, "bucket"))))


def trusted(student_logits_ba: Tensor, teacher_logits_ba: Tensor, radius: float) -> Tensor:
    """Log-probabilities [B, A] of mu_beta*: the blend that is furthest from the student and within `radius` of it."""
    logq_ba, logp_ba = _log_softmax(student_logits_ba), _log_softmax(teacher_logits_ba)
    logp_ba = logp_ba.clamp(min=-1e4)  # an impossible token stays so (e^-10000 is 0), and beta = 0 is 0 * finite
    low_b1, high_b1 = torch.zeros_like(logq_ba[:, :1]), torch.ones_like(logq_ba[:, :1])
    all_teacher_b1 = _distance(logq_ba, blended(logq_ba, logp_ba, high_b1)) <= radius
    for _ in range(BISECTIONS):
        beta_b1 = (low_b1 + high_b1) / 2
        inside_b1 = _distance(logq_ba, blended(logq_ba, logp_ba, beta_b1)) <= radius
        low_b1, high_b1 = beta_b1.where(inside_b1, low_b1), high_b1.where(inside_b1, beta_b1)
    return blended(logq_ba, logp_ba, torch.ones_like(low_b1).where(all_teacher_b1, low_b1))


def blended(logq_ba: Tensor, logp_ba: Tensor, beta_b1: Tensor) -> Tensor:
    """log mu_beta [B, A]."""
    return (logq_ba + beta_b1 * (logp_ba - logq_ba)).log_softmax(-1)


def _distance(logq_ba: Tensor, logmu_ba: Tensor) -> Tensor:
    """KL(mu || q) [B, 1]."""
    return (logmu_ba.exp() * (logmu_ba - logq_ba)).sum(-1, keepdim=True)


def _log_softmax(logits_ba: Tensor) -> Tensor:
    return (logits_ba if logits_ba.dtype == torch.float64 else logits_ba.float()).log_softmax(-1)
