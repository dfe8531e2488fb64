"""PTD-PO: where a group has wrong answers, the same model with a hint shows where they went wrong."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from opdbench import policy_gradient
from opdbench.baselines.grpo import GRPO
from opdbench.context import Context
from opdbench.distiller import Loss, Needs
from opdbench.divergences import generalized_jsd
from opdbench.estimators import k3
from opdbench.privilege import outcome, told
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_FEATURES, Rows
from opdbench.support import Comparison, Kind
from opdbench.task import NoteKind


class PTDPO(GRPO):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """A hint that does not give the answer away makes the starting model a teacher for exactly the answers that failed.

        L = L_GRPO + 1[r_i = 0 and the group's mean < threshold] c JSD( p(. | x, hint, y_<t) , q(. | x, y_<t) )

    with p the frozen starting student, on both sides' `top_k` actions and "anything else". In groups that are taught so
    there is no penalty to the starting student, which p is. A batch of right answers, or c = 0, is GRPO.

    Deviations from the paper:
        The paper's support is the union of both top k. The code's is the student's (`--preset code`), with a teacher's
        missing entry read as an even share of the rest of 150,000 tokens; here it is known. The code's JSD detaches the
        student's side, so its gradient is exactly zero, and its "forward_kl" is the reverse: neither is copied. The
        JSD's mean is over all rows of the batch, as GRPO's; GSPO and DAPO as the first term are not there.
    """

    name: ClassVar[str] = "ptd-po"
    paper: ClassVar[str] = "PTD-PO 2026 (arXiv 2606.07000), objective; official core_algos.py"
    needs: ClassVar[Needs] = Needs.NOTHING
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    own_teacher: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"code": {"method.support": "student"}, "4b": {"coefficient": 0.5}}

    class Params(GRPO.Params):  # type: ignore[misc]
        kl_coefficient: float = Field(0.01, ge=0, description="of k3 to the starting student, in the other groups")
        coefficient: float = Field(0.05, ge=0, description="c; the paper's 4B model has 0.5")
        threshold: float = Field(1.0, ge=0, description="mean reward of a group from which on it is not taught")
        support: Kind = Field("union", description="actions that are compared: all, or the top_k of whom")
        top_k: int = Field(100, ge=1, description="size of the support")

    def reads(self) -> frozenset[NoteKind]:
        return frozenset({"hint"})

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        reference = self.reference.of(ctx.student)
        rollouts = super().prepare(rollouts, ctx)
        outcome_b, group_b = outcome(rollouts), rollouts.columns["group"]
        mean_b = torch.stack([outcome_b[group_b == group].mean() for group in group_b])
        taught_b = mean_b < self.params.threshold
        wrong_b = taught_b & (outcome_b < 0.5) if self.params.coefficient > 0 else torch.zeros_like(taught_b)
        ctx.note("taught", int(wrong_b.sum()))
        prompts = [prompt if wrong else None
                   for prompt, wrong in zip(told(ctx, rollouts, "hint"), wrong_b.tolist(), strict=True)]
        rollouts = ctx.score_under(rollouts, prompts, policy=reference)
        return rollouts.with_columns(per_trajectory={"taught": taught_b, "wrong": wrong_b})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        params, columns, logq_n = self.params, rows.columns, rows.student.logp(rows.action_n)
        value_n = policy_gradient.grpo(logq_n, rows.behaviour_logp_n, columns["advantage"], low=params.clip_low,
                                       high=params.clip_high)
        if params.kl_coefficient > 0:
            penalty_n = params.kl_coefficient * k3(logq_n, columns["reference_logp"])
            value_n = value_n + penalty_n.masked_fill(columns["taught"], 0.0)
        if TEACHER_FEATURES in columns:
            hinted_n = generalized_jsd(*rows.pair(Comparison(params.support, params.top_k)), 0.5)
            value_n = value_n + params.coefficient * hinted_n.masked_fill(~columns["wrong"], 0.0)
        return Loss(value_n, {"informative": (columns["advantage"] != 0).double()})
