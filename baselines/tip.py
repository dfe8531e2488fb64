"""TIP: only the tokens at which the student is unsure, or at odds with the teacher."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.weights import only, top_of_trajectories, within_range


class TIP(Distiller):
    """Half of the tokens carry the lesson: those of high student entropy, or of high disagreement, or both.

        s_t = 1 - (1 - h_t) (1 - d_t),   h = H(q) / log A and d = KL(q || p), each scaled to [0, 1] over the batch
        L = mean of KL( q(. | y_<t) || p(. | y_<t) ) over the share rho of every answer with the largest s_t

    Scores are constants. `select` has the paper's comparisons: `entropy` draws positions with probability in proportion
    to h, and `confident_errors` ranks by d (1 - h) with d = KL(p || q), where a sure student is wrong.

    Deviations from the paper:
        One position at least is kept of every answer, where the paper's floor(rho m) may be none. `entropy` draws
        without replacement. The official code has no soft-or selector; the equations are the paper's.
    """

    name: ClassVar[str] = "tip"
    paper: ClassVar[str] = "TIP, 2026 (arXiv 2604.14084), soft-or score and token selection"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        share: float = Field(0.5, gt=0, le=1, description="rho, the share of every answer's tokens that is kept")
        select: Literal["soft_or", "entropy", "confident_errors"] = Field("soft_or", description="how they are chosen")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        if self.params.share == 1:
            return rollouts
        entropy_bt, distance_bt = ctx.per_row(rollouts, self.figures).unbind(-1)
        score_bt = self.score(entropy_bt, distance_bt, rollouts.mask_bt, ctx)
        keep_bt = top_of_trajectories(score_bt, rollouts.mask_bt, self.params.share)
        ctx.note("tokens_kept", keep_bt.sum() / rollouts.n_rows)
        return only(rollouts, keep_bt)

    def figures(self, rows: Rows) -> Tensor:
        """(H(q) / log A, the distance) in every row [N, 2]."""
        distance = forward_kl if self.params.select == "confident_errors" else reverse_kl
        unit = math.log(rows.student.logits_na.shape[-1])
        return torch.stack([rows.student.entropy() / unit, distance(*rows.pair())], -1)

    def score(self, entropy_bt: Tensor, distance_bt: Tensor, mask_bt: Tensor, ctx: Context) -> Tensor:
        """What positions are ranked by [B, T]."""
        if self.params.select == "entropy":  # the largest of log h + Gumbel noise: draws in proportion to h
            uniform_bt = torch.rand(mask_bt.shape, dtype=torch.float64, generator=ctx.generator("positions"))
            return entropy_bt.log() - (-uniform_bt.to(entropy_bt.device).log()).log()
        h_bt, d_bt = within_range(entropy_bt, mask_bt), within_range(distance_bt, mask_bt)
        return d_bt * (1 - h_bt) if self.params.select == "confident_errors" else 1 - (1 - h_bt) * (1 - d_bt)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(*rows.pair()))
