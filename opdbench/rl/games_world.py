"""The world of a task that is several games: each is a `ControlWorld`, and one student plays them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace as replaced
from functools import partial
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from opdbench import seeds
from opdbench.actors import Actor
from opdbench.errors import UserError
from opdbench.oracle import Oracle
from opdbench.policy import Policy
from opdbench.replay import GAME
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.convolutional import RUSU
from opdbench.rl.games import Form, MarkedSimulators
from opdbench.rl.games_policy import (
    Architecture,
    ByGame,
    GamesPolicy,
    OneGame,
    TeacherOfEach,
    VectorArchitecture,
    VectorNetwork,
)
from opdbench.rl.policy import ControlPolicy
from opdbench.rl.simulators import Simulators, make_simulators
from opdbench.rl.table import TablePolicy
from opdbench.rl.world import ControlWorld, check_fits, evaluate
from opdbench.rollouts import Rollouts
from opdbench.task import ControlTask, Split
from opdbench.world import Outcome


class GamesWorld:
    """`World` for several games at once."""

    domain: Literal["lm", "rl"] = "rl"
    bridge: None = None
    oracle: None = None
    prompts: None = None

    def __init__(self, task: ControlTask, student: ByGame, teacher: ByGame | None, *, seed: int) -> None:
        """
        Args:
            task: one that has `games`.
            student, teacher: policies over their marked states.
            seed: the run's seed.

        Raises:
            UserError: the games cannot be played by one policy, or the student is for others.
        """
        self.task, self.student, self.teacher = task, student, teacher
        self.games = task.games()
        self.form = Form.of(self.games)
        if isinstance(student, GamesPolicy):
            student.check_fits(self.form, f"student on {task.id}")
        self.worlds = [
            ControlWorld(game, OneGame(student, number), None if teacher is None else OneGame(teacher, number),
                         seed=seeds.derive(seed, "game", number), make=partial(marked, self.form, number))
            for number, game in enumerate(self.games)]

    def rollout(self, actor: Actor, *, n: int, horizon: int, generator: Generator, repeat: int = 1,
                problems: Sequence[int] | None = None) -> Rollouts:
        """As many trajectories of every game, or those of the games whose numbers are in `problems`; game by game.

        Besides the columns of a `ControlWorld`, `game` [B] is the number of each trajectory's game, and so is
        `example`: a game is what there is to choose.
        """
        if problems is None and n % len(self.games):
            raise UserError(f"a batch of {n} trajectories cannot be divided evenly among {len(self.games)} games",
                            f"--set batch={max(1, n // len(self.games)) * len(self.games)}")
        shares = Counter(problems) if problems is not None else dict.fromkeys(range(len(self.games)),
                                                                             n // len(self.games))
        parts: list[Rollouts] = []
        for number in sorted(shares):
            part = self.worlds[number].rollout(actor, n=shares[number], horizon=horizon, generator=generator,
                                               repeat=repeat)
            game_b = torch.full_like(part.length_b, number)
            group_b = part.columns["group"] + sum(other.n_trajectories for other in parts)
            parts.append(part.with_columns(per_trajectory={GAME: game_b, "example": game_b, "group": group_b}))
        return Rollouts.cat(parts)

    def demonstrations(self, *, n: int, generator: Generator) -> Rollouts:
        """Control tasks have none."""
        return self.worlds[0].demonstrations(n=n, generator=generator)

    def separable(self, rollouts: Rollouts) -> Rollouts:
        """Every row alone: an observation is a whole state."""
        return rollouts.flatten()

    @torch.no_grad()
    def teacher_features(self, rollouts: Rollouts) -> Tensor:
        if self.teacher is None:
            raise UserError(f"this run on {self.task.id} has no teacher", "pass one with --teacher")
        device = next(self.teacher.parameters()).device
        return self.teacher.features(rollouts.input_bt.to(device), rollouts.length_b.to(device))

    def evaluate(self, policy: Policy | Oracle, *, split: Split, mode: Literal["greedy", "sampled"], n: int | None,
                 seed: int) -> list[Outcome]:
        """`n` episodes of every game (the task's number when None): those that the game alone would be played in.

        A score is the return between that of random play, 0, and the yardstick's, 100; so the mean over episodes is
        the mean over games. The return itself is in `extra`, as the statistics of a figure with the game's name.
        """
        assert isinstance(policy, ByGame)
        outcomes = []
        for number, game in enumerate(self.games):
            found = evaluate(game, OneGame(policy, number), split=split, mode=mode, seed=seed,
                             n=self.task.evaluation_episodes if n is None else n,
                             make=partial(marked, self.form, number))
            outcomes += [self._scored(outcome, game) for outcome in found]
        return outcomes

    def _scored(self, outcome: Outcome, game: ControlTask) -> Outcome:
        assert game.yardstick is not None  # checked when the task was made
        low, high = game.yardstick
        extra = {f"sum.{other.name}.{part}": value if other is game else 0.0 for other in self.games
                 for part, value in (("hits", outcome.score), ("of", 1.0))}
        return outcome._replace(id=f"{game.name}/{outcome.id}", extra=extra,
                                score=100 * (outcome.score - low) / (high - low))

    def state_dict(self) -> dict[str, Any]:
        return {str(number): world.state_dict() for number, world in enumerate(self.worlds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for number, world in enumerate(self.worlds):
            world.load_state_dict(state[str(number)])


def marked(form: Form, number: int, game: ControlTask) -> Simulators:
    """A game's simulators, whose states say that it is game `number`."""
    return MarkedSimulators(make_simulators(game), form, number)


def fresh_games_student(task: ControlTask, seed: int, hidden: Sequence[int] | None = None) -> GamesPolicy:
    """The student of a task of several games, initialised from the run's seed: these shared hidden layers; when None,
    the body of the convolutional network that the task names, or `student_hidden`."""
    form, network, controller = Form.of(task.games()), task.student_network(), task.controller() or None
    architecture: Architecture
    if network is not None:
        if hidden is not None:
            raise UserError(f"{task.id} is seen in frames, and a perceptron would not see them",
                            "leave --student out; `--set network=` chooses the body")
        architecture = replaced(RUSU[network], actions=form.actions, controller=controller)
    else:
        widths = tuple(task.student_hidden if hidden is None else hidden)
        if not widths:
            raise UserError(f"the games of {task.id} share the hidden layers of a network, and a table has none",
                            "name some, such as --student fresh:64")
        architecture = VectorArchitecture(form.width, widths, form.actions, controller)
    student = GamesPolicy(form, architecture, generator=seeds.generator(seed, "student"))
    for number, game in enumerate(task.games()):
        if game.student_scale is not None and isinstance(student.network, VectorNetwork):
            scale = torch.ones(form.width)
            scale[:len(game.student_scale)] = 1 / torch.tensor(game.student_scale)
            student.network.scale[number].copy_(scale)
    return student


def teacher_of_each(task: ControlTask, parts: Sequence[Policy]) -> TeacherOfEach:
    """
    Raises:
        UserError: a teacher does not fit its game.
    """
    for game, part in zip(task.games(), parts, strict=True):
        if not isinstance(part, ControlPolicy | TablePolicy | ConvPolicy):
            raise UserError(f"the teacher of {game.id} is no policy of that game alone", "name a model for each game")
        check_fits(part, make_simulators(game), f"teacher on {game.id}")
    return TeacherOfEach(parts, Form.of(task.games()))
