"""Connect four against opponents, with rules to plan with and a strong player to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from itertools import product
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
    from opdbench.tasks.connect_four_search import Search

Boards = NDArray[np.int8]  # [N, rows, columns], row 0 at the bottom: 1 whoever is to move, -1 the other, 0 empty
ENDGAME = 20  # free cells from which on the strong player is exact
_SOURCES = ("connect_four.py", "connect_four_env.py", "connect_four_search.py")


class ConnectFour(ControlTask):
    """Against an opponent who moves inside a step; who begins is drawn. A move into a full column loses at once."""

    name: ClassVar[str] = "connect-four"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "four in a row on 7x6 against a random and a strong player (84 numbers seen, 7 actions)"
    source: ClassVar[str] = "connect four; the strong player is an alpha-beta search"
    license: ClassVar[str] = "Apache-2.0"
    protocol: ClassVar[str] = (
        "Mean outcome of full games: 1 won, 0 drawn, -1 lost or an illegal move. Who begins and, with "
        "`opponent=mixed`, who the opponent is, are drawn from the game's seed. The strong player, which is also the "
        f"teacher `exact`, plays perfectly once {ENDGAME} cells or fewer are free, so on 5x4 always; before that it "
        "looks `depth` plies ahead.")
    metric: ClassVar[str] = "return"
    teacher: ClassVar[str | None] = "exact"
    student: ClassVar[str | None] = None
    student_hidden: ClassVar[Sequence[int]] = (256,)
    env_id: ClassVar[str] = "connect-four"
    max_episode_steps: ClassVar[int] = 21
    training: ClassVar[Mapping[str, Any]] = {"lr": 3e-3, "batch": 32, "horizon": 16}
    budget: ClassVar[Mapping[str, float]] = {"tokens": 51_200}

    class Params(Task.Params):
        board: Literal["7x6", "5x4"] = Field("7x6", description="columns x rows")
        opponent: Literal["mixed", "random", "strong"] = Field(
            "mixed", description="random: any free column; strong: any of the best moves; mixed: one of them a game")
        depth: int = Field(8, ge=1, le=42, description="plies that the strong player looks ahead")

    @property
    def size(self) -> tuple[int, int]:
        """(columns, rows)."""
        columns, rows = map(int, self.params.board.split("x"))
        return columns, rows

    def make(self) -> gymnasium.Env[Any, Any]:
        from opdbench.tasks.connect_four_env import ConnectFourEnv

        env: gymnasium.Env[Any, Any] = ConnectFourEnv(Rules(*self.size), self.params.opponent, self.strong())
        return env

    def model(self) -> Model:
        return Rules(*self.size)

    def strong(self) -> Search:
        """The strong player; one for all tasks of these parameters, so that what it has searched is known to all."""
        return _strong(*self.size, self.params.depth)

    def exact_teacher(self) -> Policy:
        """Any of the strong player's best moves, all as likely."""
        from opdbench.tasks.connect_four_env import StrongPolicy

        player: Policy = StrongPolicy(Rules(*self.size), self.strong())
        return player

    def checksum(self) -> str:
        source = b"".join(Path(__file__).with_name(name).read_bytes() for name in _SOURCES)
        return sha256(f"{self.id} {self.params.model_dump_json()}".encode() + source).hexdigest()


class Rules:
    """Stones fall to the lowest free cell of a column. After a move the board is turned, so that 1 is whoever moves
    next."""

    two_players = True

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.n_actions = columns
        self._lines = _lines(columns, rows)
        self._bits = (1 << np.arange(columns) * (rows + 1) + np.arange(rows)[:, None]).astype(np.int64)

    def read(self, observation_n: NDArray[Any]) -> Boards:
        board_n: Boards = (observation_n[:, 0] - observation_n[:, 1]).astype(np.int8)
        return board_n

    def observe(self, state_n: Boards) -> NDArray[np.float32]:
        """[N, 2, rows, columns]: own stones, then the other's."""
        return np.stack([state_n > 0, state_n < 0], axis=1).astype(np.float32)

    def legal(self, state_n: Boards) -> NDArray[np.bool_]:
        room_na: NDArray[np.bool_] = state_n[:, -1] == 0
        return room_na

    def step(self, state_n: Boards, action_n: NDArray[np.int64]) -> Move:
        from opdbench.rl.search import Move

        board_n, every_n = state_n.copy(), np.arange(len(state_n))
        board_n[every_n, (board_n[every_n, :, action_n] != 0).sum(1), action_n] = 1
        won_n = (board_n.reshape(len(board_n), -1)[:, self._lines] == 1).all(2).any(1)
        return Move(-board_n, won_n.astype(np.float64), won_n | (board_n != 0).all((1, 2)))

    def bits(self, state_n: Boards) -> list[tuple[int, int]]:
        """(own stones, taken cells) of every board, as `Search` has them."""
        own_n, taken_n = (((where_n * self._bits).sum((1, 2))).tolist() for where_n in (state_n > 0, state_n != 0))
        return list(zip(own_n, taken_n, strict=True))


@cache
def _strong(columns: int, rows: int, depth: int) -> Search:
    from opdbench.tasks.connect_four_search import Search

    return Search(columns, rows, depth=depth, endgame=ENDGAME)


def _lines(columns: int, rows: int) -> NDArray[np.int64]:
    """The cells [L, 4] of every line of four; cell (row, column) has the number row * columns + column."""
    lines = [[(row + i * up) * columns + column + i * right for i in range(4)]
             for row, column, (up, right) in product(range(rows), range(columns), ((0, 1), (1, 0), (1, 1), (1, -1)))
             if row + 3 * up < rows and 0 <= column + 3 * right < columns]
    return np.array(lines)
