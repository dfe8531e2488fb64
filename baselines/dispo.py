"""DISPO: importance ratios are clipped apart for right and for wrong answers."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from opdbench.baselines.grpo import GRPO
from opdbench.context import Context
from opdbench.distiller import Loss, Standing
from opdbench.policy_gradient import reinforce
from opdbench.privilege import outcome
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class DISPO(GRPO):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """What a ratio may weigh decides what is learnt: exploring on right answers, not collapsing on wrong ones.

        L = - E sum_t sg[ clip(rho_t, 1 - low_r, 1 + high_r) ] A log q(y_t),   rho_t = q(y_t) / q_old(y_t)
        (low_r, high_r) of its own for r = 1 and for r = 0,   A as in GRPO

    Known: that there are four bounds. Missing: their values, and whether the ratio is held constant.

    Deviations from the paper:
        Ours: the ratio is a constant weight (as in CISPO), right answers between 0.8 and 1.28, wrong ones between 0.8
        and 1.2, four minibatches a batch so that ratios differ from 1, and no penalty to the starting student.
    """

    name: ClassVar[str] = "dispo"
    paper: ClassVar[str] = "DISPO 2026 (arXiv 2602.00983), abstract"
    standing: ClassVar[Standing] = "unspecified"
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    class Params(GRPO.Params):  # type: ignore[misc]
        approximate: bool = Field(False, description="run it although parts of it are ours")
        kl_coefficient: float = Field(0.0, ge=0, description="of the penalty to the starting student; none")
        minibatches: int = Field(4, ge=1, description="optimizer steps a pass")
        clip_low: float = Field(0.2, gt=0, description="low for right answers")
        clip_high: float = Field(0.28, gt=0, description="high for right answers")
        wrong_low: float = Field(0.2, gt=0, description="low for wrong answers")
        wrong_high: float = Field(0.2, gt=0, description="high for wrong answers")

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        prepared: Rollouts = super().prepare(rollouts, ctx)
        return prepared.with_columns(per_trajectory={"right": outcome(rollouts) >= 0.5})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        params, advantage_n, logq_n = self.params, rows.columns["advantage"], rows.student.logp(rows.action_n)
        ratio_n = (logq_n.detach() - rows.behaviour_logp_n).exp()
        right_n = ratio_n.clamp(1 - params.clip_low, 1 + params.clip_high)
        weight_n = torch.where(rows.columns["right"], right_n, ratio_n.clamp(1 - params.wrong_low,
                                                                             1 + params.wrong_high))
        return Loss(reinforce(logq_n, weight_n * advantage_n), {"informative": (advantage_n != 0).double()})
