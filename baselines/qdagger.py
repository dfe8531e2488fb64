"""QDagger: reincarnating a policy in a Q-network, by distillation that fades as the student catches up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.actors import EpsilonGreedy
from opdbench.baselines.dqn import DQN
from opdbench.context import Context
from opdbench.distiller import Loss, Needs
from opdbench.divergences import forward_kl
from opdbench.episodes import EpisodeReturns
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class QDagger(DQN):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """A student of any form can be weaned off a teacher of any other: first on its data, then on the student's own.

        L = L_TD + lambda_t c KL( softmax(z_T / tau) || softmax(Q / tau) )
        lambda_t = max(0, 1 - (G_S - G_0) / (G_T - G_0)),   and 0 once the share `until` of the budget is spent

    For the share `pretraining` of the budget the teacher plays, and lambda is 1. Then the student does. G_S and G_T are
    the mean returns of the last episodes of either.

    Deviations from the paper:
        G_0 is a random policy's return there; here it is the lowest that any episode had, unless `random_return` says
        otherwise, so that no game needs a table of scores. CleanRL divides by G_T alone, no share where returns
        are negative. The learning rate does not fall with lambda. The teacher's data are fresh play, with the student's
        epsilon, and not its training's replay; it is asked once for every state, and not for every minibatch. With
        coefficient 0 and no pretraining this is `dqn` to the bit.
    """

    name: ClassVar[str] = "qdagger"
    paper: ClassVar[str] = "Agarwal et al., NeurIPS 2022 (arXiv 2206.01626), section 4.1, eq. 2; the authors' gin files"
    needs: ClassVar[Needs] = Needs.FULL
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"gym": {
        **DQN.presets["gym"], "tau": 1.0, "coefficient": 1.0, "epsilon": 0.04}}

    class Params(DQN.Params):  # type: ignore[misc]
        n_step: int = Field(3, ge=1, description="n, rewards before bootstrapping")
        epsilon: float = Field(0.01, ge=0, le=1, description="share of random actions")
        exploration: float = Field(0.0, ge=0, le=1, description="share of the budget over which it falls from 1")
        target_update: int = Field(8_000, ge=1, description="environment steps between copies of the target network")
        coefficient: float = Field(3.0, ge=0, description="c, of the teacher's term")
        tau: float = Field(0.1, gt=0, description="temperature of both sides in the teacher's term")
        pretraining: float = Field(0.2, ge=0, lt=1, description="share of the budget in which the teacher plays")
        decay: Literal["returns", "linear"] = Field(
            "returns", description="lambda after that: by the student's returns, or linear to 0 at `until`")
        until: float = Field(0.7, gt=0, le=1, description="share of the budget after which lambda is 0")
        random_return: float | None = Field(None, description="G_0; None: the lowest return so far")
        window: int = Field(50, ge=1, description="episodes that a mean return is taken over")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.teacher_returns, self.student_returns = EpisodeReturns(params.window), EpisodeReturns(params.window)
        self.weight = 1.0  # lambda_t, of this round

    def teacher_plays(self, ctx: Context) -> bool:
        return bool(ctx.progress < self.params.pretraining)

    def collect(self, ctx: Context) -> Rollouts:
        if self.teacher_plays(ctx):
            return ctx.rollout(EpsilonGreedy("teacher", self.params.epsilon))
        played: Rollouts = super().collect(ctx)
        return played

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        if self.teacher_plays(ctx):
            self.teacher_returns.add(rollouts)
        else:
            if ctx.step > 0 and not self.student_returns.started:
                self.student_returns.join(rollouts)
            self.student_returns.add(rollouts)
            self.weight = self.next_weight(ctx.progress)
        prepared: Rollouts = super().prepare(rollouts, ctx)
        return prepared

    def next_weight(self, progress: float) -> float:
        """lambda_t."""
        params, student, teacher = self.params, self.student_returns, self.teacher_returns
        if progress >= params.until:
            return 0.0
        if params.decay == "linear":
            return float((params.until - progress) / (params.until - min(params.pretraining, progress)))
        if student.mean is None or teacher.mean is None:
            return 1.0
        lowest = [side.lowest for side in (student, teacher) if side.lowest is not None]
        random = min(lowest) if params.random_return is None else params.random_return
        if teacher.mean <= random:
            return 1.0  # a teacher no better than chance gives no scale
        return min(1.0, max(0.0, 1 - (student.mean - random) / (teacher.mean - random)))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        error: Loss = super().loss(rows, ctx)
        weight = self.weight * self.params.coefficient
        if weight == 0:
            return error
        distance_n = forward_kl(rows.teacher.tempered(self.params.tau), rows.student.tempered(self.params.tau))
        return Loss(error.value_n + weight * distance_n, {**error.scalars, "teacher_kl": distance_n})

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "weight": self.weight, "teacher_returns": self.teacher_returns.state_dict(),
                "student_returns": self.student_returns.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.weight = state["weight"]
        self.teacher_returns.load_state_dict(state["teacher_returns"])
        self.student_returns.load_state_dict(state["student_returns"])
