"""Behaviour cloning: supervised learning on what the teacher did, kept and gone over again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.actors import Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, negative_log_likelihood
from opdbench.replay import Aggregate
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_ACTION, Rows


class BehaviourCloning(Distiller):
    """A teacher's demonstrations make a supervised problem, whose errors compound once the student acts on its own.

        D = {(s, a) : a ~ p(. | s), s visited by p}
        L = E_{(s, a) ~ D} [ - log q(a | s) - entropy H(q(. | s)) ]

    The demonstrations are kept, and every round trains on minibatches of all of them. `labels=mode` learns the
    teacher's most likely action in the visited states in place of the one that it took, `labels=soft` its whole
    distribution: that is teacher-driven distillation, and needs more of the teacher than demonstrations.

    Deviations from the paper:
        There is no single one; defaults are those of the `imitation` library (minibatches of 32, entropy weight 1e-3,
        no weight penalty). Demonstrations grow round by round, so that their cost is on the ledger and on the curve.
    """

    name: ClassVar[str] = "bc"
    paper: ClassVar[str] = "Pomerleau 1991 (behaviour cloning); Gleave et al. 2022, imitation (arXiv 2211.11972)"
    needs: ClassVar[Needs] = Needs.TEXT
    domains: ClassVar[frozenset[str]] = frozenset({"rl"})
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        labels: Literal["action", "mode", "soft"] = Field(
            "action", description="the action that was taken, the teacher's most likely one, or its distribution")
        greedy: bool = Field(False, description="the demonstrator takes its most likely action")
        entropy: float = Field(1e-3, ge=0, description="of the bonus for the student's entropy")
        replay_ratio: float = Field(1.0, gt=0, description="states trained on for each one that a round adds")
        minibatch: int = Field(32, ge=1, description="states a minibatch")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.vanishes_at_teacher = params.labels == "soft" and params.entropy == 0
        self.data = Aggregate()

    def requires(self) -> Needs:
        return {"action": Needs.TEXT, "mode": Needs.ACTION, "soft": Needs.FULL}[self.params.labels]

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Teacher(0.0 if self.params.greedy else ctx.training.teacher_temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        self.data.add(ctx.separable(rollouts))
        return rollouts

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        rng = ctx.rng("minibatches")
        for _ in range(max(1, round(self.params.replay_ratio * rollouts.n_rows / self.params.minibatch))):
            yield self.data.sample(self.params.minibatch, rng)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        if self.params.labels == "soft":
            value_n = forward_kl(*rows.pair())
        else:
            label_n = rows.action_n if self.params.labels == "action" else rows.columns[TEACHER_ACTION]
            value_n = negative_log_likelihood(rows.student, label_n)
        if self.params.entropy > 0:
            value_n = value_n - self.params.entropy * rows.student.entropy()
        return Loss(value_n)

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.data.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data.load_state_dict(state["data"])
