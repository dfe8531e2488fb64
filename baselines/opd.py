"""On-policy distillation with the reverse KL: over the whole vocabulary, or as a policy gradient on sampled tokens."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench import advantages
from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl
from opdbench.policy_gradient import importance_sampled
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows


class OPD(Distiller):
    """The reverse KL to the teacher, on the student's own trajectories, is a dense reward that cannot be hacked.

        L = E_{y ~ q} sum_t KL( q(. | y_<t) || p(. | y_<t) )

    `estimator=full` differentiates every state's KL over all actions, with the visited states held fixed.
    `estimator=sampled` sees the teacher only at the sampled action, as in the Thinking Machines post:

        L = - E sum_t [ q(y_t) / q_old(y_t) ] A_t,   A_t = sum_{s >= t} discount^(s - t) [ log p(y_s) - log q_old(y_s) ]

    with A_t constant and q_old the sampler. At discount 0, the post's, each token is judged for itself: at q = q_old
    the expected gradient is that of `full`, with more variance and a teacher that need reveal one number a token. At
    discount 1 it is the gradient of the KL between whole sequences, which neither `full` nor discount 0 is: they are
    biased by design, since they do not differentiate which states are visited.

    Deviations from the paper:
        The post has no `full`; it is the default here because it is the same gradient without the sampling of tokens.
        The post's own settings are `--preset code`: sampled, four answers to each prompt, sums over tokens. Groups only
        share a prompt: the post subtracts no mean of theirs. At sampling temperatures other than 1, q_old is the
        tempered sampler and `sampled` does not agree with `full`.
    """

    name: ClassVar[str] = "opd"
    paper: ClassVar[str] = "Lu and Thinking Machines Lab, On-Policy Distillation, 2025 (reverse KL; loss function)"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"code": {"estimator": "sampled", "group": 4, "reduction": "sum"}}

    class Params(Distiller.Params):
        estimator: Literal["full", "sampled"] = Field(
            "full", description="full: KL over all actions; sampled: policy gradient with the log-ratio as advantage")
        coefficient: float = Field(1.0, gt=0, description="factor of the loss (the post's kl_penalty_coef)")
        discount: float = Field(0.0, ge=0, le=1, description="of later log-ratios in an advantage; `sampled` only")
        group: int = Field(1, ge=1, description="answers to each prompt; divides the batch")

    def requires(self) -> Needs:
        return Needs.FULL if self.params.estimator == "full" else Needs.SAMPLED

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature), repeat=self.params.group)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        if self.params.estimator == "full":
            return rollouts
        # The advantage is constant: differentiating its log q would add noise of mean zero and nothing of the teacher.
        mask_bt = rollouts.mask_bt
        reward_bt = advantages.log_ratio(rollouts.columns[TEACHER_LOGP], rollouts.behaviour_logp_bt, mask_bt)
        return rollouts.with_columns(per_step={"log_ratio": reward_bt, "advantage": advantages.reward_to_go(
            reward_bt, mask_bt, rollouts.done_bt, discount=self.params.discount)})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        if self.params.estimator == "full":
            return Loss(self.params.coefficient * reverse_kl(*rows.pair()))
        logq_n = rows.student.logp(rows.action_n)
        value_n = importance_sampled(logq_n, rows.behaviour_logp_n, rows.columns["advantage"])
        return Loss(self.params.coefficient * value_n,
                    {"sampled_reverse_kl": -rows.columns["log_ratio"],
                     "importance_ratio": (logq_n - rows.behaviour_logp_n).exp()})
