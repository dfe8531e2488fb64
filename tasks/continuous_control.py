"""Continuous control from gymnasium: the pendulum, and the hopper and the half cheetah on MuJoCo.

Actions are vectors of real numbers. A policy is a Gaussian with one deviation for each number, the same in every state,
as in Stable-Baselines3; what it draws beyond the bounds is clipped on its way into the environment, and its density is
that of the Gaussian before the clipping. Greedy takes the mean. The student is a network that is initialised from the
run's seed, with a deviation of 1, and sees every number divided by `student_scale`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from opdbench.rl.train_teacher import TeacherRecipe
from opdbench.tasks.control import GymControl

if TYPE_CHECKING:
    import gymnasium


class Pendulum(GymControl):
    name = "pendulum"
    version = 1
    summary = "swing a pendulum up and hold it there (3 numbers seen, 1 real number as action)"
    source = "gymnasium Pendulum-v1"
    license = "MIT (gymnasium)"
    protocol = ("Undiscounted return of full episodes of 200 steps, at most 0; torque is clipped to -2 and 2. "
                "Episode k always starts from the same state; the first episode of each counts.")
    teacher = "pendulum/teacher"
    env_id = "Pendulum-v1"
    max_episode_steps = 200
    student_hidden: ClassVar[Sequence[int]] = (32, 32)
    student_scale: ClassVar[Sequence[float] | None] = (1.0, 1.0, 8.0)  # the bounds
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-2, "schedule": "linear", "batch": 16, "horizon": 64}
    budget: ClassVar[Mapping[str, float]] = {"steps": 200}
    teacher_recipe = TeacherRecipe(
        steps=200_000, n_envs=4, hidden=(64, 64), learning_rate=1e-3,
        ppo={"n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "n_epochs": 10, "ent_coef": 0.0, "clip_range": 0.2},
        source="RL Baselines3 Zoo, ppo.yml, Pendulum-v1, without state-dependent exploration, with a falling learning "
               "rate and 200,000 steps in place of 100,000")


class _MuJoCo(GymControl):
    """A body of gymnasium's on MuJoCo, whose numbers are positions first, then speeds."""

    license = "MIT (gymnasium), Apache-2.0 (MuJoCo, which is not part of opdbench)"
    max_episode_steps = 1_000
    student_hidden: ClassVar[Sequence[int]] = (64, 64)
    training: ClassVar[Mapping[str, Any]] = {"lr": 3e-3, "schedule": "linear", "batch": 16, "horizon": 64}
    budget: ClassVar[Mapping[str, float]] = {"steps": 500}
    install: ClassVar[str] = 'pip install "opdbench[mujoco]"'

    def _make(self, **settings: Any) -> gymnasium.Env[Any, Any]:
        with suppress(ImportError):  # what is missing is said below
            import mujoco

            # By itself it writes its warnings into a file MUJOCO_LOG.TXT wherever one happens to be.
            mujoco.set_mju_user_warning(_warn)
        environment: gymnasium.Env[Any, Any] = super()._make(**settings)
        return environment


def _warn(text: str) -> None:
    warnings.warn(f"MuJoCo: {text.strip()}", RuntimeWarning, stacklevel=2)


class Hopper(_MuJoCo):
    name = "hopper"
    version = 1
    summary = "hop forward on one leg without falling (11 numbers seen, 3 real numbers as action; needs MuJoCo)"
    source = "gymnasium Hopper-v5 (MuJoCo); Erez, Tassa and Todorov, 2011"
    protocol = ("Undiscounted return of full episodes, until the hopper falls, cut off at 1,000 steps; torques are "
                "clipped to -1 and 1. Episode k always starts from the same state; the first episode of each counts.")
    teacher = "hopper/teacher"
    env_id = "Hopper-v5"
    student_scale: ClassVar[Sequence[float] | None] = (1.0,) * 5 + (10.0,) * 6  # speeds are clipped to 10
    teacher_recipe = TeacherRecipe(
        steps=1_000_000, n_envs=1, hidden=(64, 64), learning_rate=3e-4, normalize=True,
        ppo={"batch_size": 64, "n_steps": 2048, "gamma": 0.99, "ent_coef": 0.0, "clip_range": 0.2, "n_epochs": 10,
             "gae_lambda": 0.95, "max_grad_norm": 0.5, "vf_coef": 0.5},
        source="CleanRL, ppo_continuous_action.py; with RL Baselines3 Zoo's values for Hopper-v3 it learned to stand "
               "still (988 of return)")


class HalfCheetah(_MuJoCo):
    name = "halfcheetah"
    version = 1
    summary = "run forward on two legs (17 numbers seen, 6 real numbers as action; needs MuJoCo)"
    source = "gymnasium HalfCheetah-v5 (MuJoCo); Wawrzynski, 2009"
    protocol = ("Undiscounted return of full episodes of 1,000 steps; torques are clipped to -1 and 1. "
                "Episode k always starts from the same state; the first episode of each counts.")
    teacher = "halfcheetah/teacher"
    env_id = "HalfCheetah-v5"
    student_scale: ClassVar[Sequence[float] | None] = (1.0,) * 8 + (10.0,) * 9
    teacher_recipe = TeacherRecipe(
        steps=1_000_000, n_envs=1, hidden=(256, 256), learning_rate=2.0633e-05, normalize=True, activation="relu",
        ppo={"batch_size": 64, "n_steps": 512, "gamma": 0.98, "ent_coef": 0.000401762, "clip_range": 0.1,
             "n_epochs": 20, "gae_lambda": 0.92, "max_grad_norm": 0.8, "vf_coef": 0.58096},
        policy={"log_std_init": -2, "ortho_init": False},
        source="RL Baselines3 Zoo, ppo.yml, HalfCheetah-v3, with a falling learning rate")
