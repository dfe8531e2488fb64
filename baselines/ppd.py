"""Proximal policy distillation: PPO with the teacher inside of its surrogate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from opdbench.baselines.ppo import PPO
from opdbench.context import Context
from opdbench.distiller import Loss, Needs
from opdbench.divergences import forward_kl
from opdbench.rows import Rows


class PPD(PPO):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """Several proximal passes over the student's samples distil more of each; rewards may lead past the teacher.

        L = L_PPO + lambda E_{s, a ~ q_old} [ KL(p || q)(s) max(rho, 1 - eps) ],   rho = q(a | s) / q_old(a | s)

    In a first pass rho is 1 and the second term is lambda KL(p || q), in value and in expected gradient. Later a row
    whose action has become rarer than 1 - eps of what it was counts with the constant weight 1 - eps.

    Deviations from the paper:
        lambda is 0.5, 1, 2 or 5 in the paper, with little effect; here 1. The critic starts from nothing, as there.
        Minibatches are shares of a batch; the paper's are 512 of 18 x 64 states. Its rewards are normalised by their
        running deviation, which is left to the task. With weight 0 this is `ppo` to the bit.
    """

    name: ClassVar[str] = "ppd"
    paper: ClassVar[str] = "Spigler, TMLR 2025 (arXiv 2407.15134), section 3, eqs. 3 to 5"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"code": {"weight": 2.0, "entropy": 0.01}}  # its example

    class Params(PPO.Params):  # type: ignore[misc]
        weight: float = Field(1.0, ge=0, description="lambda, of the teacher's term")
        discount: float = Field(0.999, gt=0, le=1, description="gamma, of later rewards")
        gae: float = Field(0.9, ge=0, le=1, description="lambda of generalised advantage estimation")
        minibatches: int = Field(2, ge=1, description="optimizer steps a pass")

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        reward: Loss = super().loss(rows, ctx)
        params = self.params
        if params.weight == 0:
            return reward
        ratio_n = (rows.student.logp(rows.action_n) - rows.behaviour_logp_n).exp()
        distance_n = forward_kl(*rows.pair())
        value_n = reward.value_n + params.weight * distance_n * ratio_n.clamp(min=1 - params.clip)
        return Loss(value_n, {**reward.scalars, "teacher_kl": distance_n})
