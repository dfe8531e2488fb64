"""Returns of the episodes that rollouts pass through: segments of control tasks begin and end in the middle of them."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch

from opdbench.rollouts import Rollouts


class EpisodeReturns:
    """Undiscounted returns of the last episodes that ended, of whoever acts in the rollouts that are added.

    Args:
        window: how many are remembered.
    """

    def __init__(self, window: int) -> None:
        self._last: deque[float] = deque(maxlen=window)
        self._running_b = torch.zeros(0, dtype=torch.float64)  # NaN: began before these rollouts
        self.lowest: float | None = None

    def add(self, rollouts: Rollouts) -> None:
        """Follow trajectories, of which number i always goes on where number i ended."""
        if len(self._running_b) != rollouts.n_trajectories:
            self._running_b = torch.zeros(rollouts.n_trajectories, dtype=torch.float64)
        reward_bt, done_bt = rollouts.reward_bt.double().cpu(), rollouts.done_bt.cpu()
        for step in range(reward_bt.shape[1]):
            self._running_b = self._running_b + reward_bt[:, step]
            ended = self._running_b[done_bt[:, step]]
            self._last.extend(value for value in ended.tolist() if value == value)
            self._running_b = self._running_b.masked_fill(done_bt[:, step], 0.0)
        if self._last:
            lowest = min(self._last)
            self.lowest = lowest if self.lowest is None else min(self.lowest, lowest)

    @property
    def started(self) -> bool:
        return len(self._running_b) > 0

    def join(self, rollouts: Rollouts) -> None:
        """Before the first `add`: these trajectories are in the middle of episodes of somebody else's, which do not
        count."""
        self._running_b = torch.full((rollouts.n_trajectories,), float("nan"), dtype=torch.float64)

    @property
    def last(self) -> tuple[float, ...]:
        """The last `window` of them, oldest first."""
        return tuple(self._last)

    @property
    def mean(self) -> float | None:
        """None while no episode has ended."""
        return sum(self._last) / len(self._last) if self._last else None

    def state_dict(self) -> dict[str, Any]:
        return {"last": list(self._last), "running": self._running_b, "lowest": self.lowest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._last = deque(state["last"], maxlen=self._last.maxlen)
        self._running_b, self.lowest = state["running"], state["lowest"]
