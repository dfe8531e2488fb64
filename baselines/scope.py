"""SCOPE: right answers are learnt, wrong ones corrected by the teacher, each weighted by a perplexity."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.advantages import masked
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.policy_gradient import importance_sampled
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows
from opdbench.weights import shares_within


class SCOPE(Distiller):
    """Reinforce what was right where the student was unsure of it; correct what was wrong where the teacher is sure.

        L = sum_{i right} w_i L_MLE(y_i) + sum_{i wrong} w_i L_OPD(y_i)
        L_MLE = - sum_t rho_t,   L_OPD = - sum_t rho_t (log p(y_t) - log q_old(y_t)),   rho = q / q_old
        w_i ~ PPL_q(y_i)^(1 / tau) among a prompt's right answers, and ~ PPL_p(y_i)^(-1 / tau) among its wrong ones

    Weights are constants and add up to one in each set. PPL = exp(- mean_t log-probability). A prompt whose answers are
    all right has no second set, and one whose answers are all wrong no first.

    Deviations from the paper:
        The default is the paper's text. The official code differs (`--preset code`): right answers of *low* perplexity
        count more (its sign switch), and weights average one in a set instead of adding up to one. Which of the two
        made the published numbers is not known. Sums over tokens are `--set reduction=sum`; by default the loop takes
        the mean over all tokens, as the code does.
    """

    name: ClassVar[str] = "scope"
    paper: ClassVar[str] = "SCOPE, 2026 (arXiv 2604.10688), dual-path objective and perplexity weights"
    needs: ClassVar[Needs] = Needs.SAMPLED
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})  # a verifier's verdict, and answers to one prompt
    presets: ClassVar[dict[str, dict[str, Any]]] = {"code": {"unsure_first": False, "average_one": True}}
    vanishes_at_teacher = False  # right answers are learnt whoever teaches

    class Params(Distiller.Params):
        group: int = Field(8, ge=1, description="answers to each prompt; divides the batch")
        tau: float = Field(1.0, gt=0, description="temperature of the weights; infinity is uniform")
        unsure_first: bool = Field(True, description="right answers that the student is unsure of count more")
        average_one: bool = Field(False, description="weights average one within a set instead of adding up to one")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature), repeat=self.params.group)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt = rollouts.mask_bt
        right_b = masked(rollouts.reward_bt, mask_bt).sum(1) > 0.5
        weight_b = self.weights(rollouts, right_b)
        ratio_bt = masked(rollouts.columns[TEACHER_LOGP] - rollouts.behaviour_logp_bt, mask_bt)
        advantage_bt = weight_b[:, None] * ratio_bt.masked_fill(right_b[:, None] & mask_bt, 1.0)
        ctx.note("right", right_b.double().mean())
        return rollouts.with_columns(per_step={"advantage": advantage_bt, "log_ratio": ratio_bt})

    def weights(self, rollouts: Rollouts, right_b: Tensor) -> Tensor:
        """w [B]."""
        student_b, teacher_b = (_mean(logp_bt, rollouts.mask_bt) for logp_bt in (
            rollouts.behaviour_logp_bt, rollouts.columns[TEACHER_LOGP]))
        own_b = -student_b if self.params.unsure_first else student_b
        set_b = 2 * rollouts.columns["group"] + right_b
        weight_b = shares_within(own_b.where(right_b, teacher_b) / self.params.tau, set_b)
        if not self.params.average_one:
            return weight_b
        return weight_b * (set_b[:, None] == set_b[None, :]).sum(1)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        value_n = importance_sampled(rows.student.logp(rows.action_n), rows.behaviour_logp_n, rows.columns["advantage"])
        return Loss(value_n, {"sampled_reverse_kl": -rows.columns["log_ratio"]})


def _mean(value_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """Over the decisions of each trajectory [B]."""
    return masked(value_bt, mask_bt).sum(1) / mask_bt.sum(1).clamp(min=1)
