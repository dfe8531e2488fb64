"""Several games that one policy plays: every state says which game it is of, and all have one shape.

A state that is a vector is filled up with zeros to the longest and has the number of its game behind it. A state that
is a stack of frames has the number in one more row of pixels, as a cartridge has its label: frames are then stored once
each as those of a single game are (`opdbench.frames`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opdbench.errors import UserError
from opdbench.rl.simulators import Actions, Observations, Simulators, Spaces, Transition, make_simulators
from opdbench.task import ControlTask

MOST_GAMES = 255  # a pixel holds the number


@dataclass(frozen=True)
class Form:
    """How the states of several games are written in one shape.

    Attributes:
        shapes: of each game's own states.
        actions: how many each has.
        stack: frames in a state; 0 where states are vectors.
    """

    shapes: tuple[tuple[int, ...], ...]
    actions: tuple[int, ...]
    stack: int

    @classmethod
    def of(cls, games: Sequence[ControlTask]) -> Form:
        """
        Raises:
            UserError: the games cannot be played by one policy.
        """
        if len(games) > MOST_GAMES:
            raise UserError(f"{len(games)} games are too many for one student", f"name at most {MOST_GAMES}")
        simulators = [make_simulators(game) for game in games]
        for game, one in zip(games, simulators, strict=True):
            if one.continuous:
                raise UserError(f"{game.id} has actions that are vectors of real numbers, and a student of several "
                                "games chooses among finitely many", "name games with discrete actions")
        form = cls(tuple(one.observation_shape for one in simulators), tuple(one.n_actions for one in simulators),
                   simulators[0].stack)
        if len({one.stack for one in simulators}) > 1 or (form.stack and len(set(form.shapes)) > 1):
            raise UserError("one student cannot see these games: their states are stacks of frames of different "
                            "sizes, or only some of them are any", "name games that are seen in one way")
        return form

    @property
    def width(self) -> int:
        """Numbers of the longest state that is a vector."""
        return max(map(prod, self.shapes))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of a state with its mark."""
        if not self.stack:
            return (self.width + 1,)
        frames, height, width = self.shapes[0]
        return frames, height + 1, width

    def mark(self, own_k: Observations, game: int) -> Observations:
        """States [K, ...] of one game, in the common shape."""
        marked_k = np.zeros((len(own_k), *self.shape), own_k.dtype if self.stack else np.float32)
        if self.stack:
            marked_k[:, :, :-1], marked_k[:, :, -1] = own_k, game
        else:
            marked_k[:, :prod(self.shapes[game])], marked_k[:, -1] = own_k.reshape(len(own_k), -1), game
        return marked_k

    def game_of(self, marked_n: Tensor) -> Tensor:
        """The number of each state's game, int64 [N]; of a stack its newest frame's, since early ones may be blank."""
        return marked_n.flatten(1)[:, -1].long()

    def common(self, marked_n: Tensor) -> Tensor:
        """States without their mark, as a policy of all games sees them: [N, width], or [N, *stack]."""
        return marked_n[:, :, :-1] if self.stack else marked_n[:, :-1]

    def own(self, marked_n: Tensor, game: int) -> Tensor:
        """States of one game as the game itself shows them, [N, ...]."""
        shape = self.shapes[game]
        return self.common(marked_n) if self.stack else marked_n[:, :prod(shape)].reshape(-1, *shape)


class MarkedSimulators(Simulators):
    """Copies of one game, whose states say which game it is."""

    def __init__(self, inner: Simulators, form: Form, game: int) -> None:
        from gymnasium.spaces import Box, Discrete

        low, high, dtype = (0, 255, np.uint8) if form.stack else (-np.inf, np.inf, np.float32)
        super().__init__(Spaces(Box(low, high, form.shape, dtype), Discrete(inner.n_actions)), inner.name)
        self.inner, self.form, self.game = inner, form, game
        self.stack, self.episodes_per_seed = inner.stack, inner.episodes_per_seed

    def _grow(self, missing: int) -> None:
        self.inner.grow(self.n + missing)

    def _reset(self, index: int, seed: int) -> Observations:
        own: Observations = self.inner.reset(index, seed)
        return self._mark(own[None]).reshape(self.observation_shape)

    def _follow(self, index: int) -> Observations:
        own: Observations = self.inner.follow(index)
        return self._mark(own[None]).reshape(self.observation_shape)

    def _step(self, index_k: NDArray[np.int64], action_k: Actions) -> Transition:
        after = self.inner.step(index_k, action_k)
        return after._replace(observation_k=self._mark(after.observation_k))

    def _mark(self, own_k: Observations) -> Observations:
        return self.form.mark(own_k, self.game)
