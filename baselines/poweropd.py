"""PowerOPD: a difference of powers of probabilities as reward, bounded where the log-ratio is not."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.policy_gradient import reinforce
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows
from opdbench.weights import only


class PowerOPD(Distiller):
    """A bounded reward of the log-ratio's sign keeps unlikely tokens from ruling the gradient.

        L = - E sum_t sg[ r_t ] log q(y_t | y_<t),   r_t = p(y_t)^alpha - q(y_t)^alpha  in [-1, 1]

    r / alpha -> log p - log q as alpha -> 0, which is `opd` with sampled tokens. The larger alpha, the more it is only
    what one of the two is sure of that counts. The token that ends an answer is not trained on (`stop_token`).

    Deviations from the paper:
        alpha = 5 is the official script's; another default of the same code is 0.1 (`--preset mild`). The code's window
        over the response, in which it takes its mean, is the whole response here.
    """

    name: ClassVar[str] = "poweropd"
    paper: ClassVar[str] = "PowerOPD, 2026 (arXiv 2606.17199), power reward; official code"
    needs: ClassVar[Needs] = Needs.SAMPLED
    presets: ClassVar[dict[str, dict[str, Any]]] = {"mild": {"alpha": 0.1}}

    class Params(Distiller.Params):
        alpha: float = Field(5.0, gt=0, description="the power")
        stop_token: bool = Field(False, description="train on the token that ends an answer too (language only)")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        if self.params.stop_token or ctx.world.domain == "rl":
            return rollouts
        return only(rollouts, ~rollouts.done_bt)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        alpha, teacher_logp_n = self.params.alpha, rows.columns[TEACHER_LOGP]
        reward_n = (alpha * teacher_logp_n).exp() - (alpha * rows.behaviour_logp_n).exp()
        return Loss(reinforce(rows.student.logp(rows.action_n), reward_n),
                    {"power_reward": reward_n, "sampled_reverse_kl": rows.behaviour_logp_n - teacher_logp_n})
