"""Tic-tac-toe as a gymnasium environment, and a perfect player of it; apart from the task, whose import is light."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from torch import Tensor, nn

from opdbench.errors import UserError
from opdbench.policy import Policy
from opdbench.tasks.board_games import CELLS, POWERS, Rules, best_moves


class TicTacToeEnv(gymnasium.Env[NDArray[np.float32], int]):
    """The opponent moves inside `step`, and before the first observation when it begins."""

    def __init__(self, opponent: str) -> None:
        self.observation_space = Box(0.0, 1.0, (2 * CELLS,), np.float32)
        self.action_space = Discrete(CELLS)  # type: ignore[assignment]
        self._rules, self._opponent, self._perfect = Rules(), opponent, False
        self._board = np.zeros(CELLS, np.int8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._perfect = {"mixed": bool(self.np_random.integers(2)), "random": False, "perfect": True}[self._opponent]
        self._board = np.zeros(CELLS, np.int8)
        if self.np_random.integers(2):
            self._move(self._reply())
        return self._observation(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._board[action] != 0:
            return self._observation(), -1.0, True, False, {}
        reward, done = self._move(int(action))
        if not done:
            lost, done = self._move(self._reply())
            reward = -lost
        return self._observation(), reward, done, False, {}

    def _move(self, action: int) -> tuple[float, bool]:
        """(reward to whoever moved, whether the game is over)."""
        move = self._rules.step(self._board[None], np.array([action]))
        self._board = move.state_n[0]
        return float(move.reward_n[0]), bool(move.done_n[0])

    def _reply(self) -> int:
        allowed_a = best_moves(self._board[None])[0] if self._perfect else self._board == 0
        return int(self.np_random.choice(np.flatnonzero(allowed_a)))

    def _observation(self) -> NDArray[np.float32]:
        seen: NDArray[np.float32] = self._rules.observe(self._board[None])[0]
        return seen


class BoardPolicy(Policy):
    """A row of logits for every board."""

    def __init__(self, logits_ca: Tensor) -> None:
        super().__init__()
        self.n_features = self.n_actions = CELLS
        self.table = nn.Parameter(logits_ca, requires_grad=False)
        self.register_buffer("powers", torch.from_numpy(POWERS), persistent=False)

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        powers = self.get_buffer("powers")
        board_bt = input_bt[..., :CELLS].long() - input_bt[..., CELLS:].long()
        return self.table[((board_bt + 1) * powers).sum(-1)]

    def project(self, features_nh: Tensor) -> Tensor:
        return features_nh

    def forward_flops(self, n_states: int, context: float) -> float:
        return 0.0  # it is looked up

    def save(self, folder: Path) -> None:
        raise UserError("an exact player is computed from the rules and not stored", "--teacher exact")
