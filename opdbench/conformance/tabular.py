"""A control task given by tables: transitions, rewards and ends. Its observation says which state it is in, one-hot.

The real `ControlWorld` runs on it. `corridor` is the conformance suite's own; a test writes whatever tables its
theorem needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from opdbench.policy import Policy
from opdbench.rl.search import Move
from opdbench.task import ControlTask


@dataclass(frozen=True)
class Tables:
    """S states and A actions.

    Attributes:
        next_sa: int64 [S, A], the state that each action leads to.
        reward_sa: float64 [S, A].
        end_sa: bool [S, A], whether the episode ends there.
        starts: states that an episode may begin in, all as likely.
        horizon: steps after which an episode is cut off.
    """

    next_sa: NDArray[np.int64]
    reward_sa: NDArray[np.float64]
    end_sa: NDArray[np.bool_]
    starts: Sequence[int]
    horizon: int

    @property
    def n_states(self) -> int:
        return len(self.next_sa)

    @property
    def n_actions(self) -> int:
        return len(self.next_sa[0])


def corridor(length: int = 5, horizon: int = 6) -> Tables:
    """Walk left (0), stay (1) or walk right (2); the right end pays 1 and ends the episode."""
    state_s = np.arange(length)
    next_sa = np.stack([(state_s - 1).clip(0), state_s, (state_s + 1).clip(max=length - 1)], axis=1)
    end_sa = next_sa == length - 1
    return Tables(next_sa, end_sa.astype(np.float64), end_sa, starts=range(length - 1), horizon=horizon)


class TabularEnv(gymnasium.Env[NDArray[np.float32], int]):
    """The environment that `Tables` describe; only the start is random."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.observation_space = Box(0.0, 1.0, (tables.n_states,), np.float32)
        self.action_space = Discrete(tables.n_actions)  # type: ignore[assignment]
        self._state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._state = self.tables.starts[int(self.np_random.integers(len(self.tables.starts)))]
        return self._observation(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        place = self._state, int(action)
        self._state = int(self.tables.next_sa[place])
        return self._observation(), float(self.tables.reward_sa[place]), bool(self.tables.end_sa[place]), False, {}

    def _observation(self) -> NDArray[np.float32]:
        observation = np.zeros(self.tables.n_states, np.float32)
        observation[self._state] = 1
        return observation


class TabularRules:
    """The same tables for planning; the time limit is no part of them."""

    two_players: bool = False

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.n_actions = tables.n_actions

    def read(self, observation_n: NDArray[Any]) -> NDArray[np.int64]:
        state_n: NDArray[np.int64] = observation_n.argmax(1)
        return state_n

    def observe(self, state_n: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.eye(self.tables.n_states, dtype=np.float32)[state_n]

    def legal(self, state_n: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.ones((len(state_n), self.n_actions), np.bool_)

    def step(self, state_n: NDArray[np.int64], action_n: NDArray[np.int64]) -> Move:
        place = state_n, action_n
        return Move(self.tables.next_sa[place], self.tables.reward_sa[place], self.tables.end_sa[place])


class TabularTask(ControlTask):
    """The control task that `Tables` describe; the corridor by default."""

    name: ClassVar[str] = "tabular"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a control task given by tables"
    source: ClassVar[str] = "opdbench.conformance"
    license: ClassVar[str] = "Apache-2.0"
    protocol: ClassVar[str] = "Undiscounted return of full episodes."
    teacher: ClassVar[str | None] = None
    student: ClassVar[str | None] = None
    training: ClassVar[dict[str, Any]] = {"lr": 0.05, "batch": 4, "horizon": 4}
    budget: ClassVar[dict[str, float]] = {"steps": 10}
    env_id: ClassVar[str] = "tabular"
    max_episode_steps: ClassVar[int] = 6
    evaluation_episodes: ClassVar[int] = 20
    student_hidden: ClassVar[Sequence[int]] = (8,)

    def __init__(self, data: str | None = None, params: Any = None, *, tables: Tables | None = None) -> None:
        super().__init__(data, params)
        self.tables = tables if tables is not None else corridor()

    def make(self) -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TimeLimit(TabularEnv(self.tables), self.tables.horizon)

    def model(self) -> TabularRules:
        return TabularRules(self.tables)

    def checksum(self) -> str:
        tables = self.tables
        content = [tables.next_sa.tolist(), tables.reward_sa.tolist(), tables.end_sa.tolist(), list(tables.starts)]
        return hashlib.sha256(f"{self.id} {content} {tables.horizon}".encode()).hexdigest()


class StatePolicy(Policy):
    """A table of logits, one row a state; with `n_features`, a product of two tables, which states share."""

    def __init__(self, n_states: int, n_actions: int, generator: Generator, *, scale: float,
                 n_features: int | None = None) -> None:
        """
        Args:
            generator: draws the tables; `scale` is the standard deviation of the logits, about.
            n_features: H; the number of actions, and no second table, when None.
        """
        super().__init__()
        self.n_actions, self.n_features = n_actions, n_features or n_actions
        self.table = nn.Parameter(torch.empty(n_states, n_features or n_actions, dtype=torch.float64))
        self.head = nn.Parameter(torch.empty(n_actions, n_features, dtype=torch.float64)) if n_features else None
        with torch.no_grad():
            self.table.normal_(generator=generator).mul_(scale / n_features**0.5 if n_features else scale)
            if self.head is not None:
                self.head.normal_(generator=generator)

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        return input_bt.to(self.table.dtype) @ self.table

    def project(self, features_nh: Tensor) -> Tensor:
        return features_nh if self.head is None else features_nh @ self.head.T

    def forward_flops(self, n_states: int, context: float) -> float:
        return 2.0 * n_states * sum(parameter.numel() for parameter in self.parameters())

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")
