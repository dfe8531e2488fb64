"""Rock tokens: the few token types that distillation keeps working on without moving them are left alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.weights import only

QWEN3_SHARE = 100 / 151_936  # of the vocabulary: the hundred types that the paper takes


class RockTokens(Distiller):
    """Some token types keep a high KL to the end, and answers are no better for the gradient that they take.

        R(v) = (mean of KL(q || p) where v was written) x (times that v was written)  = the sum of KL(q || p) there
        L = E_y sum_t w_t KL( q(. | y_<t) || p(. | y_<t) )
        w_t = 0 where y_t is of the types with the largest R, else 1

    R is summed over the first part of the run, in which every token is learnt, and then fixed (`measure`).

    Deviations from the paper:
        From a note on the paper. Its second factor, how consistent a type's contexts are, has thresholds that the note
        does not give, and is left out; so is the window around a rock token, whose width it does not give either. The
        paper's hundred types are told as a share of the vocabulary, one type at least, so that a small one is not rock
        throughout. Its first stage, forward KL and cross-entropy on 20,000 texts, is a run before this one.
    """

    name: ClassVar[str] = "rock-tokens"
    paper: ClassVar[str] = "Rock tokens, 2026 (arXiv 2605.09253), rock score and freezing"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})  # an action of a control task is not a word
    standing: ClassVar[Standing] = "from notes"
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        share: float = Field(QWEN3_SHARE, gt=0, lt=1, description="of the vocabulary that is rock, one type at least")
        measure: float = Field(0.25, ge=0, le=1, description="share of the budget over which R is summed")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.score_v: Tensor | None = None  # R, float64 on the CPU; None before the first step

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt = rollouts.mask_bt
        if self.score_v is None or ctx.progress < self.params.measure:
            distance_n = ctx.per_row(rollouts, lambda rows: reverse_kl(*rows.pair()))[mask_bt].double().cpu()
            before_v = torch.zeros(ctx.student.n_actions, dtype=torch.float64) if self.score_v is None else self.score_v
            self.score_v = before_v.index_add(0, rollouts.action_bt[mask_bt].cpu(), distance_n)
        if ctx.progress < self.params.measure:
            return rollouts
        keep_bt = ~self.rocks()[rollouts.action_bt.where(mask_bt, 0).cpu()].to(mask_bt.device)
        ctx.note("rock_tokens", (mask_bt & ~keep_bt).sum() / rollouts.n_rows)
        return only(rollouts, keep_bt)

    def rocks(self) -> Tensor:
        """bool [A]: the types with the largest R, among those that have any."""
        assert self.score_v is not None
        number = max(1, round(self.params.share * len(self.score_v)))
        is_rock_v = torch.zeros(len(self.score_v), dtype=torch.bool)
        is_rock_v[self.score_v.topk(number).indices] = True
        return is_rock_v & (self.score_v > 0)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(*rows.pair()))

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score_v}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score_v = state["score"]
