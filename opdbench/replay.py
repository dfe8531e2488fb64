"""Stores of past rollouts, with whatever the teacher said about them."""

from __future__ import annotations

from random import Random
from typing import Any

from opdbench.rollouts import Rollouts


class Aggregate:
    """Keeps every rollout that it is given (DAgger's D), and draws minibatches from all of them, evenly.

    Batches are joined lazily, when one is drawn, so adding is free; memory is what the rollouts and labels hold.
    """

    def __init__(self) -> None:
        self._parts: list[Rollouts] = []

    def __len__(self) -> int:
        return sum(part.n_trajectories for part in self._parts)

    def add(self, rollouts: Rollouts) -> None:
        self._parts.append(rollouts)

    def sample(self, n: int, rng: Random) -> Rollouts:
        """`n` different trajectories, or all of them when there are fewer."""
        joined = self._joined()
        return joined.select(rng.sample(range(joined.n_trajectories), min(n, joined.n_trajectories)))

    def state_dict(self) -> dict[str, Any]:
        if not self._parts:
            return {}
        joined = self._joined()
        return {"tensors": joined.tensors(), "step_columns": sorted(joined.step_columns)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._parts = [Rollouts.from_tensors(state["tensors"], frozenset(state["step_columns"]))] if state else []

    def _joined(self) -> Rollouts:
        if not self._parts:
            raise ValueError("nothing has been added yet")
        if len(self._parts) > 1:
            self._parts = [Rollouts.cat(self._parts)]
        return self._parts[0]
