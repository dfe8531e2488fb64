"""text-maze: the maze, the environment inside a rollout, grading, and what its lessons ask for."""

from __future__ import annotations

from collections import deque
from itertools import islice
from random import Random

import pytest
import torch

from opdbench.actors import Student
from opdbench.lm.lessons import SKIP
from opdbench.lm.model import load
from opdbench.lm.tokenizer import Tokenizer
from opdbench.lm.world import LanguageWorld
from opdbench.models import resolve
from opdbench.rollouts import Source
from opdbench.task import Example
from opdbench.tasks.text_maze import (
    DISTANCES,
    TextMaze,
    TextMazeUnseen,
    best_moves,
    doors,
    shortest_path,
    trained_pairs,
    transcript,
    unseen_pairs,
    walk,
)
from opdbench.tasks.tiny import ALPHABET, CELLS, EOS, MOVES

CHECKSUMS = {
    "text-maze@1": "92b11ac77bc64f662158680dfb5d5ad93e2958834430cda98cbba390cb3101f8",
    "text-maze-unseen@1": "9466b2615b9a3a5cb2b0f96a38a5c48e80100c2cebb947d87f344e6305269328",
}


@pytest.fixture(scope="module")
def task() -> TextMaze:
    return TextMaze()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.characters(ALPHABET, eos=EOS)


def play(task: TextMaze, tokenizer: Tokenizer, examples: list[Example], moves: str, *, evaluating: bool = False,
         seed: int = 0) -> list[str]:
    """What each example's transcript reads when the model writes `moves`."""
    turns = task.turns(examples, tokenizer, [Random(seed) for _ in examples], evaluating=evaluating)
    texts = []
    for index in range(len(examples)):
        text = ""
        for move in moves:
            (token,) = tokenizer.encode(move)
            reply = turns.reply(index, token)
            text += move + tokenizer.decode(reply.tokens)
            if reply.done:
                break
        texts.append(text)
    return texts


def distances(start: int) -> dict[int, int]:
    """Breadth-first search, written apart from the task's own."""
    found, queue = {start: 0}, deque([start])
    while queue:
        cell = queue.popleft()
        for neighbour in doors()[cell].values():
            if neighbour not in found:
                found[neighbour] = found[cell] + 1
                queue.append(neighbour)
    return found


def test_the_maze_is_perfect() -> None:
    passages = [(cell, move) for cell, open_moves in doors().items() for move in open_moves]
    assert len(passages) == 2 * 63  # a tree over 64 cells, each passage seen from both sides
    assert len(distances(0)) == 64
    back = {"^": "v", "v": "^", "<": ">", ">": "<"}
    assert all(walk(walk(cell, move), back[move]) == cell for cell, move in passages)


def test_best_moves_shorten_the_way_by_one() -> None:
    for goal in {goal for _, goal in trained_pairs()}:
        away = distances(goal)
        assert all(away[walk(cell, move)] == away[cell] - 1 for cell, move in best_moves(goal).items())
        assert len(best_moves(goal)) == 63


def test_trained_and_unseen_pairs_are_far_apart_and_share_no_prompt() -> None:
    assert len(set(trained_pairs())) == 12
    assert len({goal for _, goal in trained_pairs()}) == 4
    for start, goal in [*trained_pairs(), *unseen_pairs()]:
        assert distances(start)[goal] in DISTANCES
    visited = {(CELLS.index(cell), goal) for start, goal in trained_pairs()
               for cell in CELLS[start] + transcript(start, shortest_path(start, goal))[1::2]}
    assert len(unseen_pairs()) > 50
    assert not set(unseen_pairs()) & visited


def test_no_problem_occurs_in_two_splits() -> None:
    """A problem is a prompt with its slips; without slips (training) and with other slips it is another one."""
    for task in (TextMaze(), TextMazeUnseen()):
        problems = [(example.prompt, example.meta["wind"]) for split in ("train", "validation", "test")
                    for example in task.examples(split)]
        assert len(set(problems)) == len(problems)
    trained = {example.prompt for example in TextMazeUnseen().examples("train")}
    assert not trained & {example.prompt for example in TextMazeUnseen().examples("test")}


@pytest.mark.parametrize("cls", [TextMaze, TextMazeUnseen], ids=lambda cls: cls.name)
def test_checksum_is_pinned(cls: type[TextMaze]) -> None:
    assert cls().checksum() == CHECKSUMS[cls().id]


def test_solutions_are_what_the_environment_answers(task: TextMaze, tokenizer: Tokenizer) -> None:
    for example in task.examples("train"):
        moves = example.solution[::2]
        assert play(task, tokenizer, [example], moves) == [example.solution]
        assert len(moves) == example.meta["shortest"]
        assert task.grade(example, example.solution) == {"success": 1.0, "spl": 1.0}


def test_walls_and_what_is_no_move_leave_the_walker_where_it_is(task: TextMaze, tokenizer: Tokenizer) -> None:
    example = task.examples("train")[0]
    start = example.prompt[0]
    blocked = next(move for move in MOVES if move not in doors()[CELLS.index(start)])
    assert play(task, tokenizer, [example], blocked + "+A=") == [f"{blocked}{start}+{start}A{start}={start}"]


def test_the_episode_ends_at_the_limit_of_twice_the_shortest_path(task: TextMaze, tokenizer: Tokenizer) -> None:
    example = task.examples("train")[0]
    (text,) = play(task, tokenizer, [example], "+" * 100)
    assert len(text) == 2 * 2 * example.meta["shortest"] <= task.max_new_tokens
    assert task.grade(example, text) == {"success": 0.0, "spl": 0.0}


