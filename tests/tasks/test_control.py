"""The shipped control tasks and their teachers."""

from __future__ import annotations

import json
from hashlib import sha256
from math import prod
from pathlib import Path
from statistics import fmean

import pytest

import opdbench.tasks
from opdbench.rl.policy import ControlPolicy
from opdbench.rl.world import evaluate, fresh_student
from opdbench.task import ControlTask
from opdbench.tasks.control import Acrobot, CartPole, LunarLander, MountainCar

TRAINED = [CartPole(), Acrobot(), LunarLander()]
TASKS = [*TRAINED, MountainCar()]
SOLVED = {"cartpole": 490, "acrobot": -100, "lunarlander": 200, "mountain-car": -150}
MODELS = Path(opdbench.tasks.__path__[0]) / "models"

every_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


@every_task
def test_teacher_is_what_its_manifest_says(task: ControlTask) -> None:
    folder = MODELS / str(task.teacher)
    manifest = json.loads((folder / "manifest.json").read_text())
    weights = (folder / "policy.safetensors").read_bytes()
    assert manifest["task"] == task.id and manifest["sha256"] == sha256(weights).hexdigest()
    assert len(weights) < 2 << 20
    assert manifest["score"]["greedy"]["mean"] >= SOLVED[task.name]


@every_task
def test_teacher_scores_again_what_it_scored(task: ControlTask) -> None:
    """A few of the manifest's hundred episodes; their mean must be near the whole one's."""
    folder = MODELS / str(task.teacher)
    stored = json.loads((folder / "manifest.json").read_text())["score"]["greedy"]
    n = 20
    scores = [outcome.score for outcome in evaluate(task, ControlPolicy.load(folder), mode="greedy", n=n)]
    assert fmean(scores) == pytest.approx(stored["mean"], abs=4 * stored["std"] / n**0.5 + 1e-9)
    assert min(scores) >= stored["min"] - 1e-6 and max(scores) <= stored["max"] + 1e-6


@pytest.mark.parametrize("task", TRAINED, ids=lambda task: task.name)
def test_student_is_made_from_the_seed_smaller_and_worse_than_the_teacher(task: ControlTask) -> None:
    student, again, other = (fresh_student(task, seed) for seed in (0, 0, 1))
    weights = [policy.state_dict()["layers.0.weight"] for policy in (student, again, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    teacher = ControlPolicy.load(MODELS / str(task.teacher))
    assert student.n_parameters() < teacher.n_parameters() / 2
    scores = [fmean(outcome.score for outcome in evaluate(task, policy, mode="greedy", n=10))
              for policy in (student, teacher)]
    assert scores[0] < scores[1]


@every_task
def test_an_environment_has_the_tasks_limit(task: ControlTask) -> None:
    env = task.make()
    assert env.spec is not None and env.spec.max_episode_steps == task.max_episode_steps
    assert env.observation_space.shape is not None
    numbers_seen = {"cartpole": 4, "acrobot": 6, "lunarlander": 8, "mountain-car": 2}
    assert prod(env.observation_space.shape) == numbers_seen[task.name]
