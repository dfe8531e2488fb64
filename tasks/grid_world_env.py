"""Worlds of numbered states as gymnasium environments; apart from their tasks, so that listing imports no gymnasium."""

from __future__ import annotations

from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray


class Grid(Protocol):
    """What a world must say: where an episode starts, where moves lead.

    Attributes:
        next_sa: int64 [S, A], where an action leads when nothing interferes.
    """

    @property
    def n_states(self) -> int: ...

    @property
    def start(self) -> int: ...

    @property
    def next_sa(self) -> NDArray[np.int64]: ...

    def step(self, state: int, action: int, uniform_2: NDArray[np.float64]) -> tuple[int, float, bool]:
        """(next state, reward, whether the episode ends), from two uniform numbers."""
        ...

    def picture(self, state: int) -> NDArray[np.uint8]:
        """Of the world, and who walks in it: RGB [H, W, 3]."""
        ...


class GridWorldEnv(gymnasium.Env[NDArray[np.float32], int]):
    """Observes the state, one-hot."""

    render_mode = "rgb_array"

    def __init__(self, grid: Grid, max_episode_steps: int) -> None:
        self.grid = grid
        self.max_episode_steps = max_episode_steps
        self.observation_space = Box(0.0, 1.0, (grid.n_states,), np.float32)
        self.action_space = Discrete(grid.next_sa.shape[1])  # type: ignore[assignment]
        self._state, self._steps = grid.start, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._state, self._steps = self.grid.start, 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._state, reward, ended = self.grid.step(self._state, int(action), self.np_random.random(2))
        self._steps += 1
        return self._observation(), reward, ended, self._steps >= self.max_episode_steps, {}

    def render(self) -> Any:
        return self.grid.picture(self._state)

    def _observation(self) -> NDArray[np.float32]:
        observation = np.zeros(self.grid.n_states, np.float32)
        observation[self._state] = 1
        return observation
