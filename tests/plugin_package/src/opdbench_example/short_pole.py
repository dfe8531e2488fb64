"""CartPole with short episodes: a task that takes seconds, and the teacher that opdbench ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, ClassVar

import gymnasium

from opdbench.task import ControlTask


class ShortPole(ControlTask):
    """Balance a pole for fifty steps."""

    name = "short-pole"
    version = 2
    summary = "balance a pole for fifty steps"
    source = "gymnasium CartPole-v1; Barto, Sutton and Anderson, 1983"
    license = "MIT (gymnasium)"
    protocol = "Undiscounted return of full episodes, one point a step, cut off at 50."
    teacher = "cartpole/teacher"
    student = None
    env_id = "CartPole-v1"
    max_episode_steps = 50
    evaluation_episodes = 10
    student_hidden: ClassVar[Sequence[int]] = (8,)
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-2, "batch": 4, "horizon": 16}
    budget: ClassVar[Mapping[str, float]] = {"steps": 2}

    def make(self) -> gymnasium.Env[Any, Any]:
        return gymnasium.make(self.env_id, max_episode_steps=self.max_episode_steps, disable_env_checker=True)

    def checksum(self) -> str:
        return sha256(f"{self.id}/{self.env_id}/{self.max_episode_steps}".encode()).hexdigest()
