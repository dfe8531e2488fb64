"""SKD: the student writes, and the teacher replaces what it would hardly have written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import ACTION, COIN, Decision, sample
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, generalized_jsd, reverse_kl
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import Rows


class SKD(Distiller):
    """Between the teacher's text, which the student never writes, and its own, which no teacher can judge: interleaved.

        y_t ~ q(. | y_<t);  if y_t is not among the teacher's k likeliest tokens, y_t ~ p(. | y_<t) instead
        L = E_y sum_t D(p || q)(y_<t),   D = forward KL, reverse KL or JSD(1/2)

    k = everything is on-policy; at k = 1 every token is the teacher's mode or the teacher's sample. The paper drafts
    five tokens at a time and starts anew after a miss, which is faster and has the same law: here it is token by token.

    Deviations from the paper:
        k does not decay. Losses are averaged over all tokens; within sequences first is `--set reduction=sequence`. The
        official code tests another draw than the token it keeps, and is off by one at the first token; not imitated.
    """

    name: ClassVar[str] = "skd"
    paper: ClassVar[str] = "Speculative Knowledge Distillation, ICLR 2025 (arXiv 2410.11325), algorithm 1"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        top_k: int = Field(25, ge=1, description="the teacher's likeliest tokens, among which the student's is kept")
        divergence: Literal["forward_kl", "reverse_kl", "jsd"] = Field("forward_kl", description="D")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Interleaved(self.params.top_k, ctx.training.temperature, ctx.training.teacher_temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        teacher, student = rows.pair()
        if self.params.divergence == "jsd":
            return Loss(generalized_jsd(teacher, student, 0.5))
        return Loss((forward_kl if self.params.divergence == "forward_kl" else reverse_kl)(teacher, student))


@dataclass(frozen=True)
class Interleaved:
    """The student proposes; what is not among the teacher's `top_k` is drawn from the teacher instead.

    The law is mu(v) = q(v) [v in top-k] + (1 - q(top-k)) p(v), whose logarithm is recorded.
    """

    top_k: int
    student_temperature: float = 1.0
    teacher_temperature: float = 1.0
    uses_student: bool = True
    uses_teacher: bool = True

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, uniform_bd: Tensor) -> Decision:
        assert student_logits_ba is not None and teacher_logits_ba is not None
        own_b, _ = sample(student_logits_ba, self.student_temperature, uniform_bd[:, ACTION])
        theirs_b, _ = sample(teacher_logits_ba, self.teacher_temperature, uniform_bd[:, COIN])
        top_bk = teacher_logits_ba.topk(min(self.top_k, teacher_logits_ba.shape[-1]), -1).indices
        kept_b = (top_bk == own_b[:, None]).any(-1)
        action_b = own_b.where(kept_b, theirs_b)
        q_ba, p_ba = ((logits_ba.float() / temperature).softmax(-1) for logits_ba, temperature in (
            (student_logits_ba, self.student_temperature), (teacher_logits_ba, self.teacher_temperature)))
        inside_ba = torch.zeros_like(q_ba).scatter(-1, top_bk, 1.0)
        law_ba = q_ba * inside_ba + (1 - (q_ba * inside_ba).sum(-1, keepdim=True)).clamp(min=0) * p_ba
        source_b = torch.where(kept_b, int(Source.STUDENT), int(Source.TEACHER)).to(torch.uint8)
        return Decision(action_b, law_ba.gather(-1, action_b[:, None])[:, 0].log(), source_b)
