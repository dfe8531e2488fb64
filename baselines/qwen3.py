"""Qwen3's strong-to-weak distillation: first the teacher's outputs, then its logits on the student's own."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.actors import Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, negative_log_likelihood, reverse_kl
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import Rows


class Qwen3(Distiller):
    """Cheap off-policy data first and the teacher's logits on the student's own samples second cost a tenth of RL.

        stage 1 (a share of the budget):  L = - E_{y ~ p} sum_t log q(y_t | y_<t)
        stage 2 (the rest):               L = E_{y ~ q} sum_t KL( q(. | y_<t) || p(. | y_<t) )

    Deviations from the paper:
        The report gives two sentences. It does not say which way round the KL is, at what temperature, over which
        tokens, nor how long each stage lasts: reverse KL over the whole vocabulary at temperature 1 and an even split
        of the budget are ours. Its /think and /no_think modes are `--preset modes`: a chat template that knows them
        gets every other prompt in each, in both stages. It is no default, since the horizon of most tasks cannot hold
        the thinking, and the tiny tasks have no template.
    """

    name: ClassVar[str] = "qwen3"
    paper: ClassVar[str] = "Qwen Team 2025, Qwen3 technical report (arXiv 2505.09388), section 4.5"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"modes": {"thinking": "both"}}
    vanishes_at_teacher = False  # stage 1 is a likelihood

    class Params(Distiller.Params):
        stage_1: float = Field(0.5, ge=0, le=1, description="share of the budget that is spent off-policy")
        divergence: Literal["reverse_kl", "forward_kl"] = Field(
            "reverse_kl", description="of stage 2; the report does not disclose it")

    def off_policy(self, ctx: Context) -> bool:
        """Whether this step belongs to stage 1."""
        return bool(ctx.progress < self.params.stage_1)

    def asks(self, ctx: Context) -> Needs:
        return Needs.TEXT if self.off_policy(ctx) else Needs.FULL

    def collect(self, ctx: Context) -> Rollouts:
        if self.off_policy(ctx):
            return ctx.rollout(Teacher(ctx.training.teacher_temperature))
        return ctx.rollout(Student(ctx.training.temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        if (rows.source_n == Source.TEACHER).all():  # a batch has one writer
            return Loss(negative_log_likelihood(rows.student, rows.action_n))
        divergence = reverse_kl if self.params.divergence == "reverse_kl" else forward_kl
        return Loss(divergence(*rows.pair()))
