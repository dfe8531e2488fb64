"""TrOPD: the sampled log-ratio where teacher and student agree about the token, a forward KL where they do not."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from opdbench.actors import Handover, Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.policy_gradient import reinforce
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import Rows
from opdbench.support import top_k_forward_kl


class TrOPD(Distiller):
    """Log-ratios can be trusted near the teacher and not far from it; a coin that knows the ratio tells which is which.

        u_t = p(y_t) / q_old(y_t);   accepted with probability min(1, u_t)
        accepted:  L_t = - sg[ log u_t ] log q(y_t)
        rejected:  L_t = F_t,    F_t = sum_{v in top-64(p)} p~(v) log( p~(v) / q(v) ),  p~ renormalised
        prefix:    L_t = .001 F_t

    The teacher writes the first (1 + cos(pi progress)) / 2 of an answer's usual length, the student the rest, so that
    at the end it writes alone. A share TV(p, q) of the student's tokens is rejected in the mean. With p = q there is
    nothing to learn in any of the three.

    Deviations from the paper:
        From notes on the paper and its released recipe, which differ: the recipe (`--preset code`) uses -F_t as the
        advantage of the rejected token, which pushes that token down and pulls nothing up, and the log-ratio log q -
        log p of a prefix token as its advantage, which is no divergence's gradient. An answer's usual length is the
        mean of one batch that the teacher writes at the start (the paper has a reply to each prompt), and at least the
        last step that there is room for is the student's. The environment's reward is left out, as in the recipe.
    """

    name: ClassVar[str] = "tropd"
    paper: ClassVar[str] = "TrOPD, 2026 (arXiv 2606.01249, version 3); released recipe"
    needs: ClassVar[Needs] = Needs.FULL
    standing: ClassVar[Standing] = "from notes"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"code": {"form": "advantages"}}

    class Params(Distiller.Params):
        form: Literal["divergences", "advantages"] = Field(
            "divergences", description="the forward KLs are differentiated (paper), or serve as advantages (recipe)")
        top_k: int = Field(64, ge=1, description="the teacher's likeliest tokens that F is over")
        prefix_weight: float = Field(1e-3, ge=0, description="of the teacher's own tokens")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.reply_length = 0.0

    def collect(self, ctx: Context) -> Rollouts:
        training = ctx.training
        if self.reply_length == 0:
            replies = ctx.rollout(Teacher(training.teacher_temperature))
            self.reply_length = replies.n_rows / replies.n_trajectories
        share = (1 + math.cos(math.pi * ctx.progress)) / 2
        n_steps = min(int(share * self.reply_length), (training.horizon or 1) - 1)
        ctx.note("prefix", n_steps)
        if n_steps == 0:
            return ctx.rollout(Student(training.temperature))
        return ctx.rollout(Handover(n_steps, training.temperature, training.teacher_temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        coin_bt = torch.rand(rollouts.mask_bt.shape, dtype=torch.float64, generator=ctx.generator("accept"))
        return rollouts.with_columns(per_step={"coin": coin_bt.to(rollouts.mask_bt.device)})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        logq_n, weight = rows.student.logp(rows.action_n), self.params.prefix_weight
        log_u_n = rows.teacher_logp_n - rows.behaviour_logp_n
        distance_n = top_k_forward_kl(rows.teacher, rows.student, self.params.top_k)
        if self.params.form == "divergences":
            rejected_n, prefix_n = distance_n, weight * distance_n
        else:
            rejected_n = reinforce(logq_n, -distance_n)
            prefix_n = reinforce(logq_n, weight * (logq_n - rows.teacher_logp_n))
        accepted_n, by_teacher_n = rows.columns["coin"] < log_u_n.exp(), rows.source_n == Source.TEACHER
        value_n = torch.where(accepted_n, reinforce(logq_n, log_u_n), rejected_n)
        return Loss(torch.where(by_teacher_n, prefix_n, value_n), {"accepted": accepted_n.to(logq_n.dtype)})

    def state_dict(self) -> dict[str, Any]:
        return {"reply_length": self.reply_length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reply_length = float(state["reply_length"])
