"""MinAtar's games behind the control world."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opdbench import registry
from opdbench.conformance import check_task
from opdbench.errors import UserError
from opdbench.rl.policy import ControlPolicy
from opdbench.rl.world import evaluate, fresh_student
from opdbench.tasks.minatar import GAMES, MinAtar

pytest.importorskip("minatar", reason="the extra `minatar` is not installed")


@pytest.mark.parametrize("game", GAMES)
def test_every_game_is_played_and_an_episode_depends_on_its_seed_alone(game: str) -> None:
    task = registry.load("task", f"minatar:{game}")()
    env = task.make()  # type: ignore[attr-defined]
    runs = []
    for seed in (3, 5, 3):
        observation, _ = env.reset(seed=seed)
        frames = [observation]
        for step in range(40):
            observation, reward, ended, _, _ = env.step(step % 6)
            frames.append(observation)
            assert np.isfinite(reward)
            if ended:
                break
        runs.append(np.stack(frames))
    assert runs[0].dtype == np.uint8 and runs[0].shape[1:3] == (10, 10) and runs[0].max() == 1
    assert np.array_equal(runs[0], runs[2])


def test_a_student_plays_it_and_evaluation_repeats() -> None:
    task = registry.load("task", "minatar:breakout")()
    student = fresh_student(task, 0)  # type: ignore[arg-type]
    assert isinstance(student, ControlPolicy) and student.architecture.observation_shape == (10, 10, 4)
    with torch.no_grad():
        student.head.weight.mul_(30)
    scores = [[outcome.score for outcome in evaluate(task, student, mode="sampled", n=4)]  # type: ignore[arg-type]
              for _ in range(2)]
    assert scores[0] == scores[1]


def test_the_conformance_suite_passes_it() -> None:
    assert [check for check in check_task(registry.load("task", "minatar:breakout")) if not check.passed] == []


def test_a_game_that_does_not_exist_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="brekout") as refused:
        MinAtar.named("brekout")
    assert "breakout" in str(refused.value.fix)
