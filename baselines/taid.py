"""TAID: a target that moves from the student to the teacher, faster while the student keeps up."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class TAID(Distiller):
    """A student that is far from its teacher learns better from targets in between.

        L = E_y sum_t KL( p_t || q ),   p_t = softmax( (1 - t) sg[ z_q ] + t z_p )   with z the logits
        m <- beta m + (1 - beta) (previous L - L) / previous L
        t <- min( t_end, max( linear, t + alpha sigmoid(m) (1 - t) ) )

    t rises from t_start to t_end over the budget at least linearly, and faster after the loss has fallen. At t = 0 the
    target is the student itself and there is no gradient; at t = 1 it is forward KL to the teacher.

    Deviations from the paper:
        The data are by default the teacher's fresh samples rather than a fixed set (`data=solutions`), so that control
        tasks have them too; `data=student` is on-policy. No cross-entropy with the data is added.
    """

    name: ClassVar[str] = "taid"
    paper: ClassVar[str] = "Shing et al., ICLR 2025 (arXiv 2501.16937), eqs. of section 3, algorithm 1; official code"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        t_start: float = Field(0.4, ge=0, le=1, description="t at the beginning")
        t_end: float = Field(1.0, ge=0, le=1, description="and at the end")
        alpha: float = Field(5e-4, ge=0, description="speed of the adaptive part")
        beta: float = Field(0.99, ge=0, lt=1, description="momentum of the relative fall of the loss")
        data: Literal["teacher", "solutions", "student"] = Field(
            "teacher", description="states: the teacher's samples, the task's reference solutions, the student's own")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.t, self.momentum = params.t_start, 0.0
        self.previous = self.measured = 0.0  # losses, of the last step and of this one

    def collect(self, ctx: Context) -> Rollouts:
        if self.params.data == "solutions":
            return ctx.demonstrations()
        if self.params.data == "student":
            return ctx.rollout(Student(ctx.training.temperature))
        return ctx.rollout(Teacher(ctx.training.teacher_temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        self.measured = float(ctx.per_row(rollouts, self.distance).sum() / rollouts.n_rows)
        ctx.note("t", self.t)
        return rollouts

    def distance(self, rows: Rows) -> Tensor:
        """L in every row, at the present t."""
        teacher, student = rows.pair()
        target = Categorical(torch.lerp(student.logits_na.detach(), teacher.logits_na, self.t))
        return forward_kl(target, student)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(self.distance(rows))

    def after_step(self, ctx: Context) -> None:
        params = self.params
        linear = params.t_start + (params.t_end - params.t_start) * ctx.progress
        if self.previous > 0:  # neither the first step, nor one that left nothing to fall
            fall = (self.previous - self.measured) / self.previous
            self.momentum = params.beta * self.momentum + (1 - params.beta) * fall
            step = params.alpha * sigmoid(self.momentum) * (1 - self.t)
            self.t = max(self.t, min(params.t_end, max(linear, self.t + step)))
        self.previous = self.measured

    def state_dict(self) -> dict[str, Any]:
        return {"t": self.t, "momentum": self.momentum, "previous": self.previous}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.t, self.momentum, self.previous = (float(state[name]) for name in ("t", "momentum", "previous"))


def sigmoid(x: float) -> float:
    return (1 + math.tanh(x / 2)) / 2  # which does not overflow, however far the loss has risen
