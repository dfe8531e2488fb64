"""Stores of past rollouts, with whatever the teacher said about them."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import torch

from opdbench.frames import FrameStacks
from opdbench.rollouts import Rollouts

GAME = "game"  # column [B]: the number of the game that a trajectory is of, where one student plays several


class Aggregate:
    """Keeps every rollout that it is given (DAgger's D), and draws minibatches from all of them, evenly.

    Batches are joined lazily, when one is drawn, so adding is free; memory is what the rollouts and labels hold.

    Args:
        capacity: largest number of trajectories; the oldest go first. None keeps all.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._parts: list[Rollouts] = []

    def __len__(self) -> int:
        return sum(part.n_trajectories for part in self._parts)

    def add(self, rollouts: Rollouts) -> None:
        self._parts.append(rollouts)
        if self._capacity is not None and len(self) > self._capacity:
            joined = self._joined()
            self._parts = [joined.select(range(len(self) - self._capacity, len(self)))]

    def sample(self, n: int, rng: Random) -> Rollouts:
        """`n` different trajectories, or all of them when there are fewer."""
        joined = self._joined()
        return joined.select(rng.sample(range(joined.n_trajectories), min(n, joined.n_trajectories)))

    def all(self) -> Rollouts:
        """Everything, as one batch."""
        return self._joined()

    def state_dict(self) -> dict[str, Any]:
        if not self._parts:
            return {}
        joined = self._joined()
        tensors = {name: value.parts() if isinstance(value, FrameStacks) else value
                   for name, value in joined.tensors().items()}
        return {"tensors": tensors, "step_columns": sorted(joined.step_columns)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            self._parts = []
            return
        tensors = {name: FrameStacks([value["frames"]], value["place"]) if isinstance(value, dict) else value
                   for name, value in state["tensors"].items()}
        self._parts = [Rollouts.from_tensors(tensors, frozenset(state["step_columns"]))]

    def n_bytes(self) -> int:
        """Memory that the tensors take; a frame that several states show counts once."""
        if not self._parts:
            return 0
        return sum(value.n_bytes() if isinstance(value, FrameStacks) else value.nbytes
                   for value in self._joined().tensors().values())

    def _joined(self) -> Rollouts:
        if not self._parts:
            raise ValueError("nothing has been added yet")
        if len(self._parts) > 1:
            self._parts = [Rollouts.cat(self._parts)]
        return self._parts[0]


class Replays:
    """An `Aggregate` for each game, by column `game`; a single one where there is no such column.

    Args:
        capacity: of each.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        self._stores: dict[int, Aggregate] = {}

    @property
    def games(self) -> list[int]:
        """The games that something has been added of, in their order."""
        return sorted(self._stores)

    def add(self, rollouts: Rollouts) -> None:
        game_b = rollouts.columns.get(GAME)
        if game_b is None:
            self._store(0).add(rollouts)
            return
        for game in torch.unique(game_b).tolist():
            self._store(game).add(rollouts.select((game_b == game).nonzero()[:, 0]))

    def sample(self, n: int, rng: Random, game: int | None = None) -> Rollouts:
        """`n` different trajectories of one game: of the given one, or of any, all equally likely."""
        if game is None:
            game = rng.choice(self.games) if len(self._stores) > 1 else self.games[0]
        return self._stores[game].sample(n, rng)

    def sample_each(self, n: int, rng: Random) -> Rollouts:
        """`n` trajectories, as many of every game."""
        share = max(1, n // len(self._stores))
        return Rollouts.cat([self._stores[game].sample(share, rng) for game in self.games])

    def state_dict(self) -> dict[str, Any]:
        return {str(game): store.state_dict() for game, store in self._stores.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._stores = {}
        for game, stored in state.items():
            self._store(int(game)).load_state_dict(stored)

    def _store(self, game: int) -> Aggregate:
        return self._stores.setdefault(game, Aggregate(self._capacity))


def epochs(rollouts: Rollouts, n_epochs: int, n_minibatches: int, rng: Random) -> Iterator[Rollouts]:
    """All trajectories `n_epochs` times, each time shuffled anew and dealt into `n_minibatches` of equal size, or as
    many as there are trajectories. Without an epoch or a cut to make, the batch as it is."""
    if n_epochs == n_minibatches == 1:
        yield rollouts
        return
    n = rollouts.n_trajectories
    for _ in range(n_epochs):
        order = rng.sample(range(n), n)
        for first in range(min(n_minibatches, n)):
            yield rollouts.select(order[first::n_minibatches])
