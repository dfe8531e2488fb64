"""On-policy distillation with the reverse KL: over the whole vocabulary, or as a policy gradient on sampled tokens."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP, Rows


class OPD(Distiller):
    """The reverse KL to the teacher, on the student's own trajectories, is a dense reward that cannot be hacked.

        L = E_{y ~ q} sum_t KL( q(. | y_<t) || p(. | y_<t) )

    `estimator=full` differentiates every state's KL over all actions, with the visited states held fixed.
    `estimator=sampled` sees the teacher only at the sampled action, as in the Thinking Machines post:

        A_t = log p(y_t) - log q_old(y_t),     L = - E sum_t [ q(y_t) / q_old(y_t) ] A_t

    with A_t constant, q_old the sampler, and discount 0: each token is judged for itself. At q = q_old its expected
    gradient is that of `full`, with more variance and a teacher that need reveal one number a token.

    Deviations from the paper:
        At sampling temperatures other than 1, q_old is the tempered sampler and `sampled` does not agree with `full`.
        The post sums over tokens; here the reduction is the run's (`--set reduction=sum` for the post's). Neither
        estimator differentiates which states are visited, nor does the post: against the gradient of the KL between
        whole sequences both are biased by design.
    """

    name: ClassVar[str] = "opd"
    paper: ClassVar[str] = "Lu and Thinking Machines Lab, On-Policy Distillation, 2025 (reverse KL; loss function)"
    needs: ClassVar[Needs] = Needs.FULL

    class Params(Distiller.Params):
        estimator: Literal["full", "sampled"] = Field(
            "full", description="full: KL over all actions; sampled: policy gradient with the log-ratio as advantage")
        coefficient: float = Field(1.0, gt=0, description="factor of the loss (the post's kl_penalty_coef)")

    def requires(self) -> Needs:
        return Needs.FULL if self.params.estimator == "full" else Needs.SAMPLED

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        if self.params.estimator == "full":
            return Loss(self.params.coefficient * reverse_kl(rows.teacher, rows.student))
        # The advantage is constant: differentiating its log q would add noise of mean zero and nothing of the teacher.
        advantage_n = rows.columns[TEACHER_LOGP] - rows.behaviour_logp_n
        ratio_n = (rows.student.logp(rows.action_n) - rows.behaviour_logp_n).exp()
        return Loss(-self.params.coefficient * ratio_n * advantage_n,
                    {"sampled_reverse_kl": -advantage_n, "importance_ratio": ratio_n})
