"""PUCT tree search with a perfect model, over many roots at once; every simulation evaluates all leaves in one batch.

    a = argmax_a Q(s, a) + c P(s, a) sqrt(N(s)) / (1 + N(s, a))      (Silver et al. 2017, with N(s) at least 1)

Works for one player and for two: in a game the other side moves next, and its gain is the mover's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

States = NDArray[Any]  # [N, ...], of the model's own kind
Floats = NDArray[np.float64]


class Move(NamedTuple):
    """What N actions lead to."""

    state_n: States
    reward_n: Floats  # to whoever moved
    done_n: NDArray[np.bool_]


class Model(Protocol):
    """The rules of a deterministic task, for planning.

    Attributes:
        n_actions: size of the action set.
        two_players: the other side is to move in the state that an action leads to.
    """

    n_actions: int
    two_players: bool

    def read(self, observation_n: NDArray[Any]) -> States:
        """The states that observations [N, ...] are of."""

    def observe(self, state_n: States) -> NDArray[Any]:
        """Observations of states, as whoever is to move sees them."""

    def legal(self, state_n: States) -> NDArray[np.bool_]:
        """[N, A]."""

    def step(self, state_n: States, action_n: NDArray[np.int64]) -> Move:
        """One legal action in each of N states that are no ends."""


Evaluation = tuple[Floats, Floats]  # (prior probabilities [N, A], values [N] to whoever is to move)
Evaluate = Callable[[States], Evaluation]


class Tree:
    """One tree for each of B roots; all trees grow by at most a node a simulation.

    Attributes:
        visits_bma: [B, M, A], how often each action of each node was taken; node 0 is the root.
    """

    def __init__(self, model: Model, state_b: States, evaluate: Evaluate, *, simulations: int, exploration: float,
                 root_noise_ba: Floats | None = None) -> None:
        """
        Args:
            state_b: the roots, none of which is an end.
            simulations: per root; `exploration`: c.
            root_noise_ba: [B, A], mixed into the roots' priors with weight 1/4.
        """
        b, most = len(state_b), simulations + 1
        shape = (b, most, model.n_actions)
        self._model, self._evaluate, self._exploration = model, evaluate, exploration
        self._sign = -1.0 if model.two_players else 1.0
        self._state_bm = np.zeros((b, most, *state_b.shape[1:]), state_b.dtype)
        self._child_bma = np.full(shape, -1, np.int64)
        self._end_bma = np.zeros(shape, np.bool_)
        self._prior_bma, self._reward_bma, self._total_bma = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.visits_bma = np.zeros(shape, np.int64)
        self._size_b = np.zeros(b, np.int64)
        self._add(np.arange(b), state_b)
        if root_noise_ba is not None:
            mixed_ba = 0.75 * self._prior_bma[:, 0] + 0.25 * root_noise_ba * model.legal(state_b)
            self._prior_bma[:, 0] = mixed_ba / mixed_ba.sum(1, keepdims=True)
        for _ in range(simulations):
            self._simulate()

    @property
    def policy_ba(self) -> Floats:
        """Visit counts of the roots as probabilities [B, A]: the improved policy."""
        visits_ba = self.visits_bma[:, 0]
        policy_ba: Floats = visits_ba / visits_ba.sum(1, keepdims=True)
        return policy_ba

    @property
    def value_b(self) -> Floats:
        """Mean return of the simulations of each root [B]."""
        value_b: Floats = self._total_bma[:, 0].sum(1) / self.visits_bma[:, 0].sum(1)
        return value_b

    def _simulate(self) -> None:
        b_k, node_k = np.arange(len(self._size_b)), np.zeros(len(self._size_b), np.int64)
        path, leaf_b = [], np.zeros((len(b_k), 2), np.int64)
        while len(b_k):
            action_k = self._select(b_k, node_k)
            path.append((b_k, node_k, action_k))
            child_k = self._child_bma[b_k, node_k, action_k]
            stop_k = child_k < 0
            leaf_b[b_k[stop_k]] = np.stack([node_k[stop_k], action_k[stop_k]], 1)
            b_k, node_k = b_k[~stop_k], child_k[~stop_k]
        gain_b = self._expand(leaf_b[:, 0], leaf_b[:, 1])
        for b_k, node_k, action_k in reversed(path):
            gain_b[b_k] = self._reward_bma[b_k, node_k, action_k] + self._sign * gain_b[b_k]
            self._total_bma[b_k, node_k, action_k] += gain_b[b_k]
            self.visits_bma[b_k, node_k, action_k] += 1

    def _select(self, b_k: NDArray[np.int64], node_k: NDArray[np.int64]) -> NDArray[np.int64]:
        visits_ka, prior_ka = self.visits_bma[b_k, node_k], self._prior_bma[b_k, node_k]
        mean_ka = self._total_bma[b_k, node_k] / np.maximum(visits_ka, 1)
        root_k1 = np.sqrt(np.maximum(visits_ka.sum(1, keepdims=True), 1))
        score_ka = mean_ka + self._exploration * prior_ka * root_k1 / (1 + visits_ka)
        best_k: NDArray[np.int64] = np.where(prior_ka > 0, score_ka, -np.inf).argmax(1)  # illegal ones have no prior
        return best_k

    def _expand(self, node_b: NDArray[np.int64], action_b: NDArray[np.int64]) -> Floats:
        """Take the leaves' actions where they are new; returns the value [B] of what they lead to, for its mover."""
        every_b, value_b = np.arange(len(node_b)), np.zeros(len(node_b))
        new_k = every_b[~self._end_bma[every_b, node_b, action_b]]
        if len(new_k):
            place = new_k, node_b[new_k], action_b[new_k]
            move = self._model.step(self._state_bm[place[:2]], place[2])
            self._reward_bma[place], self._end_bma[place] = move.reward_n, move.done_n
            on = ~move.done_n
            if on.any():
                open_k = new_k[on]
                self._child_bma[open_k, place[1][on], place[2][on]] = self._size_b[open_k]
                value_b[open_k] = self._add(open_k, move.state_n[on])
        return value_b

    def _add(self, b_k: NDArray[np.int64], state_k: States) -> Floats:
        """A new node in each of the trees `b_k`; returns its value [K]."""
        prior_ka, value_k = self._evaluate(state_k)
        prior_ka = (prior_ka + 1e-9) * self._model.legal(state_k)
        node_k = self._size_b[b_k]
        self._state_bm[b_k, node_k] = state_k
        self._prior_bma[b_k, node_k] = prior_ka / prior_ka.sum(1, keepdims=True)
        self._size_b[b_k] += 1
        return value_k


def random_playouts(model: Model, state_n: States, rng: np.random.Generator, *, most: int = 64) -> Floats:
    """The return [N], to whoever is to move, of one game of random legal actions from each state; `most` bounds its
    length, beyond which nothing more is earned."""
    total_n, sign, alive_k, state_k = np.zeros(len(state_n)), 1.0, np.arange(len(state_n)), state_n
    for _ in range(most):
        if not len(alive_k):
            break
        legal_ka = model.legal(state_k)
        move = model.step(state_k, np.where(legal_ka, rng.random(legal_ka.shape), -1.0).argmax(1))
        total_n[alive_k] += sign * move.reward_n
        alive_k, state_k = alive_k[~move.done_n], move.state_n[~move.done_n]
        sign *= -1.0 if model.two_players else 1.0
    return total_n
