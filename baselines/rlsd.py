"""RLSD: the reward says which way, a teacher that knows the answer says where."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from opdbench.baselines.grpo import GRPO
from opdbench.context import Context
from opdbench.copies import SelfTeacher
from opdbench.distiller import Needs
from opdbench.privilege import told
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows
from opdbench.self_taught import SelfTaught
from opdbench.task import NoteKind


class RLSD(SelfTaught, GRPO):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """Self-distillation leaks what only the teacher knows; used as a weight it moves credit and never its direction.

        A_t = A [ (1 - lambda) + lambda clip(w_t, 1 - eps_w, 1 + eps_w) ],   A = (r - mean) / std in the group
        w_t = exp( sign(A) [ log p(y_t | x, answer, y_<t) - log q(y_t | x, y_<t) ] )

    in GRPO's clipped surrogate, without a penalty to a reference. p is the student itself, as it was at most `every`
    steps ago, told the final answer. lambda falls linearly to zero over `decay_steps`: what is left is GRPO.

    Deviations from the paper:
        Its printed algorithm leaves out the policy ratio, without which there would be no gradient.
    """

    name: ClassVar[str] = "rlsd"
    paper: ClassVar[str] = "RLSD 2026 (arXiv 2604.03128), token-level credit from a privileged self-teacher"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    class Params(GRPO.Params):  # type: ignore[misc]
        clip_high: float = Field(0.28, gt=0, description="eps above 1")
        kl_coefficient: float = Field(0.0, ge=0, description="of the penalty to the starting student; none")
        weight: float = Field(0.5, ge=0, le=1, description="lambda at the start")
        decay_steps: int = Field(50, ge=1, description="steps in which lambda falls to zero")
        weight_clip: float = Field(0.2, gt=0, lt=1, description="eps_w: how far from 1 a token's weight may be")
        every: int = Field(10, ge=1, description="steps between two copies of the student as teacher")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.teacher = SelfTeacher(1.0, params.every)

    def reads(self) -> frozenset[NoteKind]:
        return frozenset({"answer"})

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        teacher = self.teacher.of(ctx.student)
        weight = self.params.weight * max(0.0, 1 - ctx.step / self.params.decay_steps)
        rollouts = super().prepare(rollouts, ctx)
        if weight == 0:
            return rollouts
        rollouts = ctx.score_under(rollouts, told(ctx, rollouts, "answer"), Needs.SAMPLED, policy=teacher)
        gap_bt = rollouts.columns[TEACHER_LOGP] - ctx.per_row(rollouts, _logp)
        advantage_bt = weighted(rollouts.columns["advantage"], gap_bt, weight, self.params.weight_clip)
        return rollouts.with_columns(per_step={"advantage": advantage_bt})


def weighted(advantage: Tensor, gap: Tensor, weight: float, limit: float) -> Tensor:
    """A_t, of any shape; `gap` is log p - log q, `weight` lambda and `limit` eps_w."""
    share = (advantage.sign() * gap).exp().clamp(1 - limit, 1 + limit)
    return advantage * ((1 - weight) + weight * share)


def _logp(rows: Rows) -> Tensor:
    return rows.student.logp(rows.action_n)
