"""Draft-OPD: a draft model for speculative decoding learns from what its target accepts, and from what it rejects."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class DraftOPD(Distiller):
    """A drafter has to be right until it is wrong: cover the target while it is accepted, mend what got it rejected.

        y_t ~ q in blocks of 16;  accepted while u_t < p(y_t) / q(y_t), u_t ~ U(0, 1); rejected from the first miss on
        L = ( a L_acc + r L_rej ) / (a + r)
        L_acc = mean over accepted of KL(p || q);   L_rej = mean over rejected, weighted gamma^k, of KL(q || p)

    k = 0, 1, ... counts from the first rejected token of a block, so gamma = 0 is that token alone. Where nothing is
    rejected L is L_acc, and the reverse. `acceptance` in the record is the share of accepted tokens.

    Deviations from the paper:
        From a note on a re-implementation. The paper replays speculative decoding, where a block begins after the
        target's correction of the one before. Here it begins after the draft's own text: rejected tokens are read below
        the draft as in the paper, accepted ones are not below the target's text. Its rate is 3e-4 with a cosine.
    """

    name: ClassVar[str] = "draft-opd"
    paper: ClassVar[str] = "Draft-OPD, 2026 (arXiv 2605.29343), acceptance-aware objective"
    needs: ClassVar[Needs] = Needs.FULL
    standing: ClassVar[Standing] = "from notes"

    class Params(Distiller.Params):
        block: int = Field(16, ge=1, description="tokens that are drafted at a time")
        gamma: float = Field(0.8, ge=0, le=1, description="weight of each further rejected token of a block")
        accepted: float = Field(1.0, gt=0, description="a, weight of the accepted part")
        rejected: float = Field(1.0, gt=0, description="r, weight of the rejected part")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt = rollouts.mask_bt
        coin_bt = torch.rand(mask_bt.shape, dtype=torch.float64, generator=ctx.generator("accept")).to(mask_bt.device)
        logp_bt = ctx.per_row(rollouts, lambda rows: rows.teacher_logp_n)
        passed_bt = coin_bt < (logp_bt - rollouts.behaviour_logp_bt).exp()
        rejected_bt = places_after_rejection(passed_bt, mask_bt, self.params.block)
        accepted_bt = mask_bt & (rejected_bt < 0)
        raw_bt = self.params.gamma ** rejected_bt.clamp(min=0).double() * (mask_bt & (rejected_bt >= 0))
        weight_bt = self.balanced(accepted_bt.double(), raw_bt, mask_bt)
        return rollouts.with_columns(per_step={"weight": weight_bt, "accepted": accepted_bt})

    def balanced(self, accepted_bt: Tensor, rejected_bt: Tensor, mask_bt: Tensor) -> Tensor:
        """Weights [B, T] whose mean over all decisions of weight times loss is L."""
        parts = [(coefficient, part_bt / part_bt.sum()) for coefficient, part_bt in (
            (self.params.accepted, accepted_bt), (self.params.rejected, rejected_bt)) if part_bt.sum() > 0]
        total = sum(coefficient for coefficient, _ in parts)
        return mask_bt.sum() * torch.stack([coefficient / total * part_bt for coefficient, part_bt in parts]).sum(0)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        pair, accepted_n = (rows.teacher, rows.student), rows.columns["accepted"]
        value_n = torch.where(accepted_n, forward_kl(*pair), reverse_kl(*pair))
        return Loss(rows.columns["weight"] * value_n, {"acceptance": accepted_n.to(value_n.dtype)})


def places_after_rejection(passed_bt: Tensor, mask_bt: Tensor, block: int) -> Tensor:
    """int64 [B, T]: within each block of decisions 0, 1, ... from the first that did not pass; -1 before it, and where
    nobody decided."""
    place_bt = torch.full(mask_bt.shape, -1, dtype=torch.int64, device=mask_bt.device)
    for row, mask_t in enumerate(mask_bt):
        passed_n = passed_bt[row][mask_t]
        parts = [(~part_m).cummax(0).values.cumsum(0) - 1 for part_m in torch.split(passed_n, block)]
        if len(passed_n):
            place_bt[row, mask_t] = torch.cat(parts)
    return place_bt
