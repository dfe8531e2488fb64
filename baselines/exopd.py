"""ExOPD (generalised OPD): going past the teacher, along the line from a reference model through it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from opdbench.actors import Student
from opdbench.advantages import log_ratio
from opdbench.context import Context
from opdbench.copies import FrozenCopy
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.policy_gradient import importance_sampled
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows


class ExOPD(Distiller):
    """Distillation is RL with reward log p - log q_ref and a KL penalty to q_ref; more reward goes past the teacher.

        L = - E sum_t [ q(y_t) / q_old(y_t) ] A_t
        A_t = lambda (log p - log q_ref)(y_t) - (log q_old - log q_ref)(y_t)
            = (log p - log q_old)(y_t) + (lambda - 1) (log p - log q_ref)(y_t)

    In every state the optimum is log q = lambda log p + (1 - lambda) log q_ref + const: lambda = 1 is `opd` with any
    reference, lambda = 0 the reference itself, and lambda > 1 extrapolates.

    Deviations from the paper:
        The printed advantage has the opposite sign (a cost). q_ref is the starting student; the paper's other choice,
        the teacher before its own RL ("reward correction"), needs a third model that no task ships. The code's cap of 5
        on importance ratios is left out: with one update a batch they are 1 at sampling temperature 1.
    """

    name: ClassVar[str] = "exopd"
    paper: ClassVar[str] = "G-OPD and ExOPD, 2026 (arXiv 2602.12125), reward extrapolation; official code"
    needs: ClassVar[Needs] = Needs.SAMPLED

    class Params(Distiller.Params):
        extrapolation: float = Field(1.25, ge=0, description="lambda: 1 ends at the teacher, above 1 beyond it")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.reference = FrozenCopy()

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt, teacher_logp_bt = rollouts.mask_bt, rollouts.columns[TEACHER_LOGP]
        ratio_bt = advantage_bt = log_ratio(teacher_logp_bt, rollouts.behaviour_logp_bt, mask_bt)
        if self.params.extrapolation != 1:
            reference_bt = ctx.per_row(rollouts, lambda rows: rows.student.logp(rows.action_n),
                                       policy=self.reference.of(ctx.student))
            reward_bt = log_ratio(teacher_logp_bt, reference_bt, mask_bt)
            advantage_bt = ratio_bt + (self.params.extrapolation - 1) * reward_bt
        return rollouts.with_columns(per_step={"log_ratio": ratio_bt, "advantage": advantage_bt})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        value_n = importance_sampled(rows.student.logp(rows.action_n), rows.behaviour_logp_n, rows.columns["advantage"])
        return Loss(value_n, {"sampled_reverse_kl": -rows.columns["log_ratio"]})

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reference.load_state_dict(state["reference"])
