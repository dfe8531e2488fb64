"""FiRe-OPD: answers that the teacher finds unlikely are dropped, and tokens weighted by two entropies."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.policy_gradient import ppo_clip
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.weights import mean_one, only, quantile


class FiReOPD(Distiller):
    """A teacher is worth listening to where it is sure and the student is not, in answers that it can follow at all.

        w_t = (1 + alpha (1 - H_p / max H_p)) (1 + beta H_q / max H_q),  then divided by its mean
        A_t = w_t (log p - log q)(y_t)
        L = - E sum_t min( rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t ),   rho = q / q_old

    over the answers whose mean log p(y_t) is not below the batch's 20th percentile (filter, then reweight). H are the
    entropies of teacher and student in a state. The maxima, and the mean, are over all tokens of the batch, those of
    dropped answers included.

    Deviations from the paper:
        These are the official code's; the paper divides by each answer's own mean (`--preset text`). The code's cap of
        5 on importance ratios is left out, since one update a batch does not come near it. On a control task an answer
        is a segment of a rollout.
    """

    name: ClassVar[str] = "fire-opd"
    paper: ClassVar[str] = "FiRe-OPD, 2026 (arXiv 2606.02684), filtering and reweighting; official code"
    needs: ClassVar[Needs] = Needs.FULL
    presets: ClassVar[dict[str, dict[str, Any]]] = {"text": {"normalise": "answer"}}

    class Params(Distiller.Params):
        percentile: float = Field(20.0, ge=0, lt=100, description="of answers by the teacher's mean log-probability; "
                                                                  "what lies below is dropped")
        alpha: float = Field(1.0, ge=0, description="weight of the teacher's certainty")
        beta: float = Field(1.0, ge=0, description="weight of the student's uncertainty")
        normalise: Literal["batch", "answer"] = Field("batch", description="over which tokens the weights average one")
        clip: float = Field(0.2, gt=0, description="eps of PPO")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt = rollouts.mask_bt
        logp_bt, teacher_entropy_bt, student_entropy_bt = ctx.per_row(rollouts, lambda rows: torch.stack(
            [rows.teacher_logp_n, rows.teacher.entropy(), rows.student.entropy()], -1)).unbind(-1)
        weight_bt = ((1 + self.params.alpha * (1 - _relative(teacher_entropy_bt)))
                     * (1 + self.params.beta * _relative(student_entropy_bt)))
        weight_bt = mean_one(weight_bt, mask_bt, by_trajectory=self.params.normalise == "answer")
        written_b = mask_bt.any(1)
        mean_logp_b = logp_bt.sum(1) / mask_bt.sum(1).clamp(min=1)
        keep_b = mean_logp_b >= quantile(mean_logp_b[written_b], self.params.percentile / 100)
        ctx.note("answers_kept", keep_b[written_b].double().mean())
        return only(rollouts.with_columns(per_step={"weight": weight_bt}), keep_b[:, None])

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        ratio_n = rows.teacher_logp_n - rows.behaviour_logp_n
        value_n = ppo_clip(rows.student.logp(rows.action_n), rows.behaviour_logp_n, rows.columns["weight"] * ratio_n,
                           self.params.clip, self.params.clip)
        return Loss(value_n, {"sampled_reverse_kl": -ratio_n})


def _relative(entropy_bt: Tensor) -> Tensor:
    """Entropies as shares of the batch's largest, and 0 where that is nothing."""
    largest = entropy_bt.max()
    return (entropy_bt / largest.where(largest > 0, 1.0)).clamp(0, 1)
