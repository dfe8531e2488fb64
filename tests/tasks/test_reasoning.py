"""chain-sum, number-sorting and base-conversion: problems, grading, and the models that they ship."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import reasoning_gym

from opdbench.lm import model as models
from opdbench.lm.lessons import SKIP, Lesson
from opdbench.lm.world import LanguageWorld
from opdbench.models import resolve
from opdbench.tasks.reasoning import BaseConversion, ChainSum, NumberSorting, ReasoningTask
from opdbench.tasks.text_maze import TextMaze
from opdbench.tasks.tiny import TinyTask

SPLITS = ("train", "validation", "test")
# A change of these is a change of the task: raise its version.
CHECKSUMS = {
    "chain-sum@1": "4b79b89dd0e948f002eb9bffa47c5fc1c099901041a4578659c27cb3f40a6c5d",
    "number-sorting@1": "e120dc579e909139ef96b939fc6449ac5ed8488cd68ca5c641157bf3cf5d53bc",
    "base-conversion@1": "8ad10d0043966fdc21725a596f1a8ebfc6a450d9b1c510d483089bfeaaa6c73a",
}
ODD_COMPLETIONS = ("", ":", "::", "$", "12:", ":$:", "\0", "<pad>", "४२:४२", "1;2;3" * 500, " 12 ", "+12", "012",
                   "12.0")


@pytest.fixture(scope="module", params=[ChainSum, NumberSorting, BaseConversion], ids=lambda cls: cls.name)
def task(request: pytest.FixtureRequest) -> ReasoningTask:
    return request.param()


def test_no_prompt_occurs_twice_in_any_split(task: ReasoningTask) -> None:
    prompts = [example.prompt for split in SPLITS for example in task.examples(split)]
    assert len(prompts) == sum(task.sizes.values())
    assert len(set(prompts)) == len(prompts)


def test_splits_read_stretches_of_the_generator_that_cannot_overlap(task: ReasoningTask) -> None:
    """Item i is seeded with seed + i, so what counts is that no (seed + i) is shared."""
    for split in SPLITS:
        last = int(task.examples(split)[-1].id.rpartition("-")[2])
        assert last < 10_000_000
    assert task.examples("test")[0].prompt != task.examples("validation")[0].prompt


def test_problems_are_made_within_three_seconds(task: ReasoningTask) -> None:
    began = time.process_time()
    type(task)().examples("train")
    assert time.process_time() - began < 3


def test_checksum_is_pinned_and_depends_on_the_problems(task: ReasoningTask) -> None:
    assert task.checksum() == CHECKSUMS[task.id]
    smaller = type("Smaller", (type(task),), {"sizes": {"train": 5, "validation": 5, "test": 5}})
    assert smaller().checksum() != task.checksum()


def test_every_solution_is_right_fits_and_can_be_written(task: ReasoningTask) -> None:
    for split in SPLITS:
        for example in task.examples(split):
            assert example.solution is not None
            assert set(task.grade(example, example.solution).values()) == {1.0}
            assert len(example.solution) + 1 <= task.max_new_tokens
            assert set(example.prompt + example.solution) <= set(task.alphabet)


def test_answers_follow_from_the_prompts() -> None:
    for example in ChainSum().examples("test"):
        assert int(example.answer) == sum(map(int, example.prompt.rstrip("=").split("+")))
    for example in NumberSorting().examples("test"):
        numbers = sorted(map(int, example.prompt[:-1].split(",")), reverse=example.prompt[-1] == ">")
        assert list(map(int, example.answer.split(","))) == numbers
    for example in BaseConversion().examples("test"):
        base, _, rest = example.prompt.rstrip("=").partition(",")
        digits, _, target = rest.partition(">")
        assert int(example.answer, int(target)) == int(digits, int(base))


def test_answers_agree_with_reasoning_gyms_own_verifier(task: ReasoningTask) -> None:
    items = reasoning_gym.create_dataset(task.generator, seed=7, size=50, **task.settings)
    for item in items:
        _, answer, solution = task.problem(item)
        assert solution.endswith(answer)
        spoken = str([number + ".0" for number in answer.split(",")]) if task.name == "number-sorting" else answer
        assert items.score_answer(spoken, item) == 1.0
        assert items.score_answer(spoken.replace(answer[-1], "?", 1), item) < 1.0


@pytest.mark.parametrize("completion", ODD_COMPLETIONS)
def test_grading_survives_odd_text_and_takes_nothing_but_the_exact_answer(task: ReasoningTask, completion: str) -> None:
    example = next(example for example in task.examples("test") if example.answer != "12")
    assert task.grade(example, completion)["accuracy"] == 0.0


def test_grading_reads_what_follows_the_last_colon_up_to_the_end_token() -> None:
    task = ChainSum()
    example = task.examples("test")[0]
    totals, _, answer = example.solution.rpartition(":")
    assert task.grade(example, example.solution + "$") == {"accuracy": 1.0, "worked": 1.0}
    assert task.grade(example, f"1;2:{answer}") == {"accuracy": 1.0, "worked": 0.0}
    assert task.grade(example, f"{totals}:{answer}0")["accuracy"] == 0.0
    assert task.grade(example, f"{totals}:{answer}:")["accuracy"] == 0.0
    assert task.grade(example, totals + ":" + answer[:1])["accuracy"] == float(len(answer) == 1)


def test_a_lesson_asks_for_the_completion_and_nothing_else() -> None:
    lesson = Lesson.of_completion("1+2=", "3$")
    assert (lesson.text, lesson.targets) == ("1+2=3", SKIP * 3 + "3$")
    with pytest.raises(ValueError, match="one target a character"):
        Lesson("ab", "a")


def test_lessons_repeat_with_their_generator_and_keep_to_the_recipes_problems(task: ReasoningTask) -> None:
    limit = task.recipes["student"].problems
    assert limit is not None
    stream = list(islice(task.lessons("student", Random(3)), 2 * limit))
    assert stream == list(islice(task.lessons("student", Random(3)), 2 * limit))
    assert {lesson.text for lesson in stream} == {
        example.prompt + example.solution for example in task.examples("train")[:limit]}


def shipped() -> Iterator[tuple[TinyTask, str]]:
    for cls in (ChainSum, NumberSorting, BaseConversion, TextMaze):
        for role in ("teacher", "student"):
            yield cls(), role


@pytest.mark.parametrize(("task", "role"), shipped(), ids=lambda value: getattr(value, "name", value))
def test_shipped_models_are_what_their_manifests_say(task: TinyTask, role: str) -> None:
    folder = resolve(f"{task.name}/{role}", role=role, task=task)
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = (folder / "model.safetensors").read_bytes()
    assert len(weights) <= 2 * 2**20
    assert sha256(weights).hexdigest() == manifest["sha256"]
    assert (manifest["task"], manifest["task_sha256"], manifest["role"]) == (task.id, task.checksum(), role)
    assert manifest["command"].startswith(f"opdbench teacher train {task.name}")
    assert measured(task, folder, n=60) == pytest.approx(manifest["score"]["greedy"][task.metric], abs=0.2)


def measured(task: TinyTask, folder: Path, n: int) -> float:
    policy = models.load(folder)
    outcomes = LanguageWorld(task, policy, None, seed=0).evaluate(policy, split="test", mode="greedy", n=n, seed=0)
    return sum(outcome.score for outcome in outcomes) / n


@pytest.mark.parametrize(("task", "role"), shipped(), ids=lambda value: getattr(value, "name", value))
def test_shipped_scores_leave_room_between_student_and_teacher(task: TinyTask, role: str) -> None:
    folder = resolve(f"{task.name}/{role}", role=role, task=task)
    score = json.loads((folder / "manifest.json").read_text())["score"]["greedy"][task.metric]
    if role == "teacher":
        assert score >= {"chain-sum": 0.97, "text-maze": 0.95}.get(task.name, 0.9)
    else:
        low, high = {"chain-sum": (0.1, 0.3), "text-maze": (0.6, 0.9)}.get(task.name, (0.1, 0.5))
        assert low <= score <= high
