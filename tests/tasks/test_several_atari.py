"""One convolutional student of two Atari games, taught by random networks: no more than that the pieces fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from opdbench import run, worlds
from opdbench.actors import Teacher
from opdbench.frames import FrameStacks
from opdbench.resolve import Plan, Request, resolve
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.games_policy import GamesPolicy
from opdbench.seeds import generator
from tests.test_run import Watcher

pytest.importorskip("ale_py.vector_env", reason="the extra `atari` is not installed")
TASK = "several:atari/pong@v5-sticky+atari/breakout@v5-sticky"
GAMES = {"atari-v5-sticky:pong": 6, "atari-v5-sticky:breakout": 4}


def plan(tmp_path: Path, method: str, *settings: str) -> Plan:
    for number, actions in enumerate(GAMES.values()):
        ConvPolicy.named("net3", actions, generator=generator(number, "teacher")).save(tmp_path / f"teacher-{number}")
    teacher = "route:game:" + ",".join(f"{game}={tmp_path / f'teacher-{number}'}" for number, game in enumerate(GAMES))
    always = ("max_frames=40", "batch=2", "horizon=4", "evaluation.examples=1", "curve_points=0", "controller=8",
              "evaluation.sampled=false")
    return resolve(Request(method=method, task=TASK, budget=("steps=2",), teacher=teacher,
                           settings=(*always, *settings)))


def test_states_of_both_games_are_stored_one_frame_a_step_with_their_mark(tmp_path: Path) -> None:
    world = worlds.build(plan(tmp_path, "policy-distillation"))
    rollouts = world.rollout(Teacher(), n=4, horizon=12, generator=generator(0, "roll"))
    stacks = rollouts.input_bt
    assert isinstance(stacks, FrameStacks) and stacks.shape == (4, 12, 4, 85, 84)
    assert len(stacks.compact().blocks[0]) <= 4 * (12 + 3)
    assert stacks.built()[:, :, -1, -1, 0].tolist() == [[0] * 12] * 2 + [[1] * 12] * 2
    assert rollouts.action_bt[2:].max() < 4


@pytest.mark.parametrize("method", ["policy-distillation", pytest.param("actor-mimic", marks=pytest.mark.slow),
                                    pytest.param("continual", marks=pytest.mark.slow)])
def test_a_convolutional_student_learns_from_random_networks_of_two_games(method: str, tmp_path: Path) -> None:
    asked = plan(tmp_path, method)
    record = run.execute(asked, run.run_folder(tmp_path / "results", asked.spec.recipe), Watcher())
    assert record.status == "completed", record.reason
    assert len(record.curve) == 2 and all(np.isfinite(step["loss"]) for step in record.curve)
    assert {*GAMES} <= {*record.after["greedy"].extra}
    student = GamesPolicy.load(next((tmp_path / "results").rglob("student")))
    assert student.form.actions == (6, 4) and student.architecture.controller == 8
