"""Board games against opponents, with rules to plan with: tic-tac-toe, solved exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from opdbench.task import ControlTask, Task

if TYPE_CHECKING:
    import gymnasium

    from opdbench.policy import Policy
    from opdbench.rl.search import Model, Move

CELLS = 9
LINES = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 3, 6], [1, 4, 7], [2, 5, 8], [0, 4, 8], [2, 4, 6]])
POWERS = 3 ** np.arange(CELLS)
NEVER = -20.0  # logit of a move that a perfect player does not make
Boards = NDArray[np.int8]  # [N, 9]: 1 whoever is to move, -1 the other, 0 empty


class Rules:
    """Tic-tac-toe. After a move the board is turned, so that 1 is whoever moves next."""

    n_actions = CELLS
    two_players = True

    def read(self, observation_n: NDArray[Any]) -> Boards:
        board_n: Boards = (observation_n[:, :CELLS] - observation_n[:, CELLS:]).astype(np.int8)
        return board_n

    def observe(self, state_n: Boards) -> NDArray[np.float32]:
        """[N, 18]: own stones, then the other's."""
        return np.concatenate([state_n > 0, state_n < 0], axis=1).astype(np.float32)

    def legal(self, state_n: Boards) -> NDArray[np.bool_]:
        free_n: NDArray[np.bool_] = state_n == 0
        return free_n

    def step(self, state_n: Boards, action_n: NDArray[np.int64]) -> Move:
        from opdbench.rl.search import Move

        board_n = state_n.copy()
        board_n[np.arange(len(board_n)), action_n] = 1
        won_n = (board_n[:, LINES] == 1).all(2).any(1)
        return Move(-board_n, won_n.astype(np.float64), won_n | (board_n != 0).all(1))


def code(board_n: Boards) -> NDArray[np.int64]:
    """A number [N] for every board, below 3^9."""
    return (board_n.astype(np.int64) + 1) @ POWERS


@cache
def solved() -> NDArray[np.float64]:
    """The value of every move to whoever makes it, by exhaustive search: [3^9, 9], NaN where it cannot be made."""
    rules = Rules()
    layers = [np.zeros((1, CELLS), np.int8)]  # every board that can come up and is no end, by number of stones
    for _ in range(CELLS):
        move, _ = _every_move(rules, layers[-1])
        layers.append(np.unique(move.state_n[~move.done_n], axis=0))
    value_ca = np.full((3**CELLS, CELLS), np.nan)
    for board_n in reversed(layers[:-1]):
        move, (row_k, action_k) = _every_move(rules, board_n)
        later_k = np.zeros(len(row_k))
        later_k[~move.done_n] = -np.nanmax(value_ca[code(move.state_n[~move.done_n])], axis=1)
        value_ca[code(board_n[row_k]), action_k] = move.reward_n + later_k
    return value_ca


def _every_move(rules: Rules, board_n: Boards) -> tuple[Move, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    row_k, action_k = np.nonzero(rules.legal(board_n))
    return rules.step(board_n[row_k], action_k), (row_k, action_k)


def reachable() -> Boards:
    """Every board that can come up and is no end."""
    codes = np.flatnonzero(~np.isnan(solved()).all(1))
    return (codes[:, None] // POWERS % 3 - 1).astype(np.int8)


def best_moves(board_n: Boards) -> NDArray[np.bool_]:
    """[N, 9], the moves that a perfect player may make."""
    value_na = solved()[code(board_n)]
    best_na: NDArray[np.bool_] = value_na == np.nanmax(value_na, axis=1, keepdims=True)
    return best_na


class TicTacToe(ControlTask):
    """Against an opponent who moves inside a step; who begins is drawn. A move onto a taken cell loses at once."""

    name: ClassVar[str] = "tic-tac-toe"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "three in a row against a random and a perfect player (18 numbers seen, 9 actions)"
    source: ClassVar[str] = "tic-tac-toe, solved by exhaustive search"
    license: ClassVar[str] = "Apache-2.0"
    protocol: ClassVar[str] = ("Mean outcome of full games: 1 won, 0 drawn, -1 lost or an illegal move. Who begins "
                               "and, with `opponent=mixed`, who the opponent is, are drawn from the game's seed.")
    metric: ClassVar[str] = "return"
    teacher: ClassVar[str | None] = "exact"
    student: ClassVar[str | None] = None
    student_hidden: ClassVar[Sequence[int]] = (128,)
    env_id: ClassVar[str] = "tic-tac-toe"
    max_episode_steps: ClassVar[int] = 5
    training: ClassVar[Mapping[str, Any]] = {"lr": 3e-3, "batch": 32, "horizon": 8}
    budget: ClassVar[Mapping[str, float]] = {"tokens": 51_200}

    class Params(Task.Params):
        opponent: Literal["mixed", "random", "perfect"] = Field(
            "mixed", description="random: any free cell; perfect: any of the best moves; mixed: one of them a game")

    def make(self) -> gymnasium.Env[Any, Any]:
        from opdbench.tasks.board_game_env import TicTacToeEnv

        env: gymnasium.Env[Any, Any] = TicTacToeEnv(self.params.opponent)
        return env

    def model(self) -> Model:
        return Rules()

    def exact_teacher(self) -> Policy:
        """Any of the best moves, all as likely."""
        import torch

        from opdbench.tasks.board_game_env import BoardPolicy

        value_ca = np.nan_to_num(solved(), nan=-np.inf)
        best_ca = (value_ca == value_ca.max(1, keepdims=True)) & np.isfinite(value_ca)
        player: Policy = BoardPolicy(torch.from_numpy(np.where(best_ca, 0.0, NEVER)).float())
        return player

    def checksum(self) -> str:
        source = Path(__file__).with_name("board_game_env.py").read_bytes() + Path(__file__).read_bytes()
        return sha256(f"{self.id} {self.params.opponent}".encode() + source).hexdigest()
