"""Generalised knowledge distillation (GKD): a divergence of choice on a mixture of student and fixed data."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.actors import Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, generalized_jsd, reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class GKD(Distiller):
    """Training on the student's own samples removes the mismatch between the states seen in training and in use.

        L = (1 - lmbda) E_{(x, y) ~ data} [ D(p || q)(y | x) ] + lmbda E_{x, y ~ q} [ D(p || q)(y | x) ]
        D = JSD(beta) = beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q

    D is averaged over the steps of y, and no gradient flows through the sampling of y (section 3, eq. 4 and
    algorithm 1). In every step a coin with probability lmbda decides whether the batch is the student's.

    Deviations from the paper:
        JSD(beta) tends to zero at both ends, so beta = 0 and 1 are refused; the paper's forward and reverse KL are
        `divergence=forward_kl` and `reverse_kl`, never a silent switch at the ends. The fixed data are by default the
        teacher's fresh samples (the paper: its own or the data set's), so that both worlds have them. Losses are
        averaged over all tokens of the batch; `--set reduction=sequence` averages within sequences first, as eq. 2.
    """

    name: ClassVar[str] = "gkd"
    paper: ClassVar[str] = "Agarwal et al., ICLR 2024 (arXiv 2306.13649), section 3, eq. 4, algorithm 1"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True

    # TRL's temperature is of sampling only; its loss has none. It also switches to the full KLs at beta 0 and 1.
    presets: ClassVar[dict[str, dict[str, Any]]] = {"trl": {"lmbda": 0.5, "beta": 0.5, "temperature": 0.9}}

    class Params(Distiller.Params):
        lmbda: float = Field(1.0, ge=0, le=1, description="share of steps on the student's own samples; 1 = on-policy")
        divergence: Literal["jsd", "forward_kl", "reverse_kl"] = Field(
            "jsd", description="D; `jsd` is JSD(beta), the KLs are its rescaled limits at beta = 0 and 1")
        beta: float = Field(0.5, gt=0, lt=1, description="of JSD(beta): towards 0 like forward KL, towards 1 reverse")
        data: Literal["teacher", "solutions"] = Field(
            "teacher", description="the fixed data: the teacher's samples, or the task's reference solutions")

    def uses_solutions(self) -> bool:
        return super().uses_solutions() and self.params.lmbda < 1

    def collect(self, ctx: Context) -> Rollouts:
        if ctx.rng("data").random() < self.params.lmbda:
            return ctx.rollout(Student(ctx.training.temperature))
        if self.params.data == "solutions":
            return ctx.demonstrations()
        return ctx.rollout(Teacher(ctx.training.teacher_temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        teacher, student = rows.pair()
        if self.params.divergence == "forward_kl":
            return Loss(forward_kl(teacher, student))
        if self.params.divergence == "reverse_kl":
            return Loss(reverse_kl(teacher, student))
        return Loss(generalized_jsd(teacher, student, self.params.beta))
