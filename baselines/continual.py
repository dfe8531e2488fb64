"""Continual distillation: one student, taught by one teacher after another, with or without a replay of the past."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.actors import Actor, Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.divergences import forward_kl
from opdbench.replay import Replays
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class Continual(Distiller):
    """A student that learns tasks in sequence keeps the earlier ones if their states and targets are replayed.

        L_k = 1/k sum_{j <= k} E_{s ~ D_j} [ KL(p_j(. | s) || q_j(. | s)) ]     replay, in phase k of K
        L_k = E_{s ~ D_k} [ KL(p_k(. | s) || q_k(. | s)) ]                      without

    The games of the task (`several:A+B+...`) have equal shares of the budget, in their order. p_j is the teacher of
    game j, q_j the student with the head of game j; D_j are the last `capacity` states of game j, all of them from its
    own phase, with what the teacher said of them then: no game and no teacher is asked again. A minibatch has as
    many states of each game that was met; when all have been, its gradient is that of learning them together. The
    probe `forgetting` reports forgetting and transfer. A task that is one game has one phase.

    Deviations from the paper:
        Known from others' notes on it: teachers distilled one after another into a mixture of experts, with replay of
        states and teachers' distributions. Here the student is a shared body with a head for each game, teachers
        are given and not trained along, and the sizes of replay and minibatch, who plays and the updates for each step
        were chosen by us.
    """

    name: ClassVar[str] = "continual"
    paper: ClassVar[str] = "Continual policy distillation, 2026 (arXiv 2601.22475)"
    needs: ClassVar[Needs] = Needs.FULL
    standing: ClassVar[Standing] = "from notes"
    domains: ClassVar[frozenset[str]] = frozenset({"rl"})
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        replay: bool = Field(True, description="learn from earlier games' states as well, as many as from the newest's")
        actor: Literal["student", "teacher"] = Field("student", description="who visits the states")
        capacity: int = Field(100_000, ge=1, description="states of each game in the replay")
        steps_per_update: float = Field(16.0, gt=0, description="environment steps for each update")
        minibatch: int = Field(64, ge=1, description="states a minibatch, of all games together")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.data = Replays(params.capacity)

    def collect(self, ctx: Context) -> Rollouts:
        by_student = self.params.actor == "student"
        actor: Actor = Student(ctx.training.temperature) if by_student else Teacher(ctx.training.teacher_temperature)
        if not (n_games := len(ctx.world.task.games())):
            return ctx.rollout(actor)
        return ctx.rollout(actor, problems=[phase(ctx.progress, n_games)] * ctx.training.batch)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        self.data.add(ctx.separable(ctx.with_logits(rollouts)))
        return rollouts

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        rng = ctx.rng("minibatches")
        for _ in range(max(1, round(rollouts.n_rows / self.params.steps_per_update))):
            if self.params.replay:
                yield self.data.sample_each(self.params.minibatch, rng)
            else:
                yield self.data.sample(self.params.minibatch, rng, game=self.data.games[-1])

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(forward_kl(*rows.pair()))

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.data.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data.load_state_dict(state["data"])


def phase(progress: float, n_games: int) -> int:
    """The number of the game that is learnt when this share of the budget is spent."""
    return min(n_games - 1, int(progress * n_games))
