"""Classic control and Box2D from gymnasium: CartPole, Acrobot, MountainCar and LunarLander.

Each ships a teacher: one that Stable-Baselines3 trained (`opdbench teacher train TASK` makes it again), or, for
MountainCar, the known answer. The student is a network that is initialised from the run's seed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

from opdbench.errors import UserError
from opdbench.rl.train_teacher import TeacherRecipe
from opdbench.task import ControlTask

if TYPE_CHECKING:
    import gymnasium


class GymControl(ControlTask):
    """A registered gymnasium environment, made without changes, at its own time limit.

    A `yardstick` is the mean over 100 episodes of uniform actions, and of the shipped teacher, greedy.
    """

    student: ClassVar[str | None] = None  # a fresh network of `student_hidden`, initialised from the run's seed
    teacher_recipe: ClassVar[TeacherRecipe]
    install: ClassVar[str] = 'pip install "gymnasium[box2d]"'

    def make(self) -> gymnasium.Env[Any, Any]:
        return self._make()

    def visible(self) -> gymnasium.Env[Any, Any]:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # it greets on stdout
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # nothing is shown: no display is asked for
        return self._make(render_mode="rgb_array")

    def _make(self, **settings: Any) -> gymnasium.Env[Any, Any]:
        import gymnasium

        try:
            return gymnasium.make(self.env_id, max_episode_steps=self.max_episode_steps, disable_env_checker=True,
                                  **settings)
        except (gymnasium.error.DependencyNotInstalled, ImportError) as error:
            raise UserError(f"task {self.name} needs a simulator that is not installed: {error}",
                            self.install) from error

    def checksum(self) -> str:
        # The environment's rules live in gymnasium; its version is in the record's provenance.
        return sha256(f"{self.id}/{self.env_id}/{self.max_episode_steps}".encode()).hexdigest()


class CartPole(GymControl):
    name = "cartpole"
    version = 1
    summary = "balance a pole on a cart (4 numbers seen, 2 actions)"
    source = "gymnasium CartPole-v1; Barto, Sutton and Anderson, 1983"
    license = "MIT (gymnasium)"
    protocol = ("Undiscounted return of full episodes, one point a step, cut off at 500. "
                "Episode k always starts from the same state; the first episode of each counts.")
    teacher = "cartpole/teacher"
    env_id = "CartPole-v1"
    yardstick: ClassVar[tuple[float, float] | None] = (21.9, 500.0)
    max_episode_steps = 500
    student_hidden: ClassVar[Sequence[int]] = (32,)
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-2, "schedule": "linear", "batch": 32, "horizon": 32}
    budget: ClassVar[Mapping[str, float]] = {"steps": 200}
    teacher_recipe = TeacherRecipe(
        steps=100_000, n_envs=8, hidden=(64, 64), learning_rate=1e-3,
        ppo={"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20, "ent_coef": 0.0,
             "clip_range": 0.2},
        source="RL Baselines3 Zoo, ppo.yml, CartPole-v1, with a fixed clip range")


class Acrobot(GymControl):
    name = "acrobot"
    version = 1
    summary = "swing a two-link pendulum up over a line (6 numbers seen, 3 actions)"
    source = "gymnasium Acrobot-v1; Sutton, 1996"
    license = "MIT (gymnasium)"
    protocol = ("Undiscounted return of full episodes, minus one a step until the tip is over the line, cut off at "
                "500. Episode k always starts from the same state; the first episode of each counts.")
    teacher = "acrobot/teacher"
    env_id = "Acrobot-v1"
    yardstick: ClassVar[tuple[float, float] | None] = (-499.2, -81.7)
    max_episode_steps = 500
    student_hidden: ClassVar[Sequence[int]] = (16,)
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-2, "schedule": "linear", "batch": 16, "horizon": 32}
    budget: ClassVar[Mapping[str, float]] = {"steps": 100}
    teacher_recipe = TeacherRecipe(
        steps=300_000, n_envs=16, hidden=(64, 64), learning_rate=3e-4, normalize=True,
        ppo={"n_steps": 256, "batch_size": 64, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
        source="RL Baselines3 Zoo, ppo.yml, Acrobot-v1, with 300,000 steps in place of 1,000,000")


class MountainCar(GymControl):
    name = "mountain-car"
    version = 1
    summary = "rock a car up a hill that is too steep for it (2 numbers seen, 3 actions)"
    source = "gymnasium MountainCar-v0; Moore, 1990"
    license = "MIT (gymnasium)"
    protocol = ("Undiscounted return of full episodes, minus one a step until the car is at the flag, cut off at 200. "
                "Episode k always starts from the same state; the first episode of each counts.")
    teacher = "mountain-car/teacher"  # pushes the way that the car moves; written down, not trained
    student_scale: ClassVar[Sequence[float]] = (1.2, 0.07)  # the bounds: a network cannot see speeds of a hundredth
    env_id = "MountainCar-v0"
    yardstick: ClassVar[tuple[float, float] | None] = (-200.0, -137.1)
    max_episode_steps = 200
    student_hidden: ClassVar[Sequence[int]] = (16,)
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-2, "schedule": "linear", "batch": 16, "horizon": 32}
    budget: ClassVar[Mapping[str, float]] = {"steps": 100}
    teacher_recipe = TeacherRecipe(
        steps=1_000_000, n_envs=16, hidden=(64, 64), learning_rate=3e-4, normalize=True,
        ppo={"n_steps": 16, "gae_lambda": 0.98, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
        source="RL Baselines3 Zoo, ppo.yml, MountainCar-v0; not the teacher that ships")


class LunarLander(GymControl):
    name = "lunarlander"
    version = 1
    summary = "land a craft softly between two flags (8 numbers seen, 4 actions)"
    source = "gymnasium LunarLander-v3 (Box2D)"
    license = "MIT (gymnasium)"
    protocol = ("Undiscounted return of full episodes, cut off at 1,000 steps; 200 counts as solved. "
                "Episode k always starts from the same state; the first episode of each counts.")
    teacher = "lunarlander/teacher"
    env_id = "LunarLander-v3"
    yardstick: ClassVar[tuple[float, float] | None] = (-174.8, 270.8)
    max_episode_steps = 1000
    student_hidden: ClassVar[Sequence[int]] = (32, 32)
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-2, "schedule": "linear", "batch": 16, "horizon": 64}
    budget: ClassVar[Mapping[str, float]] = {"steps": 300}
    teacher_recipe = TeacherRecipe(
        steps=1_500_000, n_envs=16, hidden=(128, 128), learning_rate=3e-4,
        ppo={"n_steps": 1024, "batch_size": 128, "gae_lambda": 0.98, "gamma": 0.999, "n_epochs": 4, "ent_coef": 0.0},
        source="RL Baselines3 Zoo, ppo.yml, LunarLander-v2, with a wider network, batches of 128, no entropy bonus, a "
               "falling learning rate and 1,500,000 steps in place of 1,000,000")
