"""Atari games on real cartridges: what is seen, how episodes begin and end, what a score depends on."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch

from opdbench import registry, run, worlds
from opdbench.actors import Student
from opdbench.conformance import check_task
from opdbench.errors import UserError
from opdbench.frames import FrameStacks
from opdbench.models import shipped_models
from opdbench.resolve import Request, resolve
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.environments import Environments
from opdbench.rl.load import load_policy
from opdbench.rl.simulators import Simulators
from opdbench.rl.world import ControlWorld, evaluate, fresh_student
from opdbench.seeds import generator
from opdbench.store import pack, unpack
from opdbench.tasks.atari import Atari
from opdbench.tasks.atari_scores import RANDOM_HUMAN, human_normalised
from tests.test_run import Watcher, plan_of

vector_env = pytest.importorskip("ale_py.vector_env", reason="the extra `atari` is not installed")
METHODS = {"policy-distillation": "net1", "student-distill": "net2", "dagger": "net3", "gkd": "net2", "kd": "teacher",
           "actor-mimic": "net3", "dqn": "net3", "ppo": "net3", "kickstarting": "net3", "qdagger": "net3"}


def task_of(name: str = "atari/pong@v5-sticky", **params: object) -> Atari:
    cls = registry.load("task", name)
    return cls(params=cls.Params(**params))  # type: ignore[no-any-return]


def simulators_of(task: Atari, n: int) -> Simulators:
    simulators = task.simulators()
    simulators.grow(n)
    return simulators


def decided(task: Atari, seed: int = 0) -> ConvPolicy:
    """A student with opinions."""
    student = fresh_student(task, seed)
    assert isinstance(student, ConvPolicy)
    with torch.no_grad():
        student.network.heads[0].weight.mul_(100)
    return student


def test_the_form_with_the_track_behind_an_at_is_another_way_to_write_the_name() -> None:
    for track in ("v5-sticky", "v4-nosticky"):
        task = registry.load("task", f"atari/space-invaders@{track}")()
        assert task.id == f"atari-{track}:space-invaders@1"
        for other in (task.id, f"atari/space_invaders@{track}"):
            assert registry.load("task", other)().id == task.id
        assert registry.describe("task", f"atari/pong@{track}").id == f"atari-{track}:pong@1"
        assert registry.kinds_of(f"atari/pong@{track}") == ["task"]
    checksums = {task_of(f"atari/pong@{track}").checksum() for track in ("v5-sticky", "v4-nosticky")}
    assert len(checksums) == 2


@pytest.mark.parametrize(("wrong", "says"), [
    ("atari/pogn@v5-sticky", "pong"), ("atari-v4-nosticky:brekout", "breakout"), ("atari/pong@v5", "atari-v5-sticky"),
    ("atari-v5-sticky", "atari-v5-sticky:GAME"), ("atari-v5-sticky:joust", "choose one of")])
def test_what_does_not_exist_is_answered_with_what_does(wrong: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        registry.load("task", wrong)
    assert says in str(refused.value.fix)


def test_without_ale_py_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py.vector_env", None)
    with pytest.raises(UserError, match="not installed") as refused:
        registry.load("task", "atari/pong@v5-sticky")
    assert refused.value.fix == 'pip install "opdbench[atari]"'


@pytest.mark.parametrize(("track", "rules"), [
    ("v5-sticky", {"repeat_action_probability": 0.25, "noop_max": 0, "use_fire_reset": False}),
    ("v4-nosticky", {"repeat_action_probability": 0.0, "noop_max": 30, "use_fire_reset": True})])
def test_stacks_and_rewards_are_those_of_ales_own_vector_environment(track: str, rules: dict[str, object]) -> None:
    seeds, rng = np.array([3, 8]), np.random.default_rng(0)
    native = vector_env.AtariVectorEnv("space_invaders", 2, num_threads=1, reward_clipping=False, **rules)
    ours = simulators_of(task_of(f"atari/space-invaders@{track}"), 2)
    first, _ = native.reset(seed=seeds)
    mine = [ours.reset(index, seed).copy() for index, seed in enumerate(seeds.tolist())]
    assert np.array_equal(first, np.stack(mine))
    earned = 0.0
    for _ in range(70):
        action_n = rng.integers(0, ours.n_actions, 2)
        seen, reward, *_ = native.step(action_n)
        after = ours.step(np.arange(2), action_n)
        assert np.array_equal(after.observation_k, seen) and np.array_equal(after.reward_k, reward)
        earned += after.reward_k.sum()
    assert earned > 3  # unclipped: an invader is worth 5 to 30


def test_a_copy_that_others_left_behind_goes_on_where_it_was() -> None:
    task = task_of("atari/breakout@v4-nosticky")
    alone, beside = simulators_of(task, 1), simulators_of(task, 2)
    alone.reset(0, 8)
    for index in range(2):
        beside.reset(index, 7 + index)
    rng, other, both = np.random.default_rng(0), np.array([0]), np.arange(2)
    for number, action in enumerate(rng.integers(0, 4, 24)):
        if number in (6, 15):
            for _ in range(3):
                beside.step(other, np.array([2]))
        if number == 12:
            assert np.array_equal(beside.follow(1), alone.follow(0))
        expected = alone.step(other, np.array([action])).observation_k[0]
        found = beside.step(*((both[1:], np.array([action])) if number == 15 else (both, np.array([0, action]))))
        assert np.array_equal(found.observation_k[-1], expected)


def test_fire_is_pressed_for_the_player_on_the_older_track_alone() -> None:
    """Doing nothing in Breakout: without FIRE no ball is ever served, and with it five are lost."""
    ends = {}
    for track in ("v5-sticky", "v4-nosticky"):
        simulators = simulators_of(task_of(f"atari/breakout@{track}", max_frames=1_600), 1)
        simulators.reset(0, 0)
        for _ in range(400):
            after = simulators.step(np.zeros(1, np.int64), np.zeros(1, np.int64))
            if after.terminated_k[0] or after.truncated_k[0]:
                break
        ends[track] = (bool(after.terminated_k[0]), bool(after.truncated_k[0]), int(simulators.step_n[0]))
    assert ends["v5-sticky"] == (False, True, 400)
    assert ends["v4-nosticky"][:2] == (True, False) and ends["v4-nosticky"][2] < 300


def test_no_transition_spans_a_reset() -> None:
    environments = Environments(task_of(max_frames=20).simulators(), seed=1)
    environments.grow(2)
    for _ in range(3):
        for t in range(5):
            step = environments.step(np.array([2, 3]))
            assert step.truncated_b.all() == (t == 4)
        fresh_b = environments.observation_n
        assert not fresh_b[:, :3].any() and fresh_b[:, 3].any()  # blank before the episode


def test_an_episodes_score_does_not_depend_on_how_many_are_played_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    task, found = task_of("atari/breakout@v5-sticky", max_frames=160), []
    student = decided(task)
    for parallel in (1, 3):
        monkeypatch.setattr(type(task), "parallel_episodes", parallel)
        found.append(evaluate(task, student, mode="sampled", n=3))
    assert found[0] == found[1]
    assert [outcome.id for outcome in found[0]] == [f"episode-{number}" for number in range(3)]
    assert all(outcome.truncated and outcome.length == 40 for outcome in found[0])
    assert [outcome.extra for outcome in found[0]] == [
        {"human_normalised": human_normalised("breakout", outcome.score)} for outcome in found[0]]


def test_rollouts_hold_one_frame_a_step_and_go_on_after_a_resume() -> None:
    """Over many episodes, of which several follow one seed."""
    task = task_of("atari/breakout@v5-sticky", max_frames=28)
    student = decided(task)
    original, resumed = (ControlWorld(task, student, None, seed=4) for _ in range(2))

    def roll(world: ControlWorld, number: int) -> dict[str, torch.Tensor]:
        rollouts = world.rollout(Student(), n=2, horizon=20, generator=generator(9, number))
        assert isinstance(rollouts.input_bt, FrameStacks) and rollouts.input_bt.shape == (2, 20, 4, 84, 84)
        assert len(rollouts.input_bt.compact().blocks[0]) <= 2 * 23
        assert int(rollouts.done_bt.sum()) >= 4
        return rollouts.tensors()

    for number in range(4):
        roll(original, number)
    resumed.load_state_dict(unpack(pack(original.state_dict())))
    mine, theirs = roll(resumed, 4), roll(original, 4)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_a_policy_for_other_actions_is_refused() -> None:
    with pytest.raises(UserError, match=r"\(4, 84, 84\) and 18 actions") as refused:
        ControlWorld(task_of(), ConvPolicy.named("net3", 18), None, seed=0)
    assert "same set of actions" in str(refused.value.fix)
    ControlWorld(task_of(actions="full"), ConvPolicy.named("net3", 18), None, seed=0)


def run_with_random_teacher(method: str, tmp_path: Path, steps: int, *settings: str) -> object:
    ConvPolicy.named("teacher", 6, generator=generator(0, "teacher")).save(tmp_path / "teacher")
    always = ("max_frames=40", "batch=2", "horizon=6", "evaluation.examples=1", "curve_points=0")
    plan = resolve(Request(method=method, task="atari/pong@v5-sticky", budget=(f"steps={steps}",),
                           teacher=str(tmp_path / "teacher"), settings=(*always, *settings)))
    return run.execute(plan, run.run_folder(tmp_path / "results", plan.spec.recipe), Watcher())


def test_a_student_learns_from_a_random_network_on_real_pong(tmp_path: Path) -> None:
    record = run_with_random_teacher("student-distill", tmp_path, 1, "evaluation.sampled=false")
    assert record.status == "completed", record.reason  # type: ignore[attr-defined]
    assert record.ledger["student_tokens"] == 12  # type: ignore[attr-defined]
    student = ConvPolicy.load(next((tmp_path / "results").rglob("student")))
    assert student.architecture.channels == (16, 16, 16) and student.n_actions == 6


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_methods_run_on_real_pong_with_every_network(method: str, tmp_path: Path) -> None:
    record = run_with_random_teacher(method, tmp_path, 3, f"network={METHODS[method]}")
    assert record.status == "completed", record.reason  # type: ignore[attr-defined]
    assert len(record.curve) == 3 and all(np.isfinite(step["loss"]) for step in record.curve)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_teacher_is_trained_and_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opdbench.rl import train_teacher

    monkeypatch.setattr(train_teacher, "SCORED_EPISODES", 2)
    monkeypatch.setattr(train_teacher, "CHECKPOINT_EVERY", 32)
    task, seen = task_of("atari/breakout@v4-nosticky", max_frames=200), list[int]()
    ppo = {**Atari.teacher_recipe.ppo, "n_steps": 16, "batch_size": 32}
    monkeypatch.setattr(type(task), "teacher_recipe", replace(Atari.teacher_recipe, steps=96, n_envs=2, ppo=ppo))

    def interrupt(done: int, steps: int, mean: float) -> None:
        seen.append(done)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_teacher.train(task, tmp_path / "teacher", progress=interrupt)
    manifest = train_teacher.train(task, tmp_path / "teacher", progress=interrupt)
    assert manifest["environment_steps"] == 96 and seen == [32, 64, 64, 96]
    teacher = load_policy(tmp_path / "teacher")
    assert isinstance(teacher, ConvPolicy) and teacher.architecture.channels == (16, 32, 32)
    assert (tmp_path / "teacher" / "policy.safetensors").stat().st_size < 4e6


@pytest.mark.slow
@pytest.mark.parametrize(("game", "least"), [("pong", 18), ("breakout", 100)])
def test_a_teacher_that_learnt_with_sticky_actions_plays_without_as_well(game: str, least: float) -> None:
    task = task_of(f"atari/{game}@v4-nosticky")
    assert task.teacher is not None and task.teacher == task_of(f"atari/{game}@v5-sticky").teacher
    teacher = load_policy(shipped_models()[task.teacher])
    assert fmean(outcome.score for outcome in evaluate(task, teacher, mode="greedy", n=8, seed=0)) > least


@pytest.mark.slow
def test_a_lost_life_ends_an_episode_for_the_learner_while_the_game_goes_on() -> None:
    from opdbench.tasks.atari_training import AtariVecEnv

    env = AtariVecEnv(task_of("atari/breakout@v4-nosticky").rules(), 1, seed=0)
    env.reset()
    lost = whole = 0
    while not whole:
        _, reward, done, infos = env.step(np.zeros(1, np.int64))
        assert reward[0] in (-1, 0, 1)
        lost += int(done[0])
        whole += "episode" in infos[0]
    assert lost == 5 and infos[0]["episode"]["l"] > 50


def test_human_normalised_scores(shared_data: Path) -> None:
    published = json.loads((shared_data / "rl_reference_scores" / "atari57_human_random.json").read_text())
    for game, (random, human) in RANDOM_HUMAN.items():
        assert published[game.replace("-", "_")] == {"random": random, "human": human}
        assert human_normalised(game, random) == 0 and human_normalised(game, human) == 1
    assert len(RANDOM_HUMAN) == 10 and human_normalised("pong", 20.0) == pytest.approx(40.7 / 35.3)
    with pytest.raises(UserError, match="known human"):
        human_normalised("pog", 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("track", ["v5-sticky", "v4-nosticky"])
def test_the_conformance_suite_passes_it(track: str) -> None:
    assert [check for check in check_task(registry.load("task", f"atari/pong@{track}")) if not check.passed] == []


def test_a_run_in_bfloat16_computes_pixels_in_it_and_keeps_wide_weights() -> None:
    world = worlds.build(plan_of("gkd", "dtype=bfloat16", task="atari/pong@v5-sticky"))
    for policy in (world.student, world.teacher):
        assert policy.network.in_bfloat16 and {part.dtype for part in policy.parameters()} == {torch.float32}
    numbers = worlds.build(plan_of("gkd", "dtype=bfloat16", task="cartpole")).student
    assert {part.dtype for part in numbers.parameters()} == {torch.float32}
