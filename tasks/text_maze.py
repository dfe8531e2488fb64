"""An agent's task in text whose errors can be repaired: walk through a maze that answers after every move.

The prompt names start and goal (`Ag:`); the model writes one move (`^`, `>`, `v` or `<`), the environment appends the
cell that was reached (after a wall: the same cell), and so on until the goal or the limit. Only moves are actions;
cells are the environment's turns and are never trained on.

Why it exists: at evaluation a move slips to a random one with probability 0.1, so that a walker leaves the paths of
the demonstrations. Then it helps to have been taught on the states one visits oneself, which is the argument for
on-policy training (Ross, Gordon and Bagnell 2011, "A Reduction of Imitation Learning and Structured Prediction to
No-Regret Online Learning"). The task shows that argument where it holds, and claims no universal superiority.

Design notes, from four designs that were tried. What lies off the path must be learnable within the budget: so one
fixed maze, few goals, and cells that the environment writes and the model only reads. Without slips at evaluation, on-
and off-policy training differ little; with slips in the teacher's own walks, off-policy training covers the same states
and catches up (`--set task.training_slip=0.1` shows it).

The maze is ours: a perfect maze (one path between any two cells), grown from a fixed seed out of a random open cell at
a time, which gives many side passages. In a maze of long corridors a slip rarely leads astray, and a student that was
shown clean paths alone hardly fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from opdbench.lm.lessons import SKIP, Lesson, Recipe, Role
from opdbench.seeds import rng as seeded
from opdbench.task import Example, NoteKind, Reply, Split, Task, Turns
from opdbench.tasks.tiny import CELLS, MOVES, TinyTask, written

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from opdbench.lm.tokenizer import Tokenizer

SIDE = 8
MAZE_SEED = 0
N_GOALS, N_STARTS = 4, 3  # 12 pairs to train on
DISTANCES = range(8, 16)  # from start to goal
_STEP = {"^": -SIDE, ">": 1, "v": SIDE, "<": -1}
_BACK = {"^": "v", ">": "<", "v": "^", "<": ">"}


@cache
def doors() -> dict[int, dict[str, int]]:
    """For every cell (row * 8 + column) the moves that are not blocked by a wall, and where they lead."""
    random = seeded(MAZE_SEED, "text-maze", "walls")
    maze: dict[int, dict[str, int]] = {0: {}}
    growing = [0]
    while growing:
        cell = random.choice(growing)
        fresh = [move for move in MOVES if _inside(cell, move) and cell + _STEP[move] not in maze]
        if not fresh:
            growing.remove(cell)
            continue
        move = random.choice(fresh)
        reached = cell + _STEP[move]
        maze[cell][move] = reached
        maze[reached] = {_BACK[move]: cell}
        growing.append(reached)
    return maze


def _inside(cell: int, move: str) -> bool:
    row, column = divmod(cell, SIDE)
    return {"^": row > 0, ">": column < SIDE - 1, "v": row < SIDE - 1, "<": column > 0}[move]


def walk(cell: int, move: str) -> int:
    """The cell reached by a move; a wall, or anything that is not a move, leaves the walker where it is."""
    return doors()[cell].get(move, cell)


@cache
def best_moves(goal: int) -> dict[int, str]:
    """The one move towards `goal` from every other cell."""
    towards: dict[int, str] = {}
    frontier = [goal]
    for cell in frontier:  # grows while it is read: breadth first
        for move, neighbour in doors()[cell].items():
            if neighbour != goal and neighbour not in towards:
                towards[neighbour] = _BACK[move]
                frontier.append(neighbour)
    return towards


def shortest_path(start: int, goal: int) -> str:
    """The moves of the only path without detours."""
    moves = ""
    while start != goal:
        moves += best_moves(goal)[start]
        start = walk(start, moves[-1])
    return moves


@cache
def trained_pairs() -> tuple[tuple[int, int], ...]:
    """The twelve (start, goal) of the training split: four goals, three starts each, at distance 8 to 15."""
    random = seeded(MAZE_SEED, "text-maze", "pairs")
    goals = random.sample(range(SIDE * SIDE), N_GOALS)
    return tuple((start, goal) for goal in goals for start in random.sample(_far_starts(goal), N_STARTS))


@cache
def unseen_pairs() -> tuple[tuple[int, int], ...]:
    """The same goals from every start at distance 8 to 15 that lies on no trained path to that goal."""
    covered = {(cell, goal) for start, goal in trained_pairs() for cell in _cells(start, shortest_path(start, goal))}
    goals = dict.fromkeys(goal for _, goal in trained_pairs())
    return tuple((start, goal) for goal in goals for start in _far_starts(goal) if (start, goal) not in covered)


def _far_starts(goal: int) -> list[int]:
    return [cell for cell in range(SIDE * SIDE) if cell != goal and len(shortest_path(cell, goal)) in DISTANCES]


def _cells(start: int, moves: str) -> list[int]:
    cells = [start]
    for move in moves:
        cells.append(walk(cells[-1], move))
    return cells


def transcript(start: int, moves: str) -> str:
    """Moves and reached cells in turn, as a rollout without slips reads."""
    return "".join(move + CELLS[cell] for move, cell in zip(moves, _cells(start, moves)[1:], strict=True))


class TextMaze(TinyTask):
    """Reach the goal of an 8x8 maze within twice the shortest path, on a floor that is slippery at evaluation."""

    name: ClassVar[str] = "text-maze"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "walk a maze by text, one move a turn; moves slip at evaluation"
    source: ClassVar[str] = "generated by opdbench: one fixed 8x8 perfect maze, 4 goals, 3 starts each"
    license: ClassVar[str] = "Apache-2.0 (part of opdbench)"
    protocol: ClassVar[str] = (
        "Success: the goal within twice the shortest path, while every move slips to a uniformly random one with "
        "probability 0.1. Test: the 12 trained pairs of start and goal, each under 40 sequences of slips that are "
        "drawn once for all (the same for every method), and that occur neither in training, which does not slip, nor "
        "in validation. Greedy success is the headline, sampled success (temperature 1) stands beside. "
        "text-maze-unseen asks the same of starts that no demonstration visits.")
    metric: ClassVar[str] = "success"
    teacher: ClassVar[str | None] = "text-maze/teacher"
    student: ClassVar[str | None] = "text-maze/student"
    max_new_tokens: ClassVar[int] = 2 * 2 * (DISTANCES.stop - 1)  # two tokens a move, twice the longest distance
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-3, "batch": 48}
    budget: ClassVar[Mapping[str, float]] = {"steps": 60}
    recipes: ClassVar[Mapping[Role, Recipe]] = {
        "teacher": Recipe(hidden=96, layers=3, heads=4, intermediate=256, steps=500, batch=32, lr=6e-3),
        "student": Recipe(hidden=48, layers=2, heads=4, intermediate=128, steps=100, batch=12, lr=3e-3),
    }
    slip: ClassVar[float] = 0.1  # at evaluation
    winds: ClassVar[Mapping[Split, int]] = {"validation": 15, "test": 40}  # sequences of slips for every pair

    class Params(Task.Params):
        training_slip: float = Field(0.0, ge=0, le=1, description="probability that a move slips in training rollouts")

    def make_splits(self) -> dict[Split, Sequence[Example]]:
        return {"train": [self._problem("train", index, pair) for index, pair in enumerate(trained_pairs())],
                "validation": self._windy("validation", trained_pairs()),
                "test": self._windy("test", self.tested_pairs())}

    def tested_pairs(self) -> Sequence[tuple[int, int]]:
        return trained_pairs()

    def _windy(self, split: Split, pairs: Sequence[tuple[int, int]]) -> list[Example]:
        """Every pair under every wind; all pairs come once before any comes again, so that a prefix is balanced."""
        problems = [pair for _ in range(self.winds[split]) for pair in pairs]
        return [self._problem(split, index, pair, wind=f"{split}/{index}") for index, pair in enumerate(problems)]

    def _problem(self, split: Split, index: int, pair: tuple[int, int], wind: str | None = None) -> Example:
        start, goal = pair
        moves = shortest_path(start, goal)
        return Example(id=f"{self.name}-{split}-{index}", prompt=f"{CELLS[start]}{CELLS[goal]}:", answer=CELLS[goal],
                       solution=transcript(start, moves), meta={"shortest": len(moves), "wind": wind})

    def turns(self, examples: Sequence[Example], tokenizer: Tokenizer, rngs: Sequence[Random], *,
              evaluating: bool) -> Turns:
        return _Walks(examples, tokenizer, rngs, slip=self.slip if evaluating else self.params.training_slip)

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """Success, and success weighted by path length (SPL; Anderson et al. 2018, arXiv:1807.06757).

        The environment writes every second character, so a completion proves the walk; one that no environment can
        have written scores 0.
        """
        assert isinstance(example.prompt, str)
        shortest = example.meta["shortest"]
        reached = _cells_reached(example.prompt[0], written(completion))[: 2 * shortest]
        moves = reached.index(example.answer) + 1 if example.answer in reached else None
        return {"success": float(moves is not None), "spl": min(1.0, shortest / moves) if moves else 0.0}

    def pictures(self, example: Example, completion: str) -> Sequence[NDArray[np.uint8]]:
        """The walk, cell by cell."""
        from opdbench.tasks.pictures import maze

        joined = {(cell, other) for cell, ways in doors().items() for other in ways.values()}
        cells = str(example.prompt)[0] + _cells_reached(str(example.prompt)[0], written(completion))
        return [maze(joined, SIDE, at=CELLS.index(cell), goal=CELLS.index(example.answer)) for cell in cells]

    def notes(self, example: Example) -> dict[NoteKind, str]:
        """A hint is the first move; the cue, which ways the goal lies."""
        assert example.solution is not None
        (row, column), (goal_row, goal_column) = (divmod(CELLS.index(cell), SIDE) for cell in str(example.prompt)[:2])
        ways = ("v" if goal_row > row else "^") * (row != goal_row)
        ways += (">" if goal_column > column else "<") * (column != goal_column)
        return {**super().notes(example), "hint": example.solution[0], "cues": ways}

    def feedback(self, example: Example, completion: str) -> str | None:
        """The last cell that was reached."""
        return _cells_reached(str(example.prompt)[0], written(completion))[-1:] or None

    def lessons(self, role: Role, rng: Random) -> Iterator[Lesson]:
        """The student is shown the clean paths of the trained pairs. The teacher starts anywhere, goes astray, and
        hears the best move wherever it is, so that it is competent on the states that a student reaches."""
        while True:
            start, goal = rng.choice(trained_pairs())
            if role == "student":
                yield _lesson(start, goal, 0.0, rng)
            else:
                start = rng.choice([cell for cell in range(SIDE * SIDE) if cell != goal])
                yield _lesson(start, goal, rng.uniform(0.0, 0.6), rng)


def _lesson(start: int, goal: int, stray: float, rng: Random) -> Lesson:
    """A walk on which a move is random with probability `stray`; what is asked for is the best move, everywhere."""
    cell, text, targets = start, f"{CELLS[start]}{CELLS[goal]}:", SKIP * 2
    for _ in range(2 * (DISTANCES.stop - 1)):
        best = best_moves(goal)[cell]
        move = rng.choice(MOVES) if rng.random() < stray else best
        cell = walk(cell, move)
        text += move + CELLS[cell]
        targets += best + SKIP
        if cell == goal:
            break
    return Lesson(text[:-1], targets)


class TextMazeUnseen(TextMaze):
    """text-maze, tested from starts that no demonstration visits: trained, taught and graded the same."""

    name: ClassVar[str] = "text-maze-unseen"
    summary: ClassVar[str] = "text-maze, tested from starts that no demonstration visits"
    winds: ClassVar[Mapping[Split, int]] = {"validation": 15, "test": 4}

    def tested_pairs(self) -> Sequence[tuple[int, int]]:
        return unseen_pairs()


class _Walks:
    """The environment of a batch of walks: answers every character of the walker's with the cell that it reached.

    Slips at evaluation come from the problem's own wind, so that they do not depend on what else is in the batch and
    are the same for every method; without a wind they are drawn from the walk's rng.
    """

    def __init__(self, examples: Sequence[Example], tokenizer: Tokenizer, rngs: Sequence[Random], slip: float) -> None:
        self._moves = {_token(tokenizer, move): move for move in MOVES}
        self._tokens = [_token(tokenizer, cell) for cell in CELLS]
        self._tokenizer = tokenizer
        self._cells = [CELLS.index(example.prompt[0]) for example in examples]
        self._goals = [CELLS.index(example.answer) for example in examples]
        self._moves_left = [2 * example.meta["shortest"] for example in examples]
        self._winds = [seeded(0, "text-maze", wind) if (wind := example.meta["wind"]) else rng
                       for example, rng in zip(examples, rngs, strict=True)]
        self._slip = slip

    def reply(self, index: int, token: int) -> Reply | None:
        """The cell reached, after a character that is no move as after a wall; nothing after an end or padding token,
        which leaves no trace in the text."""
        move = self._moves.get(token, "")
        if not move and not self._tokenizer.decode([token]):
            return None
        wind = self._winds[index]
        slips, slipped_to = wind.random() < self._slip, wind.choice(MOVES)
        cell = walk(self._cells[index], slipped_to if slips else move)
        self._cells[index] = cell
        self._moves_left[index] -= 1
        return Reply([self._tokens[cell]], done=cell == self._goals[index] or self._moves_left[index] == 0)


def _token(tokenizer: Tokenizer, character: str) -> int:
    (token,) = tokenizer.encode(character)
    return token


def _cells_reached(start: str, text: str) -> str:
    """The cells of a transcript, up to the first thing that no environment can have written."""
    reached = ""
    for cell in text[1::2]:
        here = CELLS.index(reached[-1] if reached else start)
        if cell not in CELLS or CELLS.index(cell) not in (here, *doors()[here].values()):
            break
        reached += cell
    return reached
