"""Supervised fine-tuning on demonstrations; on a control task this is behaviour cloning."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from opdbench.actors import Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import negative_log_likelihood
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class SFT(Distiller):
    """Imitating what the teacher did, in the states that the teacher visited, needs no teacher scores.

        L = - E_{(s, a) ~ D} log q(a | s)

    D is what the teacher writes (or plays), or the task's reference solutions. Errors compound: the student is never
    shown a state that its own mistakes lead to, so its cost may grow with the square of the horizon (Ross and Bagnell
    2010, theorem 2.1).

    Deviations from the paper:
        There is no single one. Demonstrations are drawn fresh from the teacher at each step instead of from a fixed set
        passed over several times, so that the teacher tokens that they cost are on the ledger.
    """

    name: ClassVar[str] = "sft"
    paper: ClassVar[str] = "Pomerleau 1991 (behaviour cloning); Ross and Bagnell, AISTATS 2010, theorem 2.1"
    needs: ClassVar[Needs] = Needs.TEXT

    class Params(Distiller.Params):
        data: Literal["teacher", "solutions"] = Field(
            "teacher", description="demonstrations: the teacher's own samples, or the task's reference solutions")

    def requires(self) -> Needs:
        return Needs.TEXT if self.params.data == "teacher" else Needs.NOTHING

    def collect(self, ctx: Context) -> Rollouts:
        if self.params.data == "solutions":
            return ctx.demonstrations()
        return ctx.rollout(Teacher(ctx.training.teacher_temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(negative_log_likelihood(rows.student, rows.action_n))
