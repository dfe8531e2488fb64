"""Games whose memory is read: the same game as the native environment plays, and a teacher of pixels taught by it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from opdbench import registry
from opdbench.conformance import check_task
from opdbench.errors import UserError
from opdbench.models import shipped_models
from opdbench.rl import taught, train_teacher
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.load import load_policy
from opdbench.rl.world import evaluate

pytest.importorskip("ale_py.vector_env", reason="the extra `atari` is not installed")

from opdbench.tasks.atari_env import AtariSimulators, Rules
from opdbench.tasks.atari_memory_env import MEMORY, Console, MemoryGame


def rules(game: str) -> Rules:
    return Rules(game, 0.25, 0, False)


@pytest.mark.parametrize(("game", "levels"), [("pong", 0), ("breakout", 1)])
def test_the_game_and_its_picture_are_the_native_environments(game: str, levels: int) -> None:
    native, console = AtariSimulators(rules(game)), Console(rules(game), MEMORY[game].cells, pictures=True)
    native.grow(1)
    for seed in (5, 6):
        console.reset(seed)
        assert np.array_equal(native.reset(0, seed), console.picture_s)
        rng, over = np.random.default_rng(seed), False
        while not over:
            action = int(rng.integers(len(console.actions)))
            after = native.step(np.zeros(1, np.int64), np.array([action]))
            reward, over, late = console.step(action)
            assert (reward, over, late) == (after.reward_k[0], after.terminated_k[0], after.truncated_k[0])
            apart = np.abs(after.observation_k[0].astype(int) - console.picture_s)
            assert apart.max() <= levels and (apart[-1] > 0).sum() <= 2 * levels


def test_what_is_seen_in_the_row_below_a_picture_is_what_a_player_of_memory_sees() -> None:
    task = registry.load("task", "atari/pong@v5-sticky")()
    view, plain = task.guided(), MemoryGame(rules("pong"))
    view.simulators.grow(1)
    seen, (numbers, _) = view.simulators.reset(0, 3), plain.reset(seed=3)
    for action in [2, 3, 3, 0, 2, 1] * 20:
        assert seen.shape == (4, 85, 84) and plain.observation_space.contains(numbers)
        assert np.array_equal(view.numbers(torch.from_numpy(seen[None]))[0].numpy(), numbers)
        seen = view.simulators.step(np.zeros(1, np.int64), np.array([action])).observation_k[0]
        numbers = plain.step(action)[0]


def test_a_lost_life_ends_an_episode_for_the_learner_while_the_game_goes_on() -> None:
    learner, player = MemoryGame(rules("breakout"), learning=True), MemoryGame(rules("breakout"))
    ends = []
    for game in (learner, player):
        game.reset(seed=1)
        rng, ends_here, step = np.random.default_rng(0), list[int](), 0
        while len(ends_here) < (5 if game is learner else 1):
            _, reward, over, _, _ = game.step(rng.integers(4))
            assert game is player or reward in (-1, 0, 1)
            step += 1
            if over:
                ends_here.append(step)
                if len(ends_here) < 5:
                    game.reset()
        ends.append(ends_here)
    assert ends[0][-1] == ends[1][0]  # five lives are one game


@pytest.mark.parametrize("game", sorted(MEMORY))
def test_only_a_learner_misjudges_places_and_by_what_is_said(game: str) -> None:
    memory, rng = MEMORY[game], np.random.default_rng(0)
    place_sc = np.broadcast_to(np.array([0, 1, 100, 255], np.uint8)[:, None], (4, len(memory.cells)))
    found_nsc = np.stack([memory.blurred(place_sc, rng) for _ in range(2_000)]).astype(int)
    assert not found_nsc[:, 0].any() and found_nsc[:, 1:].min() >= 1
    assert memory.blurred(place_sc, rng).dtype == np.uint8  # as the console's bytes
    assert found_nsc[:, 2].std() == pytest.approx(np.hypot(memory.blur, 12**-0.5) if memory.blur else 0, rel=0.05)
    seen = []
    for learning in (False, True):
        env = MemoryGame(rules(game), learning=learning)
        env.reset(seed=3)
        seen.append(np.stack([env.step(env.action_space.n - 1)[0] for _ in range(40)]))
    assert np.array_equal(*seen) == (memory.blur == 0)


def test_a_game_whose_memory_is_not_understood() -> None:
    with pytest.raises(UserError, match="seaquest"):
        registry.load("task", "atari-memory:seaquest")
    with pytest.raises(ValueError, match="no no-op starts"):
        Console(Rules("pong", 0.0, 30, True), (1,), pictures=False)


@pytest.mark.parametrize("game", sorted(MEMORY))
def test_the_task_conforms_and_ships_a_teacher_far_above_random_play(game: str) -> None:
    task = registry.load("task", f"atari-memory:{game}")()
    check_task(task)
    teacher = load_policy(shipped_models(task)[task.teacher])
    (outcome,) = evaluate(task, teacher, mode="greedy", n=1, seed=0)
    assert outcome.score > {"pong": 10, "breakout": 50}[game]  # random play: -21 and 1


def test_a_teacher_of_pixels_is_taught_by_one_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_teacher, "SCORED_EPISODES", 2)
    cls = registry.load("task", "atari/pong@v5-sticky")
    monkeypatch.setattr(cls, "teacher_recipe", replace(
        cls.teacher_recipe, steps=64, network="net3", training={"lr": 1e-3, "batch": 2, "horizon": 16}))
    task, seen = cls(params=cls.Params(max_frames=400)), list[int]()
    manifest = train_teacher.train(task, tmp_path / "teacher", progress=lambda done, steps, kl: seen.append(done))
    assert json.loads((tmp_path / "teacher" / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    assert manifest["algorithm"] == "dagger of atari-memory-pong/teacher" and seen == [32, 64]
    teacher = load_policy(tmp_path / "teacher")
    assert isinstance(teacher, ConvPolicy) and teacher.architecture.channels == (16, 16, 16)
    assert {path.name for path in tmp_path.iterdir()} == {"teacher"}


def test_the_network_does_not_look_at_the_row_that_its_guide_reads() -> None:
    cls = registry.load("task", "atari/pong@v5-sticky")
    recipe = replace(cls.teacher_recipe, network="net3", training={"lr": 1e-3, "batch": 2, "horizon": 8})
    network, done = taught.learn(cls(), recipe, steps=32, seed=0)
    assert done == 32
    state = torch.randint(0, 255, (1, 1, 4, 85, 84), dtype=torch.uint8)
    seen = taught._Below(network, lambda seen_n: seen_n[:, :, :-1])
    length = torch.ones(1, dtype=torch.int64)
    before = seen.features(state, length)
    state[:, :, :, -1] = 0
    assert torch.equal(before, seen.features(state, length)) and before.shape == (1, 1, 64)
    assert torch.equal(before, network.features(state[:, :, :, :-1], length))
