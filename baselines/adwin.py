"""ADWIN: train on a prefix as long as it needs to be, and look now and then whether it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.divergences import reverse_kl
from opdbench.gradients import gradient
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import Rows


class ADWIN(Distiller):
    """The first tokens of an answer carry most of the gradient; a prefix is enough while both point the same way.

        L_W = E_{y ~ q} sum_{t <= W} KL( q(. | y_<t) || p(. | y_<t) )
        every `period` steps answers are whole, and   W <- growth W   if  cos(grad L_W, grad L_inf) < `agreement`

    Known: a window, and a delayed probe of whole answers with the cosine of the gradients. Missing: how often the probe
    comes, its threshold, and the rule by which the window grows.

    Deviations from the paper:
        Ours: a window of 8 that doubles below a cosine of 0.9, and a probe every 10 steps. Between two probes answers
        are not written beyond the window.
    """

    name: ClassVar[str] = "adwin"
    paper: ClassVar[str] = "ADWIN 2026 (arXiv 2605.28396); from notes on the abstract"
    standing: ClassVar[Standing] = "unspecified"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        approximate: bool = Field(False, description="run it although parts of it are ours")
        window: int = Field(8, ge=1, description="W at the start, in steps of a trajectory")
        growth: float = Field(2.0, gt=1, description="factor of W where the gradients disagree")
        period: int = Field(10, ge=1, description="steps between two probes")
        agreement: float = Field(0.9, ge=-1, le=1, description="cosine from which on the window is long enough")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.window = float(params.window)

    def collect(self, ctx: Context) -> Rollouts:
        probing = (ctx.step + 1) % self.params.period == 0
        horizon = ctx.training.horizon or int(self.window)
        return ctx.rollout(Student(ctx.training.temperature),
                           horizon=horizon if probing else min(horizon, int(self.window)))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        ctx.note("window", self.window)
        within = self.cut(rollouts)
        if within.n_rows < rollouts.n_rows:  # answers are whole, and longer than the window
            short_p, whole_p = (gradient(self, ctx, part) for part in (within, rollouts))
            cosine = float(torch.cosine_similarity(short_p, whole_p, dim=0))
            ctx.note("agreement_of_gradients", cosine)
            if cosine < self.params.agreement:
                self.window *= self.params.growth
        return within

    def cut(self, rollouts: Rollouts) -> Rollouts:
        """Without the decisions beyond the window."""
        mask_bt = rollouts.mask_bt
        first_b1 = mask_bt.double().argmax(1, keepdim=True)
        beyond_bt = torch.arange(mask_bt.shape[1], device=mask_bt.device) - first_b1 >= int(self.window)
        return replace(rollouts, source_bt=rollouts.source_bt.masked_fill(beyond_bt, Source.NOBODY))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(*rows.pair()))

    def state_dict(self) -> dict[str, Any]:
        return {"window": self.window}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.window = float(state["window"])
