"""Half-half: student and teacher share the wheel while the student learns."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from opdbench.actors import Mixture
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class HalfHalf(Distiller):
    """A teacher who takes over now and then shows the student states that it would not have reached alone.

        L = E_{s ~ share * teacher + (1 - share) * student} [ KL(student || teacher)(s) ]

    Deviations from the paper:
        There is no paper: this is an example.
    """

    name: ClassVar[str] = "half-half"
    paper: ClassVar[str] = "an example, unpublished"
    needs: ClassVar[Needs] = Needs.FULL

    class Params(Distiller.Params):
        share: float = Field(0.5, ge=0, le=1, description="the part of the states in which the teacher acts")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Mixture(self.params.share, ctx.training.temperature, ctx.training.teacher_temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(rows.teacher, rows.student))
