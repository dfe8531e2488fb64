"""Continuous control from gymnasium: the pendulum, and the hopper and the half cheetah on MuJoCo.

Actions are vectors of real numbers. A policy is a Gaussian with one deviation for each number, the same in every state,
as in Stable-Baselines3; what it draws beyond the bounds is clipped on its way into the environment, and its density is
that of the Gaussian before the clipping. Greedy takes the mean. The student is a network that is initialised from the
run's seed, with a deviation of 1, and sees every number divided by `student_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from opdbench.rl.train_teacher import TeacherRecipe
from opdbench.tasks.control import GymControl


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
