"""Actor-Mimic: the student plays, and is taught both what its teacher would do and what its teacher sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import skip_init

from opdbench.actors import EpsilonGreedy
from opdbench.baselines.policy_distillation import PolicyDistillation
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl
from opdbench.replay import GAME, Replays
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_FEATURES, Rows


class ActorMimic(PolicyDistillation):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """Guidance on the student's own states, and features from which the teacher's can be read, transfer to new tasks.

        L = E_{s ~ D} [ H( softmax(q_T(s) / tau), q(. | s) ) + beta || W h_S(s) + b - h_T(s) ||^2 ]
        D = the last `capacity` states of an epsilon-greedy student

    h are the last hidden layers; W and b are trained along, and thrown away. Of several games (`--task several:...`)
    each has its teacher, its W and b, and an equal share of every minibatch.

    Deviations from the paper:
        The defaults are the official code's: tau 1, beta 0.01, epsilon 0.1, a replay of 100,000, one update every 4
        steps, and the student as the actor, which its script calls better. Minibatches are 32 states in
        all and not 8 of each game, AdamW its usual moments (the code: betas 0.95), training starts at once (the
        code: after 10,000 steps), and each game has a head of its own actions in place of 18 that are masked (the
        same softmax). The logged value is the KL, which has the cross-entropy's gradient.
    """

    name: ClassVar[str] = "actor-mimic"
    paper: ClassVar[str] = "Parisotto, Ba and Salakhutdinov, ICLR 2016 (arXiv 1511.06342), eqs. 3 to 6"
    needs: ClassVar[Needs] = Needs.FULL
    projector: nn.Module
    n_games: int

    class Params(Distiller.Params):
        tau: float = Field(1.0, gt=0, description="temperature of the teacher; the student's is 1")
        beta: float = Field(0.01, ge=0, description="of the regression to the teacher's features")
        epsilon: float = Field(0.1, ge=0, le=1, description="share of random actions while the student plays")
        capacity: int = Field(100_000, ge=1, description="states in the replay")
        steps_per_update: float = Field(4.0, gt=0, description="environment steps for each update")
        minibatch: int = Field(32, ge=1, description="states a minibatch")

    def __init__(self, params: Any) -> None:
        Distiller.__init__(self, params)
        self.vanishes_at_teacher = params.tau == 1 and params.beta == 0  # W starts at zero, even between twins
        self.data = Replays(params.capacity)

    def requires(self) -> Needs:
        return Needs.FULL

    def build(self, ctx: Context) -> None:
        assert ctx.world.teacher is not None
        like = next(ctx.student.parameters())
        self.n_games = max(1, len(ctx.world.task.games()))
        self.projector = skip_init(  # type: ignore[no-untyped-call]  # which would draw from the global random state
            nn.Linear, ctx.student.n_features, self.n_games * ctx.world.teacher.n_features, device=like.device,
            dtype=like.dtype)
        for parameter in self.projector.parameters():
            nn.init.zeros_(parameter)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"projector": self.projector}

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(EpsilonGreedy("student", self.params.epsilon))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        self.data.add(ctx.separable(rollouts))  # with the teacher's features
        return rollouts

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        rng = ctx.rng("minibatches")
        for _ in range(max(1, round(rollouts.n_rows / self.params.steps_per_update))):
            yield self.data.sample_each(self.params.minibatch, rng)

    def _read(self, rows: Rows) -> Tensor:
        """W h_S + b of each row's game [N, H]. Of several games the last feature is the game's number, the same for
        both sides and nothing to learn."""
        guess_nh: Tensor = self.projector(rows.features_nh)
        if GAME not in rows.columns:
            return guess_nh
        row_n = torch.arange(len(guess_nh), device=guess_nh.device)
        guess_nh = guess_nh.view(len(guess_nh), self.n_games, -1)[row_n, rows.columns[GAME]]
        return torch.cat([guess_nh[:, :-1], rows.features_nh[:, -1:].detach()], 1)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        distance_n = forward_kl(rows.teacher.tempered(self.params.tau), rows.student)
        error_n = (self._read(rows) - rows.columns[TEACHER_FEATURES]).square().sum(-1)
        return Loss(distance_n + self.params.beta * error_n, {"teacher_kl": distance_n, "feature_error": error_n})
