"""The random grid worlds of Distilling Policy Distillation: tabular, solved exactly, as many as there are numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from opdbench.task import ControlTask, Task

if TYPE_CHECKING:
    import gymnasium

    from opdbench.policy import Policy
    from opdbench.rl.mdp import MDP

MOVES = ((0, -1), (0, 1), (-1, 0), (1, 0))  # left, right, up, down
WALL, GOAL, PIT = 0.1, 0.01, 0.03  # probabilities of a cell, each given that it is none of those before
REWARD = 10.0
STOP = 0.01  # probability that an episode ends after an action
DISCOUNT = 0.99


@dataclass(frozen=True)
class Grid:
    """Cells in reading order; cells with walls are states that are never entered.

    Attributes:
        next_sa: int64 [S, 4], where a move leads: to the cell itself when a wall or the edge is in the way.
        reward_s: [S], for entering; end_s: bool [S], whether that ends the episode.
        start: the cell in the centre.
        noise: probability that a move is replaced by one of the four, drawn evenly.
    """

    next_sa: NDArray[np.int64]
    reward_s: NDArray[np.float64]
    end_s: NDArray[np.bool_]
    start: int
    noise: float

    @property
    def n_states(self) -> int:
        return len(self.next_sa)

    def step(self, state: int, action: int, uniform_2: NDArray[np.float64]) -> tuple[int, float, bool]:
        """(next state, reward, whether the episode ends), from two uniform numbers."""
        if uniform_2[0] < self.noise:
            action = int(uniform_2[0] / self.noise * len(MOVES))
        state = int(self.next_sa[state, action])
        return state, float(self.reward_s[state]), bool(self.end_s[state] or uniform_2[1] < STOP)

    def picture(self, state: int) -> NDArray[np.uint8]:
        """Goals green, pits red, the walker blue; dark are walls, and cells that no move leads into."""
        from opdbench.tasks.pictures import BAD, DARK, FLOOR, GOOD, board

        own_s, entered_s = np.arange(self.n_states), np.zeros(self.n_states, np.bool_)
        entered_s[self.next_sa[self.next_sa != own_s[:, None]]] = True
        colour_sc = np.where(entered_s[:, None], FLOOR, DARK)
        colour_sc[self.reward_s > 0], colour_sc[self.reward_s < 0] = GOOD, BAD
        side = math.isqrt(self.n_states)
        picture: NDArray[np.uint8] = board(colour_sc.reshape(side, side, 3), at=divmod(state, side))
        return picture

    def mdp(self) -> MDP:
        """The same world as exact tables."""
        from opdbench.rl.mdp import MDP

        n = self.n_states
        moved_sas = np.zeros((n, len(MOVES), n))
        states, actions = np.indices(self.next_sa.shape)
        moved_sas[states, actions, self.next_sa] = 1
        entered_sas = (1 - self.noise) * moved_sas + self.noise * moved_sas.mean(1, keepdims=True)
        return MDP(entered_sas * ((1 - STOP) * ~self.end_s), entered_sas @ self.reward_s, np.eye(n)[self.start])


def random_grid(number: int, *, size: int, noise: float) -> Grid:
    """Grid `number`: the first that its generator draws in which a goal can be reached."""
    rng = np.random.default_rng([number, size])
    while True:
        grid = _draw(rng, size, noise)
        if (grid.reward_s[_reachable(grid)] > 0).any():
            return grid


def _draw(rng: np.random.Generator, size: int, noise: float) -> Grid:
    uniform_3s = rng.random((3, size * size))
    start = size // 2 * size + size // 2
    wall_s = uniform_3s[0] < WALL
    wall_s[start] = False
    goal_s = ~wall_s & (uniform_3s[1] < GOAL)
    pit_s = ~wall_s & ~goal_s & (uniform_3s[2] < PIT)
    goal_s[start] = pit_s[start] = False
    row_s, column_s = np.divmod(np.arange(size * size), size)
    next_as = []
    for down, right in MOVES:
        row, column = row_s + down, column_s + right
        inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
        target_s = np.where(inside, row * size + column, 0)
        next_as.append(np.where(inside & ~wall_s[target_s], target_s, np.arange(size * size)))
    return Grid(np.stack(next_as, 1), REWARD * (goal_s.astype(float) - pit_s), goal_s | pit_s, start, noise)


def _reachable(grid: Grid) -> list[int]:
    seen, edge = {grid.start}, [grid.start]
    while edge:
        state = edge.pop()
        for entered in grid.next_sa[state].tolist() if not grid.end_s[state] else []:
            if entered not in seen:
                seen.add(entered)
                edge.append(entered)
    return sorted(seen)


class GridWorld(ControlTask):
    """20 x 20 cells with walls, goals (+10) and pits (-10), which end the episode, as every action does with
    probability 0.01. The start is the centre, 10% of the moves are replaced by random ones.

    The teacher is exact: softmax(Q* / softness), with Q* from dynamic programming at discount 0.99, and it knows its
    own values. The student is a table.
    """

    name: ClassVar[str] = "grid-world"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "walk a random grid of 400 cells, solved exactly (the cell is seen, 4 actions)"
    source: ClassVar[str] = ("Czarnecki et al. 2019 (arXiv 1902.02186), appendix: grid worlds; how likely walls, goals "
                             "and pits are is ours")
    license: ClassVar[str] = "Apache-2.0"
    protocol: ClassVar[str] = ("Undiscounted return of full episodes on one grid, which `--set grid=NUMBER` chooses. "
                               "The first episode of each of the evaluation's seeds counts.")
    metric: ClassVar[str] = "return"
    teacher: ClassVar[str | None] = "exact"
    student: ClassVar[str | None] = None
    student_hidden: ClassVar[Sequence[int]] = ()  # a table
    env_id: ClassVar[str] = "grid-world"
    max_episode_steps: ClassVar[int] = 2000
    training: ClassVar[Mapping[str, Any]] = {"lr": 0.1, "batch": 16, "horizon": 64, "schedule": "linear"}
    budget: ClassVar[Mapping[str, float]] = {"tokens": 100_000}

    class Params(Task.Params):
        grid: int = Field(0, ge=0, description="number of the random grid")
        size: int = Field(20, ge=3, le=40, description="cells a side")
        noise: float = Field(0.1, ge=0, lt=1, description="probability that a move is replaced by a random one")
        softness: float = Field(0.05, gt=0, description="temperature of the teacher's softmax over exact action values")
        corrupted: float = Field(0.0, ge=0, le=1, description="share of cells in which the teacher's preferences are "
                                                              "dealt to the wrong actions")

    @cached_property
    def grid(self) -> Grid:
        return random_grid(self.params.grid, size=self.params.size, noise=self.params.noise)

    def make(self) -> gymnasium.Env[Any, Any]:
        from opdbench.tasks.grid_world_env import GridWorldEnv

        env: gymnasium.Env[Any, Any] = GridWorldEnv(self.grid, self.max_episode_steps)
        return env

    def exact_teacher(self) -> Policy:
        import torch

        from opdbench.rl.mdp import boltzmann
        from opdbench.rl.table import TablePolicy

        mdp = self.grid.mdp()
        q_sa = mdp.optimal_action_values(DISCOUNT)
        rng = np.random.default_rng([self.params.grid, 1])
        wrong_s = rng.random(mdp.n_states) < self.params.corrupted
        q_sa = np.where(wrong_s[:, None], rng.permuted(q_sa, axis=1), q_sa)
        value_s = mdp.values(boltzmann(q_sa, self.params.softness), DISCOUNT)
        return TablePolicy(torch.from_numpy(q_sa / self.params.softness).float(), torch.from_numpy(value_s).float())

    def checksum(self) -> str:
        grid, params = self.grid, self.params
        content = b"".join(table.tobytes() for table in (grid.next_sa, grid.reward_s, grid.end_s))
        return sha256(f"{self.id} {params.noise!r} {params.softness!r} {params.corrupted!r} {STOP} {DISCOUNT} "
                      f"{self.max_episode_steps} {grid.start}".encode() + content).hexdigest()
