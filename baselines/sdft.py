"""Self-distillation fine-tuning (SDFT): learning from demonstrations on-policy, so that less is forgotten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from opdbench.actors import Student
from opdbench.advantages import decisions_to_go
from opdbench.context import Context
from opdbench.copies import SelfTeacher
from opdbench.distiller import Loss, Standing
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.privilege import told
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import Rows
from opdbench.self_taught import SelfTaught
from opdbench.task import NoteKind


class SDFT(SelfTaught):
    """A model that is shown a demonstration is a teacher close to itself: imitating that forgets less than SFT does.

        L = E_{(x, d)} E_{y ~ q(. | x)} sum_{t > 3} KL( p(. | x, d, y_<t) || q(. | x, y_<t) )
        p <- (1 - rate) p + rate q  after every step

    The first tokens of an answer are left out: they say "following the example", which only the teacher has seen.

    Deviations from the paper:
        The text writes the reverse KL; by the authors' word, and in their defaults, all results are of the forward one
        over the whole vocabulary. An answer of no more than `skip` tokens keeps its last one, so that short answers are
        learnt from too. TRL's SDFT is another algorithm: JSD of 0.5 on the student's top 100, a teacher that stays.
    """

    name: ClassVar[str] = "sdft"
    paper: ClassVar[str] = "Shenfeld et al. 2026 (arXiv 2601.19897); authors' notes on the code's defaults"
    standing: ClassVar[Standing] = "from notes"
    compares: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"text": {"divergence": "reverse_kl"}}

    class Params(SelfTaught.Params):
        divergence: Literal["forward_kl", "reverse_kl"] = Field("forward_kl", description="of the teacher's side first")
        rate: float = Field(0.01, ge=0, le=1, description="how fast the teacher follows the student")
        skip: int = Field(3, ge=0, description="first decisions of every answer that are left out")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.teacher = SelfTeacher(params.rate)

    def reads(self) -> frozenset[NoteKind]:
        return frozenset({"solution"})

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        scored = ctx.score_under(rollouts, told(ctx, rollouts, "solution"), policy=self.teacher.of(ctx.student))
        mask_bt = rollouts.mask_bt
        is_last_bt = decisions_to_go(mask_bt, torch.zeros_like(mask_bt)) == 1
        skipped_bt = (mask_bt.cumsum(1) <= self.params.skip) & ~is_last_bt
        return replace(scored, source_bt=scored.source_bt.masked_fill(skipped_bt, Source.NOBODY))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        divergence = forward_kl if self.params.divergence == "forward_kl" else reverse_kl
        return Loss(divergence(*rows.pair()))
