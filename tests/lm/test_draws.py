"""What is drawn does not depend on how many sequences are written together: in float64, token for token."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from opdbench.actors import Actor, Mixture, Student, Teacher
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.world import LanguageWorld
from opdbench.models import resolve
from opdbench.rollouts import Rollouts
from opdbench.seeds import generator
from opdbench.task import LanguageTask
from opdbench.tasks.reasoning import ChainSum
from opdbench.tasks.text_maze import TextMaze

TASKS = {"chain-sum": ChainSum(), "text-maze": TextMaze(params=TextMaze.Params(training_slip=0.3))}


@pytest.fixture(scope="module", params=TASKS)
def worlds(request: pytest.FixtureRequest) -> list[LanguageWorld]:
    """One task and its models in worlds of generation batch 64, 7 and 1."""
    task: LanguageTask = TASKS[request.param]

    def model(role: Any) -> LanguagePolicy:
        return load(resolve(f"{task.name}/{role}", role=role, task=task), dtype=torch.float64)

    student, teacher = model("student"), model("teacher")
    return [LanguageWorld(task, student, teacher, seed=0, generation_batch=batch) for batch in (64, 7, 1)]


def rollout(world: LanguageWorld, actor: Actor, n: int = 16) -> Rollouts:
    world.load_state_dict({"cursor": 0})
    return world.rollout(actor, n=n, horizon=world.task.max_new_tokens, generator=generator(0, "test"))


@pytest.mark.parametrize("actor", [Student(), Student(0.7), Teacher(), Mixture(0.5)], ids=repr)
def test_rollouts_do_not_depend_on_the_generation_batch(worlds: list[LanguageWorld], actor: Actor) -> None:
    together, *others = [rollout(world, actor) for world in worlds]
    assert len(together.length_b.unique()) > 1, "some end before others, so that batches shrink"
    for other in others:
        for name, value in together.tensors().items():
            if name == "behaviour_logp_bt":
                torch.testing.assert_close(other.behaviour_logp_bt, value, rtol=1e-6, atol=1e-6, equal_nan=True)
            else:
                assert torch.equal(other.tensors()[name], value), name


def test_a_mixture_without_a_teacher_writes_what_the_student_writes(worlds: list[LanguageWorld]) -> None:
    student, mixture = (rollout(worlds[0], actor) for actor in (Student(), Mixture(0.0)))
    assert torch.equal(student.input_bt, mixture.input_bt) and torch.equal(student.source_bt, mixture.source_bt)


@pytest.mark.parametrize("mode", ["greedy", "sampled"])
def test_evaluation_depends_neither_on_the_generation_batch_nor_on_how_much_is_evaluated(
        worlds: list[LanguageWorld], mode: Any) -> None:
    together, *others = [world.evaluate(world.student, split="test", mode=mode, n=16, seed=3) for world in worlds]
    assert all(other == together for other in others)
    assert worlds[0].evaluate(worlds[0].student, split="test", mode=mode, n=5, seed=3) == together[:5]


def test_trajectories_of_one_prompt_and_rollouts_of_one_world_differ(worlds: list[LanguageWorld]) -> None:
    world = worlds[0]
    draws = generator(0, "test")
    groups = [world.rollout(Student(2.0), n=8, horizon=20, generator=draws, repeat=8) for _ in range(2)]
    assert all(len({tuple(row) for row in group.action_bt.tolist()}) > 1 for group in groups)
    seeds = [world.evaluate(world.student, split="test", mode="sampled", n=16, seed=seed) for seed in (3, 4)]
    assert seeds[0] != seeds[1]
