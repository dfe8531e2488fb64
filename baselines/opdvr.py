"""OPD with verified rewards: the teacher is followed where it agrees with the verifier, and nowhere else."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from opdbench.actors import Student
from opdbench.advantages import group_normalised
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.errors import UserError
from opdbench.policy_gradient import importance_sampled
from opdbench.privilege import outcome
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows


class OPDVR(Distiller):
    """A teacher's log-ratio is a noisy reward; kept only where its sign is the verifier's, it pulls no wrong way.

        l_t = log p(y_t) - log q(y_t);     A_t = max(l_t, 0) if the answer is right,  - max(- l_t, 0) if it is wrong

    in a policy gradient. On a right answer every q with q <= p on its tokens is a fixed point, so the student may keep
    what it does better than the teacher.

    Deviations from the paper:
        Tokens are averaged over the batch, as in the code; the text sums them (`--set reduction=sum`). `scale=group` is
        its variant with groups: A_t times the size of the group's advantage, as the code has it; the text uses its sign
        only, `scale=sign`, which leaves a group of equal answers out.
    """

    name: ClassVar[str] = "opdvr"
    paper: ClassVar[str] = "OPDVR 2026 (arXiv 2608.24696), advantage; official README and opdvr.sh"
    needs: ClassVar[Needs] = Needs.SAMPLED
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})

    class Params(Distiller.Params):
        group: int = Field(1, ge=1, description="answers to each prompt; divides the batch")
        scale: Literal["none", "group", "sign"] = Field(
            "none", description="factor from the group: none, the size of its advantage, or the size's sign")
        threshold: float = Field(0.5, ge=0, description="a reward from which on an answer is right")

    def collect(self, ctx: Context) -> Rollouts:
        if self.params.group == 1 and self.params.scale != "none":
            raise UserError(f"{self.name}: an answer alone has no group to be scaled by", "--set group=8")
        return ctx.rollout(Student(ctx.training.temperature), repeat=self.params.group)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        outcome_b, group_b = outcome(rollouts), rollouts.columns["group"]
        # Dr. GRPO's advantage: less the mean, not divided by the deviation.
        size_b = group_normalised(outcome_b, group_b, scale=False).abs()
        factor_b = {"none": torch.ones_like(size_b), "group": size_b, "sign": size_b.sign()}[self.params.scale]
        return rollouts.with_columns(per_trajectory={"right": outcome_b >= self.params.threshold, "factor": factor_b})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        logq_n = rows.student.logp(rows.action_n)
        ratio_n = (rows.columns[TEACHER_LOGP] - logq_n).detach()
        agreed_n = torch.where(rows.columns["right"], ratio_n.clamp(min=0), ratio_n.clamp(max=0))
        value_n = importance_sampled(logq_n, rows.behaviour_logp_n, rows.columns["factor"] * agreed_n)
        return Loss(value_n, {"agrees": (agreed_n != 0).double(), "log_ratio": ratio_n})
