"""REOPOLD: on-policy distillation as policy optimisation, with a floor, a gate, and two phases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from opdbench.actors import Student
from opdbench.advantages import log_ratio
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.policy_gradient import importance_sampled
from opdbench.replay import epochs
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows
from opdbench.weights import only, quantile


class REOPOLD(Distiller):
    """A few very negative log-ratios ruin the gradient; first leave them out, then look only where the student wavers.

        maximise  sum_t rho_t R_t M_t / sum_t M_t,   R_t = max( l_t, floor ),   l_t = log p(y_t) - log q_old(y_t)
        floor = log(lambda) / (1 - lambda);   rho = q / q_old
        first third of the run:  M_t = 1[ l_t >= floor ]
        then:                    M_t = 1[ H(q) in the batch's top share beta ]

    The floor is -1.72 at lambda = 0.3, tends to -1 as lambda -> 1, and falls away as lambda -> 0. Ratios are not
    clipped.

    Deviations from the paper:
        When to switch is told as a share of the budget; the paper's tables have a step for each model, about a third.
        `--preset agentic` is its setting for agents.
    """

    name: ClassVar[str] = "reopold"
    paper: ClassVar[str] = "REOPOLD, 2026 (arXiv 2603.11137), relaxed on-policy distillation"
    needs: ClassVar[Needs] = Needs.SAMPLED
    presets: ClassVar[dict[str, dict[str, Any]]] = {"agentic": {"share": 0.4, "switch": 0.25}}

    class Params(Distiller.Params):
        mixture: float = Field(0.3, gt=0, lt=1, description="lambda, which the floor is made of")
        share: float = Field(0.2, gt=0, le=1, description="beta, the share of tokens in the second phase")
        switch: float = Field(1 / 3, ge=0, le=1, description="where the second phase begins, as a share of the budget")
        minibatches: int = Field(4, ge=1, description="updates a batch (the paper: 128 answers, 32 an update)")

    @property
    def floor(self) -> float:
        return float(math.log(self.params.mixture) / (1 - self.params.mixture))

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt = rollouts.mask_bt
        ratio_bt = log_ratio(rollouts.columns[TEACHER_LOGP], rollouts.behaviour_logp_bt, mask_bt)
        if ctx.progress < self.params.switch:
            keep_bt = (ratio_bt >= self.floor) & mask_bt
        else:
            entropy_bt = ctx.per_row(rollouts, lambda rows: rows.student.entropy())
            keep_bt = (entropy_bt >= quantile(entropy_bt[mask_bt], 1 - self.params.share)) & mask_bt
        ctx.note("tokens_kept", keep_bt.sum() / rollouts.n_rows)
        columns = {"log_ratio": ratio_bt, "advantage": ratio_bt.clamp(min=self.floor)}
        return only(rollouts.with_columns(per_step=columns), keep_bt)

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        return epochs(rollouts, 1, self.params.minibatches, ctx.rng("minibatches"))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        value_n = importance_sampled(rows.student.logp(rows.action_n), rows.behaviour_logp_n, rows.columns["advantage"])
        return Loss(value_n, {"sampled_reverse_kl": -rows.columns["log_ratio"]})
