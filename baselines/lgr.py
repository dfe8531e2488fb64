"""LGR: a token is judged by how sure the teacher is of what comes after it, too."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.advantages import EPSILON
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.policy_gradient import importance_sampled
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import TEACHER_FEATURES, Rows


class LGR(Distiller):
    """Where a student is unsure, a step of lookahead tells its candidates apart: after a good one a teacher is sure.

        A_t = log p(y_t) - log q(y_t) + gamma z(y_t),   in a policy gradient
        z(v) = (r(v) - mean r) / std r  over the student's top K,   r(v) = max_w p(w | y_<t, v)

    on the rows where the student's entropy is highest; elsewhere, and for a y_t outside of the top K, z is zero.
    Known: this, with the sign of the paper's A_t turned (it is a cost), and gamma of 1 to 1.5. Missing: K, the entropy
    from which on a row is looked at, and the scale of r.

    Deviations from the paper:
        Ours: K = 4, the fifth of the batch's rows with the highest entropy, gamma = 1.
    """

    name: ClassVar[str] = "lgr"
    paper: ClassVar[str] = "LGR 2026 (arXiv 2605.30833); from notes"
    standing: ClassVar[Standing] = "unspecified"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    vanishes_at_teacher = False  # the lookahead is a reward of its own

    class Params(Distiller.Params):
        approximate: bool = Field(False, description="run it although parts of it are ours")
        gamma: float = Field(1.0, ge=0, description="weight of the lookahead; the paper's are 1 to 1.5")
        top_k: int = Field(4, ge=2, description="K, candidates that are looked at")
        share: float = Field(0.2, ge=0, le=1, description="of the rows, those of the highest entropy")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt, k = rollouts.mask_bt, min(self.params.top_k, ctx.student.n_actions)

        def value(rows: Rows) -> Tensor:
            student = rows.student
            gap_n = rows.teacher_logp_n - student.logp(rows.action_n)
            return torch.cat([gap_n[:, None], student.entropy()[:, None], student.logp_na.topk(k, -1).indices], -1)

        gap_bt, entropy_bt, *candidates = ctx.per_row(rollouts, value).unbind(-1)
        n_looked = int(self.params.share * rollouts.n_rows)
        entropy_bt = entropy_bt.masked_fill(~mask_bt, -torch.inf)
        looked = entropy_bt.flatten().topk(n_looked).indices.sort().values
        advantage_bt = gap_bt.clone()
        if n_looked and self.params.gamma > 0:
            place = looked // mask_bt.shape[1], looked % mask_bt.shape[1]
            candidate_rk = torch.stack(candidates, -1)[place].long()
            z_rk = standardised(self.sureness(rollouts, ctx, *place, candidate_rk))
            bonus_r = torch.where(candidate_rk == rollouts.action_bt[place][:, None], z_rk, 0.0).sum(-1)
            advantage_bt[place] += self.params.gamma * bonus_r.to(advantage_bt.dtype)
        return rollouts.with_columns(per_step={"advantage": advantage_bt, "log_ratio": gap_bt})

    def sureness(self, rollouts: Rollouts, ctx: Context, trajectory_r: Tensor, step_r: Tensor, candidate_rk: Tensor
                 ) -> Tensor:
        """r [R, K]: the teacher's largest probability after each candidate at a step."""
        n, k = candidate_rk.shape
        states = rollouts.select(trajectory_r.repeat_interleave(k))
        after_r, here = step_r.repeat_interleave(k) + 1, torch.arange(n * k, device=step_r.device)
        horizon = int(after_r.max()) + 1
        input_bt = states.input_bt.new_zeros(n * k, horizon)
        shared = min(horizon, states.input_bt.shape[1])
        input_bt[:, :shared] = states.input_bt[:, :shared]
        input_bt[here, after_r] = candidate_rk.flatten()
        source_bt = torch.zeros_like(input_bt, dtype=torch.uint8)
        source_bt[here, after_r] = int(Source.STUDENT)
        blank_bt = torch.zeros_like(input_bt, dtype=torch.float32)
        view = replace(states, input_bt=input_bt, source_bt=source_bt, length_b=after_r + 1, columns={
            "example": states.columns["example"]}, step_columns=frozenset(), action_bt=torch.zeros_like(input_bt),
            behaviour_logp_bt=blank_bt, reward_bt=blank_bt, done_bt=blank_bt.bool())
        features_nh = ctx.score(view, Needs.FULL).columns[TEACHER_FEATURES][view.mask_bt]
        assert ctx.teacher is not None
        size = ctx.execution.rows_at_once(ctx.teacher.n_actions)
        with torch.no_grad():
            parts = [ctx.teacher.project(part).softmax(-1).max(-1).values for part in torch.split(features_nh, size)]
        return torch.cat(parts).view(n, k)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        logq_n, columns = rows.student.logp(rows.action_n), rows.columns
        value_n = importance_sampled(logq_n, rows.behaviour_logp_n, columns["advantage"])
        return Loss(value_n, {"log_ratio": columns["log_ratio"],
                              "lookahead": columns["advantage"] - columns["log_ratio"]})


def standardised(value_rk: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over the candidates; 0 where all are equal."""
    gap_rk = value_rk - value_rk.mean(-1, keepdim=True)
    return gap_rk / (value_rk.std(-1, correction=0, keepdim=True) + EPSILON)
