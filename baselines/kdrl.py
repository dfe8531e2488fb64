"""KDRL: reinforcement learning and distillation in one objective, on one batch of the student's samples."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from opdbench.baselines.grpo import GRPO
from opdbench.context import Context
from opdbench.distiller import Loss, Needs
from opdbench.estimators import k2
from opdbench.rows import TEACHER_LOGP, Rows


class KDRL(GRPO):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """A verifier says which answers are right, a teacher says why; one gradient can follow both.

        L = L_GRPO + beta E_{y ~ q} sum_t k2(q, p)(y_t),   k2 = 1/2 (log q(y_t) - log p(y_t))^2

    k2 is differentiated directly: on policy its gradient is that of the reverse KL (opdbench.estimators). With beta = 0
    this is GRPO without a reference model. beta may fall linearly over the budget, from `teacher` to `teacher_final`.

    Deviations from the paper:
        The paper anneals beta by 5e-5 a step from 5e-3 to 1e-3; here it follows the budget, whatever its length, and
        is constant by default. No reward-guided masking of the teacher's term (the paper's variants).
    """

    name: ClassVar[str] = "kdrl"
    paper: ClassVar[str] = "Xu et al. 2025 (arXiv 2506.02208), joint objective with the k2 estimator"
    needs: ClassVar[Needs] = Needs.SAMPLED

    class Params(GRPO.Params):  # type: ignore[misc]
        kl_coefficient: float = Field(0.0, ge=0, description="of the penalty to the starting student; none")
        teacher: float = Field(2e-3, ge=0, description="beta, weight of the teacher's term")
        teacher_final: float | None = Field(None, ge=0, description="beta at the budget's end; None: constant")

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        reward = super().loss(rows, ctx)
        params, start = self.params, self.params.teacher
        end = start if params.teacher_final is None else params.teacher_final
        weight = start + (end - start) * ctx.progress
        distance_n = k2(rows.student.logp(rows.action_n), rows.columns[TEACHER_LOGP])
        return Loss(reward.value_n + weight * distance_n, {**reward.scalars, "teacher_k2": distance_n})