def test_the_end_token_is_left_to_the_generator(task: TextMaze, tokenizer: Tokenizer) -> None:
    examples = task.examples("train")
    turns = task.turns(examples, tokenizer, [Random(0) for _ in examples], evaluating=False)
    assert turns.reply(0, tokenizer.eos_id) is None
    assert turns.reply(0, tokenizer.pad_id) is None


def test_slips_come_at_their_rate_and_do_not_depend_on_the_batch(task: TextMaze, tokenizer: Tokenizer) -> None:
    examples = list(task.examples("test"))
    moves = "".join(shortest_path(*trained_pairs()[0]))
    together = play(task, tokenizer, examples, moves, evaluating=True, seed=1)
    alone = [play(task, tokenizer, [example], moves, evaluating=True, seed=2)[0] for example in examples[:20]]
    assert together[:20] == alone
    first = [text for example, text in zip(examples, together, strict=True) if example.prompt == examples[0].prompt]
    slipped = sum(text[1] != transcript(trained_pairs()[0][0], moves)[1] for text in first)
    assert 0 < slipped < len(first) / 3  # 0.1 of 40, of which a quarter slips into the right move
    assert len(set(first)) > 10  # the winds differ


def test_training_slips_only_when_asked(tokenizer: Tokenizer) -> None:
    example = TextMaze().examples("train")[0]
    moves = example.solution[::2]
    slippery = TextMaze(params=TextMaze.Params(training_slip=0.5))
    assert play(slippery, tokenizer, [example], moves) != [example.solution]
    assert play(slippery, tokenizer, [example], moves, seed=5) == play(slippery, tokenizer, [example], moves, seed=5)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        TextMaze.Params(training_slip=2.0)


@pytest.mark.parametrize("text", ["", "^", "$", "^^^^", "ABCDEF", "\0" * 9, "☃☃☃", ">" * 500, ":" * 99])
def test_grading_survives_odd_text(task: TextMaze, text: str) -> None:
    assert task.grade(task.examples("test")[0], text) == {"success": 0.0, "spl": 0.0}


def test_grading_wants_a_possible_walk_within_the_limit(task: TextMaze) -> None:
    example = task.examples("train")[0]
    start, goal = example.prompt[0], example.answer
    assert task.grade(example, ">" + goal)["success"] == 0.0  # a jump
    limit = 2 * example.meta["shortest"]
    waiting = limit - example.meta["shortest"]
    assert task.grade(example, f"+{start}" * waiting + example.solution) == {"success": 1.0, "spl": 0.5}
    assert task.grade(example, f"+{start}" * (waiting + 1) + example.solution)["success"] == 0.0


def test_in_a_rollout_moves_are_rows_and_cells_are_nobodys(task: TextMaze) -> None:
    student = load(resolve("text-maze/student", role="student", task=task))
    world = LanguageWorld(task, student, None, seed=0)
    generator = torch.Generator().manual_seed(0)
    rollouts = world.rollout(Student(temperature=0.0), n=24, horizon=task.max_new_tokens, generator=generator)
    assert rollouts.count(Source.STUDENT) > 100
    for tokens, source, length in zip(rollouts.input_bt, rollouts.source_bt, rollouts.length_b, strict=True):
        text, source = world.tokenizer.decode(tokens[:length].tolist()), source[:length]
        assert source[:2].tolist() == [Source.NOBODY] * 2  # the prompt has three tokens, the last of which is a state
        assert source[2::2].unique().tolist() == [Source.STUDENT]
        assert not source[3::2].any()
        assert set(text[4::2]) <= set(CELLS)


def test_demonstrations_train_on_moves_only(task: TextMaze) -> None:
    student = load(resolve("text-maze/student", role="student", task=task))
    world = LanguageWorld(task, student, None, seed=0)
    rollouts = world.demonstrations(n=12, generator=torch.Generator().manual_seed(0))
    written = world.tokenizer.decode(rollouts.action_bt[rollouts.mask_bt].tolist())
    assert set(written) <= set(MOVES)
    assert len(written) == sum(example.meta["shortest"] for example in task.examples("train"))
    assert rollouts.done_bt.any(1).all()


def test_evaluation_repeats_and_its_score_follows_from_the_text(task: TextMaze) -> None:
    student = load(resolve("text-maze/student", role="student", task=task))
    world = LanguageWorld(task, student, None, seed=0, generation_batch=10)
    outcomes = world.evaluate(student, split="test", mode="greedy", n=30, seed=0)
    assert outcomes == LanguageWorld(task, student, None, seed=9).evaluate(
        student, split="test", mode="greedy", n=30, seed=7)  # the winds are the problems' own
    for outcome, example in zip(outcomes, task.examples("test"), strict=False):
        assert outcome.score == task.grade(example, outcome.output)["success"]
        assert (outcome.output[-1] == example.answer) == bool(outcome.score)


def test_the_teachers_lessons_ask_for_the_best_move_wherever_the_walk_is(task: TextMaze) -> None:
    strayed = 0
    for lesson in islice(task.lessons("teacher", Random(0)), 200):
        goal, cells = CELLS.index(lesson.text[1]), lesson.text[0] + lesson.text[4::2]
        best = "".join(best_moves(goal)[CELLS.index(cell)] for cell in cells)
        assert lesson.targets.replace(SKIP, "") == best
        strayed += lesson.text[3::2] != best
    assert strayed > 100
    clean = {lesson.text for lesson in islice(task.lessons("student", Random(0)), 200)}
    assert clean == {(example.prompt + example.solution)[:-1] for example in task.examples("train")}
