"""The Many Faces of OPD: what a truncated reverse KL does to the student's mass, and two ways to mend it."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.support import Comparison


class ManyFaces(Distiller):
    """A reverse KL cut to the student's likeliest tokens also pushes the student's mass out of them; two fixes do not.

        plain:          L = sum_{v in S} q(v) (log q(v) - log p(v)),   S = the student's k most likely tokens
        stop_gradient:  L = sum_{v in S} q(v) (sg[ log q(v) ] - log p(v))
        intersection:   L = KL(q~ || p~), both renormalised on the tokens that are among the k likeliest of both
        bucket:         L = the reverse KL of S and one more event, "anything else"

    The gradient of `plain` is that of `stop_gradient` plus grad q(S), so descending it drains S. With S = everything
    they are all the reverse KL. In the terms of `opdbench.support`, the fixes are tail=stop_gradient on support=student
    and tail=renormalise on support=intersection.

    Deviations from the paper:
        Values of `stop_gradient` are those of a divergence with an agreed tail, which has the same gradient. The
        scripts use k = 50 or 20. Its variant with -KL as a PPO advantage is another algorithm, and not here.
    """

    name: ClassVar[str] = "many-faces"
    paper: ClassVar[str] = "The Many Faces of On-Policy Distillation, 2026 (arXiv 2605.11182), top-k modes; its code"
    needs: ClassVar[Needs] = Needs.FULL

    class Params(Distiller.Params):
        fix: Literal["stop_gradient", "intersection", "bucket", "plain"] = Field(
            "stop_gradient", description="what keeps the student's mass in place; `plain` is the flaw itself")
        top_k: int = Field(50, ge=1, description="k")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        k = self.params.top_k
        if self.params.fix == "intersection":
            return Loss(reverse_kl(*rows.pair(Comparison("intersection", k, "renormalise"))))
        if self.params.fix == "bucket":
            return Loss(reverse_kl(*rows.pair(Comparison("student", k, "bucket"))))
        if self.params.fix == "stop_gradient":
            return Loss(reverse_kl(*rows.pair(Comparison("student", k, "stop_gradient"))))
        _, logp_nm, logq_nm = Comparison("student", k).inside(rows.teacher, rows.student)
        return Loss((logq_nm.exp() * (logq_nm - logp_nm)).sum(-1))
