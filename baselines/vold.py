"""VOLD: reinforcement learning, and the teacher's distribution where an answer earned nothing."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from opdbench.baselines.grpo import GRPO
from opdbench.context import Context
from opdbench.distiller import Loss, Needs, Standing
from opdbench.divergences import forward_kl
from opdbench.privilege import outcome
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class VOLD(GRPO):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """A reward teaches where the student can succeed at all; where it fails, a teacher's distribution still can.

        L = L_GRPO + weight E_{y ~ q} [ (1 - r(y)) sum_t KL( p(. | y_<t) || q(. | y_<t) ) ]

    Known: both terms and the factor 1 - r. Missing: the weight, how tokens are averaged, and whether the expectation is
    over the student's answers or the teacher's.

    Deviations from the paper:
        Ours: a weight of 0.1, the mean over all tokens of the batch, on the student's answers, and no penalty to the
        starting student.
    """

    name: ClassVar[str] = "vold"
    paper: ClassVar[str] = "VOLD 2025 (arXiv 2510.23497); from notes"
    standing: ClassVar[Standing] = "unspecified"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    class Params(GRPO.Params):  # type: ignore[misc]
        approximate: bool = Field(False, description="run it although parts of it are ours")
        kl_coefficient: float = Field(0.0, ge=0, description="of the penalty to the starting student; none")
        weight: float = Field(0.1, ge=0, description="of the teacher's term")

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        missing_b = (1 - outcome(rollouts)).clamp(0, 1)
        prepared: Rollouts = super().prepare(rollouts, ctx)
        return prepared.with_columns(per_trajectory={"missing": missing_b})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        reward, distance_n = super().loss(rows, ctx), forward_kl(*rows.pair())
        value_n = reward.value_n + self.params.weight * rows.columns["missing"] * distance_n
        return Loss(value_n, {**reward.scalars, "teacher_kl": distance_n})
