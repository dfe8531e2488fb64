"""DAgger: let the student drive, ask the teacher what it would have done, and train on everything so far."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.actors import Mixture
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, negative_log_likelihood
from opdbench.replay import Aggregate
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_ACTION, Rows


class DAgger(Distiller):
    """Aggregating the teacher's labels in the student's states makes the cost linear in the horizon, not quadratic.

        round i:  act with pi_i = beta_i pi* + (1 - beta_i) pi;  D <- D + {(s, pi*(s)) : s visited};
                  pi <- argmin_pi E_{(s, a*) ~ D} - log pi(a* | s)

    beta_i mixes the teacher in, state by state: `linear` falls from 1 to 0 over `beta_rounds` rounds, `exponential` is
    beta_base^i, `zero` is the paper's parameter-free indicator (teacher in the first round only), `never` leaves the
    student alone. `labels=soft` learns from the teacher's distribution instead of its most likely action. On a
    language model this is ImitKD with aggregation: a trajectory is a completion, the label the teacher's next token.

    Deviations from the paper:
        The paper trains each policy to convergence on D; here a round makes minibatch updates from the current weights,
        as many as `replay_ratio` says for what it added. The last policy is returned, not the best on validation.
    """

    name: ClassVar[str] = "dagger"
    paper: ClassVar[str] = "Ross, Gordon and Bagnell, AISTATS 2011 (arXiv 1011.0686), algorithm 3.1"
    needs: ClassVar[Needs] = Needs.ACTION
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        labels: Literal["hard", "soft"] = Field(
            "hard", description="hard: the teacher's most likely action; soft: its distribution (forward KL)")
        beta: Literal["linear", "exponential", "zero", "never"] = Field(
            "zero", description="schedule of the teacher's share of the roll-ins")
        beta_rounds: int = Field(15, ge=1, description="rounds over which `linear` falls to 0")
        beta_base: float = Field(0.7, gt=0, lt=1, description="p in beta_i = p^i of `exponential`")
        replay_ratio: float = Field(
            0.5, gt=0, description="trajectories (or states) trained on for each one that a round adds")
        minibatch: int = Field(64, ge=1, description="trajectories (or single states, in control tasks) a minibatch")

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.data = Aggregate()
        self._added = 0  # in this round

    def requires(self) -> Needs:
        return Needs.ACTION if self.params.labels == "hard" else Needs.FULL

    def teacher_share(self, round_: int) -> float:
        """beta_i of round i = 0, 1, 2, ..."""
        params = self.params
        shares = {"linear": max(0.0, 1 - round_ / params.beta_rounds), "exponential": params.beta_base**round_,
                  "zero": float(round_ == 0), "never": 0.0}
        return float(shares[params.beta])

    def collect(self, ctx: Context) -> Rollouts:
        beta = self.teacher_share(ctx.step)
        return ctx.rollout(Mixture(beta, ctx.training.temperature, ctx.training.teacher_temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        added = ctx.separable(rollouts)
        self.data.add(added)
        self._added = added.n_trajectories
        return rollouts

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        rng = ctx.rng("minibatches")
        for _ in range(max(1, round(self.params.replay_ratio * self._added / self.params.minibatch))):
            yield self.data.sample(self.params.minibatch, rng)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        if self.params.labels == "soft":
            return Loss(forward_kl(*rows.pair()))
        return Loss(negative_log_likelihood(rows.student, rows.columns[TEACHER_ACTION]))

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.data.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data.load_state_dict(state["data"])
