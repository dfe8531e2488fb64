"""OGLS-SD: the difference that right and wrong attempts make to the logits, added to them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.advantages import decisions_to_go
from opdbench.context import Context
from opdbench.copies import SelfTeacher
from opdbench.distiller import Loss, Standing
from opdbench.divergences import negative_log_likelihood
from opdbench.privilege import informed, outcome, siblings
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import TEACHER_FEATURES, Rows
from opdbench.self_taught import SelfTaught

RIGHT, WRONG = "right_features", "wrong_features"


class OGLSSD(SelfTaught):
    """Reading a right attempt instead of a wrong one moves the logits; a step further in that direction is a teacher.

        z~ = z + strength ( z(x, y+) - z(x, y-) ),   p = softmax(z~),   z the student's own logits before the step
        wrong answers:  L = sum_{t <= 1024} sum_v min( p(v) log(p(v) / q(v)), clip );   short right ones:  - log q(y_t)

    Known: the form (two readers agree): a clipped forward KL on wrong answers, likelihood on the last 128 tokens of
    short right ones, means over right and over wrong contexts. Missing: strength, clip, the likelihood's weight.

    Deviations from the paper:
        Ours: strength 1, clip 0.05, weight 0.1, one context of each kind, "short" is at most the median length of the
        batch's right answers. A wrong answer needs a sibling of each kind; without, it is left out and counted.
    """

    name: ClassVar[str] = "ogls-sd"
    paper: ClassVar[str] = "OGLS-SD 2026 (arXiv 2605.12400); from notes"
    standing: ClassVar[Standing] = "unspecified"

    class Params(SelfTaught.Params):
        approximate: bool = Field(False, description="run it although parts of it are ours")
        group: int = Field(8, ge=2, description="answers to each prompt; divides the batch")
        strength: float = Field(1.0, ge=0, description="how far beyond its own logits the teacher steps")
        clip: float = Field(0.05, gt=0, description="the most that one action adds to the forward KL")
        first: int = Field(1024, ge=1, description="decisions of a wrong answer that are corrected")
        last: int = Field(128, ge=1, description="decisions of a right answer that are imitated")
        likelihood: float = Field(0.1, ge=0, description="weight of the right answers' likelihood")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.teacher = SelfTeacher(1.0)

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature), repeat=self.params.group)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        teacher, texts, outcome_b = self.teacher.of(ctx.student), ctx.prompts.written(rollouts), outcome(rollouts)
        others = siblings(outcome_b, rollouts.columns["group"], 0.5)
        right_b = (outcome_b >= 0.5).tolist()
        steered = [not right and bool(its.successes and its.failures)
                   for right, its in zip(right_b, others, strict=True)]
        contexts = {
            TEACHER_FEATURES: [{} if able else None for able in steered],
            RIGHT: [{"success": texts[its.successes[0]]} if able else None
                    for able, its in zip(steered, others, strict=True)],
            WRONG: [{"failure": texts[its.failures[0]]} if able else None
                    for able, its in zip(steered, others, strict=True)]}
        for column, notes_b in contexts.items():
            prompts = informed(ctx, rollouts, notes_b)  # type: ignore[arg-type]  # kinds, not just any text
            rollouts = ctx.score_under(rollouts, prompts, policy=teacher, column=column)
        ctx.note("without_context", right_b.count(False) - steered.count(True))
        return self.chosen(rollouts, torch.tensor(right_b), torch.tensor(steered))

    def chosen(self, rollouts: Rollouts, right_b: Tensor, steered_b: Tensor) -> Rollouts:
        """The decisions that are learnt from, of wrong answers that can be steered and of short right ones."""
        mask_bt, device = rollouts.mask_bt, rollouts.input_bt.device
        right_b, steered_b = right_b.to(device), steered_b.to(device)
        length_b = mask_bt.sum(1)
        short_b = right_b & (length_b <= length_b[right_b].median()) if right_b.any() else right_b
        left_bt = decisions_to_go(mask_bt, torch.zeros_like(mask_bt))
        learnt_bt = steered_b[:, None] & (mask_bt.cumsum(1) <= self.params.first)
        if self.params.likelihood > 0:
            learnt_bt = learnt_bt | (short_b[:, None] & (left_bt <= self.params.last))
        rollouts = replace(rollouts, source_bt=rollouts.source_bt.masked_fill(~learnt_bt, Source.NOBODY))
        return rollouts.with_columns(per_trajectory={"right": right_b})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        value_n = self.params.likelihood * negative_log_likelihood(rows.student, rows.action_n)
        if RIGHT not in rows.columns:  # nobody could be steered
            return Loss(value_n)
        assert ctx.teacher is not None
        with torch.no_grad():
            z_na, right_na, wrong_na = (ctx.teacher.project(rows.columns[name])
                                        for name in (TEACHER_FEATURES, RIGHT, WRONG))
        logp_na = (z_na + self.params.strength * (right_na - wrong_na)).log_softmax(-1)
        terms_na = logp_na.exp() * (logp_na - rows.student.logp_na)
        corrected_n = terms_na.clamp(max=self.params.clip).sum(-1)
        return Loss(torch.where(rows.columns["right"], value_n, corrected_n),
                    {"steered": (~rows.columns["right"]).double()})
