"""Small control tasks that are made for tests."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np

from opdbench.task import ControlTask


class Counting(gymnasium.Env[Any, Any]):
    """Observes [reset's draw, steps so far]; action 1 ends the episode, and after 7 steps it ends anyway.

    The reward is the number of the step, so that a return tells which steps were taken.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    ends_at = 7

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.draw, self.steps = self.np_random.uniform(), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), float(self.steps), action == 1 or self.steps >= self.ends_at, False, {}

    def _observation(self) -> Any:
        return np.array([self.draw, self.steps], np.float32)


class Broken(Counting):
    """`fault` in step 3: an exception, or an observation or a reward that is not a number."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(0)
        if self.steps == 3 and self.fault == "raises":
            raise ZeroDivisionError("the pole is gone")
        if self.steps == 3:
            observation = observation * np.nan if self.fault == "observation" else observation
            reward = np.nan if self.fault == "reward" else reward
        return observation, reward, terminated, truncated, info


class CountingTask(ControlTask):
    """`Counting` under a time limit of 5 steps unless it is overridden."""

    name = "counting"
    version = 1
    summary = source = license = protocol = "made for tests"
    teacher = student = None
    training: ClassVar[dict[str, Any]] = {}
    budget: ClassVar[dict[str, float]] = {}
    env_id = "Counting"
    max_episode_steps = 5
    student_hidden = (4,)

    def make(self) -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TimeLimit(Counting(), self.max_episode_steps)

    def checksum(self) -> str:
        return "0" * 64


class BrokenTask(CountingTask):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def make(self) -> gymnasium.Env[Any, Any]:
        return Broken(self.fault)
