"""What methods share whose teacher is the student itself, told something more."""

from __future__ import annotations

from typing import Any, ClassVar

from opdbench.context import Context
from opdbench.copies import SelfTeacher
from opdbench.distiller import Distiller, Needs


class SelfTaught(Distiller):
    """A method that asks nobody but a copy of its student (`self.teacher`), which follows the student step by step.

    `__init__` says how fast by making the `SelfTeacher`; `prepare` asks it with
    `ctx.score_under(rollouts, prompts, policy=self.teacher.of(ctx.student))`.
    """

    needs: ClassVar[Needs] = Needs.NOTHING
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    own_teacher: ClassVar[bool] = True
    teacher: SelfTeacher

    def after_step(self, ctx: Context) -> None:
        super().after_step(ctx)
        self.teacher.follow(ctx.student, ctx.step + 1)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.teacher.load_state_dict(state["teacher"])
