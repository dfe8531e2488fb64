"""Connect four as a gymnasium environment, and its strong player as a policy; apart from the task, whose import is
light."""

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
from opdbench.tasks.connect_four import Rules
from opdbench.tasks.connect_four_search import Search

NEVER = -20.0  # logit of a move that the strong player does not make


class ConnectFourEnv(gymnasium.Env[NDArray[np.float32], int]):
    """The opponent moves inside `step`, and before the first observation when it begins."""

    def __init__(self, rules: Rules, opponent: str, strong: Search) -> None:
        self.observation_space = Box(0.0, 1.0, (2, rules.rows, rules.columns), np.float32)
        self.action_space = Discrete(rules.columns)  # type: ignore[assignment]
        self._rules, self._opponent, self._strong, self._plays_well = rules, opponent, strong, False
        self._board_1 = np.zeros((1, rules.rows, rules.columns), np.int8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None
              ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        drawn = bool(self.np_random.integers(2))
        self._plays_well = {"mixed": drawn, "random": False, "strong": True}[self._opponent]
        self._board_1 = np.zeros_like(self._board_1)
        if self.np_random.integers(2):
            self._move(self._reply())
        return self._observation(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if not self._rules.legal(self._board_1)[0, action]:
            return self._observation(), -1.0, True, False, {}
        reward, done = self._move(int(action))
        if not done:
            lost, done = self._move(self._reply())
            reward = -lost
        return self._observation(), reward, done, False, {}

    def _move(self, action: int) -> tuple[float, bool]:
        """(reward to whoever moved, whether the game is over)."""
        move = self._rules.step(self._board_1, np.array([action]))
        self._board_1 = move.state_n
        return float(move.reward_n[0]), bool(move.done_n[0])

    def _reply(self) -> int:
        allowed = (sorted(self._strong.best(*self._rules.bits(self._board_1)[0])) if self._plays_well
                   else np.flatnonzero(self._rules.legal(self._board_1)[0]))
        return int(self.np_random.choice(allowed))

    def _observation(self) -> NDArray[np.float32]:
        seen: NDArray[np.float32] = self._rules.observe(self._board_1)[0]
        return seen


class StrongPolicy(Policy):
    """Searches in every state that it is asked about; what it has searched once it remembers."""

    def __init__(self, rules: Rules, strong: Search) -> None:
        super().__init__()
        self._rules, self._strong = rules, strong
        self.n_features = self.n_actions = rules.columns
        self.logit_of = nn.Parameter(torch.tensor([NEVER, 0.0]), requires_grad=False)  # of other moves, of best ones

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        board_n = self._rules.read(input_bt.flatten(0, 1).numpy(force=True))
        best_na = np.zeros((len(board_n), self.n_actions), np.int64)
        for row, position in enumerate(self._rules.bits(board_n)):
            best_na[row, list(self._strong.best(*position))] = 1
        return self.logit_of[torch.from_numpy(best_na).to(self.logit_of.device)].view(*input_bt.shape[:2], -1)

    def project(self, features_nh: Tensor) -> Tensor:
        return features_nh

    def forward_flops(self, n_states: int, context: float) -> float:
        return 0.0  # its work is comparisons and shifts of whole numbers

    def save(self, folder: Path) -> None:
        raise UserError("an exact player is computed from the rules and not stored", "--teacher exact")
