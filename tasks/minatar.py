"""MinAtar: five Atari games on a board of ten by ten, with what is on it in a channel a kind of thing."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from opdbench.errors import UserError, unknown
from opdbench.rl.train_teacher import TeacherRecipe
from opdbench.task import ControlTask, Task

if TYPE_CHECKING:
    import gymnasium

GAMES = {"asterix": "asterix", "breakout": "breakout", "freeway": "freeway", "seaquest": "seaquest",
         "space-invaders": "space_invaders"}


class MinAtar(ControlTask):
    """One game of the package, with its own rules: sticky actions and rising difficulty, all six actions.

    The package keeps the last action over the end of an episode, which may then stick into the next one; here every
    episode starts with none, so that it depends on its seed alone.
    """

    name = "minatar"
    argument = "GAME"
    version = 1
    summary = "a small Atari game on a 10 x 10 board, such as minatar:breakout (6 actions)"
    source = "MinAtar (Young and Tian 2019, arXiv 1903.03176)"
    license = "GPL-3.0 (the package, which is not part of opdbench)"
    protocol = ("Undiscounted return of full episodes, cut off at 5,000 steps; an action is repeated with probability "
                "`sticky`. Episode k always starts from the same state; the first episode of each counts.")
    teacher = None  # of the class without a game
    student = None
    env_id = "MinAtar"
    max_episode_steps = 5_000
    student_hidden: ClassVar[Sequence[int]] = (64,)
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "schedule": "linear", "batch": 32, "horizon": 64}
    budget: ClassVar[Mapping[str, float]] = {"steps": 250}
    teacher_recipe = TeacherRecipe(
        steps=3_000_000, n_envs=32, hidden=(256, 256), learning_rate=1e-3,
        ppo={"n_steps": 128, "batch_size": 512, "gae_lambda": 0.95, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.01},
        source="RL Baselines3 Zoo's Atari settings on 32 environments, with a perceptron; not tuned")

    class Params(ControlTask.Params):
        sticky: float = Field(0.1, ge=0, le=1, description="probability that the last action is repeated")
        ramping: bool = Field(True, description="the game becomes harder as it goes on")

    @classmethod
    def named(cls, argument: str) -> type[Task]:
        if argument not in GAMES:
            raise unknown("MinAtar game", argument, GAMES)
        found = super().named(argument)
        found.teacher = f"minatar-{argument}/teacher"
        return found

    def make(self) -> gymnasium.Env[Any, Any]:
        import gymnasium

        game = GAMES.get(self.name.partition(":")[2], "breakout")
        return gymnasium.wrappers.TimeLimit(_environment(game, self.params.sticky, self.params.ramping),
                                            self.max_episode_steps)

    def checksum(self) -> str:
        # The game's rules live in the package; its version is in the record's provenance.
        return sha256(f"{self.id}/{self.max_episode_steps}/{self.params.model_dump_json()}".encode()).hexdigest()


def _environment(game: str, sticky: float, ramping: bool) -> gymnasium.Env[Any, Any]:
    import gymnasium
    import numpy as np

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns that nothing can be drawn without two more packages, which is no matter
    try:
        from minatar import Environment
    except ImportError as error:
        raise UserError("MinAtar is not installed", 'pip install "opdbench[minatar]"') from error
    finally:
        logging.disable(before)

    class Board(gymnasium.Env[Any, Any]):
        def __init__(self) -> None:
            self.render_mode = "rgb_array"
            self.game = Environment(game, sticky_action_prob=sticky, difficulty_ramping=ramping)
            self.observation_space = gymnasium.spaces.Box(0, 1, tuple(self.game.state_shape()), np.uint8)
            self.action_space = gymnasium.spaces.Discrete(self.game.num_actions())

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
                  ) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            if seed is not None:
                self.game.seed(seed % 2**32)
            self.game.last_action = 0
            self.game.reset()
            return self.game.state().astype(np.uint8), {}

        def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            reward, ended = self.game.act(action)
            return self.game.state().astype(np.uint8), float(reward), bool(ended), False, {}

        def render(self) -> Any:
            from opdbench.tasks.pictures import channels

            return channels(self.game.state())

    return Board()
