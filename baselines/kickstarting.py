"""Kickstarting: reinforcement learning that begins on a teacher's shoulders and is let go."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from opdbench.baselines.ppo import PPO
from opdbench.context import Context
from opdbench.distiller import Loss, Needs
from opdbench.divergences import forward_kl
from opdbench.rows import Rows


class Kickstarting(PPO):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """On the student's own trajectories the teacher is a loss whose weight falls: rewards have the last word.

        L = L_PPO + lambda(t) E_{s ~ q} H(p(. | s), q(. | s))

    t is the share of the budget that is spent. With several teachers the paper adds up lambda_i H(p_i, q); since the
    cross-entropy is linear in its first argument that is Lambda H(sum_i lambda_i p_i / Lambda, q), so they are one
    teacher: `--teacher mix:A=0.7,B=0.3` with `weight` Lambda, to the bit of the gradient. Teachers that disagree are
    averaged, they do not vote.

    Deviations from the paper:
        PPO in place of IMPALA (its section 3.1 says that any actor-critic will do). The paper tunes lambda(t) by
        population-based training, which is `kickstarting-pbt`; here it follows a fixed schedule, by default linear to 0
        over the first half. The logged value is the KL, which has the cross-entropy's gradient. With weight 0 this is
        `ppo` to the bit.
    """

    name: ClassVar[str] = "kickstarting"
    paper: ClassVar[str] = "Schmitt et al. 2018 (arXiv 1803.03835), section 3.1, eqs. 3 and 4"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True

    class Params(PPO.Params):  # type: ignore[misc]
        weight: float = Field(1.0, ge=0, description="lambda at the start, of the teacher's term")
        decay: Literal["linear", "exponential", "constant"] = Field(
            "linear", description="of lambda: to 0 over the share `until` of the budget, by `rate` a round, or none")
        until: float = Field(0.5, gt=0, le=1, description="share of the budget over which `linear` reaches 0")
        rate: float = Field(0.9995, gt=0, lt=1, description="factor a round of `exponential` (NetHack's public code)")

    def teacher_weight(self, ctx: Context) -> float:
        """lambda(t)."""
        params = self.params
        factors = {"linear": max(0.0, 1 - ctx.progress / params.until), "exponential": params.rate**ctx.step,
                   "constant": 1.0}
        return float(params.weight * factors[params.decay])

    def asks(self, ctx: Context) -> Needs:
        return Needs.FULL if self.teacher_weight(ctx) > 0 else Needs.NOTHING

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        reward: Loss = super().loss(rows, ctx)
        weight = self.teacher_weight(ctx)
        if weight == 0:
            return reward
        distance_n = forward_kl(*rows.pair())
        return Loss(reward.value_n + weight * distance_n, {**reward.scalars, "teacher_kl": distance_n})
