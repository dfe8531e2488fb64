"""TA-OPD: the few tokens that are both wrong and teachable."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.policy_gradient import importance_sampled
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.support import Comparison
from opdbench.weights import only, top_of_batch, within_range


class TAOPD(Distiller):
    """A token is worth a gradient where the student is far from the teacher, and has the teacher's choice within reach.

        D_t = KL(p || q) on the union of both sides' k likeliest tokens;   C_t = p( the student's k likeliest tokens )
        s_t = norm(D_t) norm(C_t),   norm(z) = clip( (z - Q05) / (Q95 - Q05), 0, 1 )
        L = - mean over the batch's share rho of tokens with the largest s_t of  rho_t (log p - log q_old)(y_t)

    Q are quantiles over the batch's tokens, scores are constants. rho = 1 is `opd` with sampled tokens.

    Deviations from the paper:
        From notes, a re-implementation and an audit of it; the official code was not at hand. Whether D is renormalised
        on the union is open: here the rest is one more event. Where a quantile range is empty, its norm is 0
        throughout. The share is rounded up.
    """

    name: ClassVar[str] = "ta-opd"
    paper: ClassVar[str] = "TA-OPD, 2026 (arXiv 2605.26844), token teachability"
    needs: ClassVar[Needs] = Needs.FULL
    standing: ClassVar[Standing] = "from notes"

    class Params(Distiller.Params):
        share: float = Field(0.05, gt=0, le=1, description="rho, the share of the batch's tokens that is kept")
        top_k: int = Field(16, ge=1, description="k")
        loss: Literal["sampled", "full"] = Field(
            "sampled", description="on kept tokens: the policy gradient, or the reverse KL over all actions")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        if self.params.share == 1:
            return rollouts
        distance_bt, capture_bt = ctx.per_row(rollouts, self.figures).unbind(-1)
        mask_bt = rollouts.mask_bt
        score_bt = within_range(distance_bt, mask_bt, 0.05, 0.95) * within_range(capture_bt, mask_bt, 0.05, 0.95)
        keep_bt = top_of_batch(score_bt, mask_bt, self.params.share)
        ctx.note("teachable", (score_bt > 0).sum() / rollouts.n_rows)
        return only(rollouts, keep_bt)

    def figures(self, rows: Rows) -> Tensor:
        """(D, C) in every row [N, 2]."""
        k = self.params.top_k
        _, logp_nm, _ = Comparison("student", k).inside(rows.teacher, rows.student)
        return torch.stack([forward_kl(*rows.pair(Comparison("union", k, "bucket"))), logp_nm.exp().sum(-1)], -1)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        if self.params.loss == "full":
            return Loss(reverse_kl(rows.teacher, rows.student))
        ratio_n = rows.teacher_logp_n - rows.behaviour_logp_n
        value_n = importance_sampled(rows.student.logp(rows.action_n), rows.behaviour_logp_n, ratio_n)
        return Loss(value_n, {"sampled_reverse_kl": -ratio_n})
