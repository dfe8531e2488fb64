"""Policy distillation: a teacher's Q values, sharpened into targets, on a replay of its own play."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.actors import EpsilonGreedy
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, logit_mse, negative_log_likelihood
from opdbench.replay import Replays
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_ACTION, Rows


class PolicyDistillation(Distiller):
    """What a teacher prefers, and by how much, fits into a far smaller network than the one that learnt it by playing.

        L = E_{s ~ D} l(s),   D = the last `capacity` states of an epsilon-greedy teacher
        kl:   l = KL( softmax(q_T(s) / tau) || softmax(z_S(s)) )
        nll:  l = - log softmax(z_S(s))[argmax_a q_T(s, a)]
        mse:  l = || q_T(s) - z_S(s) ||^2

    q_T are the teacher's outputs (its Q values, or a policy's logits) and z_S the student's. The temperature is on the
    teacher's side alone, and below 1: Q values differ by little, and softened further would say nothing. A constant
    added to all of a state's Q values changes neither kl nor nll. As tau vanishes kl becomes nll.

    Of several games (`--task several:...`: section 3.2) each has its teacher, its own D, and its head of the student; a
    minibatch is of one of them, all equally likely.

    Deviations from the paper:
        AdamW in place of RMSProp. The minibatch is not stated there. Updates follow each round's states at the paper's
        ratio, 10,000 in 54,000, and not in blocks of an hour of play. No-op starts are the task's. Teachers of several
        games play at the same time and not in turns. The online variant, which follows the best teacher so far, is a
        sequence of runs (`opdbench run recipe:online`). For a teacher that is a policy, tau = 1 compares it as it is.
    """

    name: ClassVar[str] = "policy-distillation"
    paper: ClassVar[str] = "Rusu et al., ICLR 2016 (arXiv 1511.06295), section 3.1, eqs. 1 to 3"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"rl"})

    class Params(Distiller.Params):
        target: Literal["kl", "nll", "mse"] = Field("kl", description="which of the three losses")
        tau: float = Field(0.01, gt=0, description="temperature of the teacher in `kl`; the student's is 1")
        epsilon: float = Field(0.05, ge=0, le=1, description="share of random actions while the teacher plays")
        capacity: int = Field(540_000, ge=1, description="states in the replay: 10 hours of play")
        steps_per_update: float = Field(5.4, gt=0, description="environment steps for each update")
        minibatch: int = Field(32, ge=1, description="states a minibatch")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.vanishes_at_teacher = params.target == "mse" or (params.target == "kl" and params.tau == 1)
        self.data = Replays(params.capacity)

    def requires(self) -> Needs:
        return Needs.ACTION if self.params.target == "nll" else Needs.FULL

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(EpsilonGreedy("teacher", self.params.epsilon))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        self.data.add(ctx.separable(ctx.with_logits(rollouts)))
        return rollouts

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        rng = ctx.rng("minibatches")
        for _ in range(max(1, round(rollouts.n_rows / self.params.steps_per_update))):
            yield self.data.sample(self.params.minibatch, rng)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        if self.params.target == "nll":
            return Loss(negative_log_likelihood(rows.student, rows.columns[TEACHER_ACTION]))
        if self.params.target == "mse":
            return Loss(rows.student.logits_na.shape[-1] * logit_mse(rows.teacher, rows.student))
        return Loss(forward_kl(rows.teacher.tempered(self.params.tau), rows.student))

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.data.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data.load_state_dict(state["data"])
