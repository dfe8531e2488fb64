"""KAT: answers are cut where teacher and student agree too well to be saying anything."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.support import Comparison
from opdbench.weights import before_cut, only, quantile, window_means


class KAT(Distiller):
    """In a long answer that has begun to repeat itself the KL is small and the gradient worthless: stop there.

        d_t = KL(q || p) on the teacher's 64 likeliest tokens and the rest;   z_t = mean of d over the last W tokens
        s = the eta quantile of min_t z_t over the latest answers
        an answer ends with the first of c windows in a row that have z_t < s
        L = E_y sum_t KL( q(. | y_<t) || p(. | y_<t) )   over what is left

    Nothing is cut before enough answers have been seen. Sampling is causal, so cutting afterwards leaves the same
    tokens as stopping in time; it costs the tokens that are cut (`cut_tokens` and `cut_answers` in the record).

    Deviations from the paper:
        From a note on the paper, which gives eta = 0.3 (appendix) and 0.1 (text), and writes the quantile as that of
        1 - eta: but a low threshold is what a share of eta of the answers falls below. Answers shorter than W have no
        window, and are neither cut nor remembered.
    """

    name: ClassVar[str] = "kat"
    paper: ClassVar[str] = "The KL agreement trap, 2026 (arXiv 2606.09471), online termination"
    needs: ClassVar[Needs] = Needs.FULL
    standing: ClassVar[Standing] = "from notes"
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        window: int = Field(64, ge=1, description="W")
        eta: float = Field(0.3, gt=0, lt=1, description="share of answers whose lowest window is below the threshold")
        consecutive: int = Field(4, ge=1, description="c, low windows in a row that it takes")
        memory: int = Field(4096, ge=1, description="answers that the quantile is over, first in, first out")
        after_answers: int = Field(512, ge=1, description="answers to have seen before the first cut")
        after_steps: int = Field(50, ge=0, description="and steps")
        top_p: float = Field(0.95, gt=0, le=1, description="nucleus that the student samples from; 1 is all of it")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.lowest: list[float] = []  # min_t z_t of the latest answers

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature, self.params.top_p))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        params = self.params
        distance_bt = ctx.per_row(rollouts, lambda rows: reverse_kl(*rows.pair(Comparison("teacher", 64, "bucket"))))
        z_bt = window_means(distance_bt, rollouts.mask_bt, params.window)
        keep_bt = rollouts.mask_bt
        if len(self.lowest) >= params.after_answers and ctx.step >= params.after_steps:
            threshold = float(quantile(torch.tensor(self.lowest, dtype=torch.float64), params.eta))
            keep_bt = before_cut(z_bt < threshold, rollouts.mask_bt, params.consecutive)
            ctx.note("threshold", threshold)
        ctx.note("cut_tokens", (rollouts.mask_bt & ~keep_bt).sum())
        ctx.note("cut_answers", (rollouts.mask_bt & ~keep_bt).any(1).sum())
        least_b = z_bt.min(1).values
        self.lowest = [*self.lowest, *least_b[least_b < torch.inf].tolist()][-params.memory:]
        return only(rollouts, keep_bt)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(*rows.pair()))

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.lowest = [float(value) for value in state["lowest"]]
