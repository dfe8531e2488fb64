"""What a solution in the prompt is worth to the student as its own teacher."""

from __future__ import annotations

from typing import Any

from opdbench.context import Context
from opdbench.copies import FrozenCopy
from opdbench.distiller import Needs
from opdbench.errors import UserError
from opdbench.privilege import outcome, told
from opdbench.probes.base import TRAJECTORIES, Look, Probe
from opdbench.rows import TEACHER_LOGP
from opdbench.task import LanguageTask


class ContextGain(Probe):
    """log p(y | x, solution) - log p(y | x) a decision, under the student as it started, on the student's answers: of
    those that are right and of those that are wrong. A context helps a teacher as far as the first exceeds the second.
    (2605.30070 finds that a teacher's context gain predicts what self-distillation gains; its fit is not public, and
    this measure of the gain is ours.)"""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.start = FrozenCopy()

    def begin(self, ctx: Context) -> None:
        task = ctx.world.task
        if not isinstance(task, LanguageTask) or "solution" not in task.notes(task.examples("train")[0]):
            raise UserError(f"probe {self.name} tells a teacher the solution, and {task.id} has none",
                            "leave it out, or choose another task")
        self.start.of(ctx.student)

    def figures(self, look: Look) -> dict[str, float]:
        ctx, start = look.ctx, self.start.of(look.ctx.student)
        few = look.rollouts.select(range(min(4 * TRAJECTORIES, look.rollouts.n_trajectories)))
        plain_bt = ctx.per_row(few, lambda rows: rows.student.logp(rows.action_n), policy=start)
        informed = ctx.score_under(few, told(ctx, few, "solution"), Needs.SAMPLED, policy=start)
        informed_bt = informed.columns[TEACHER_LOGP]
        gain_bt, right_b = informed_bt - plain_bt, outcome(few) >= 0.5
        found = {}
        for name, chosen_b in (("right", right_b), ("wrong", ~right_b)):
            gains_n = gain_bt[few.mask_bt & chosen_b[:, None]]
            if len(gains_n):
                found[name] = float(gains_n.double().mean())
        return {**found, "gain": found["right"] - found["wrong"]} if len(found) == 2 else found

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "start": self.start.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.start.load_state_dict(state["start"])
