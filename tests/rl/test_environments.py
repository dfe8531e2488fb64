"""Persistent environments: automatic reset, derived seeds, and resume by replay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opdbench.errors import UserError
from opdbench.rl.environments import Environments
from opdbench.rl.simulators import make_simulators
from opdbench.seeds import derive
from opdbench.task import ControlTask
from opdbench.tasks.control import Acrobot, CartPole, LunarLander
from tests.rl.small_tasks import CountingTask


def _environments(task: ControlTask, n: int, seed: int = 5) -> Environments:
    environments = Environments(make_simulators(task), seed)
    environments.grow(n)
    return environments


def test_an_ended_episode_is_followed_by_the_first_observation_of_the_next() -> None:
    environments = _environments(CountingTask(), 2)
    seen, rewards, terminated, truncated = [environments.observation_n[:, 1].copy()], [], [], []
    actions = np.array([[0, 0], [0, 1], [0, 0], [0, 0], [0, 1], [0, 0]])
    for action_b in actions:
        step = environments.step(action_b)
        seen.append(environments.observation_n[:, 1].copy())
        rewards.append(step.reward_b)
        terminated.append(step.terminated_b)
        truncated.append(step.truncated_b)
    # Environment 0 is cut off after 5 steps; environment 1 ends itself after 2 and then after 3.
    assert np.array_equal(np.array(seen).T, [[0, 1, 2, 3, 4, 0, 1], [0, 1, 0, 1, 2, 0, 1]])
    assert np.array_equal(np.array(rewards).T, [[1, 2, 3, 4, 5, 1], [1, 2, 1, 2, 3, 1]])
    assert np.array_equal(np.array(terminated).T, [[0] * 6, [0, 1, 0, 0, 1, 0]])
    assert np.array_equal(np.array(truncated).T, [[0, 0, 0, 0, 1, 0], [0] * 6])


def test_every_episode_has_the_seed_of_its_environment_and_number() -> None:
    environments = _environments(CountingTask(), 3)
    draws = []
    for _ in range(4):
        draws.append(environments.observation_n[:, 0].copy())
        environments.step(np.array([1, 1, 1]))
    expected = [[np.random.Generator(np.random.PCG64(derive(5, "episode", index, episode))).uniform()
                 for index in range(3)] for episode in range(4)]
    assert np.array_equal(np.array(draws), np.float32(expected))


def test_growing_leaves_running_episodes_alone() -> None:
    small, large = _environments(CountingTask(), 2), _environments(CountingTask(), 4)
    for environments in (small, large):
        for _ in range(3):
            environments.step(np.array([0, 0]))
    small.grow(4)
    assert np.array_equal(small.observation_n, large.observation_n)


@pytest.mark.parametrize(("task", "steps"), [(CartPole(), 150), (Acrobot(), 70), (LunarLander(), 150)],
                         ids=lambda value: getattr(value, "name", None))
def test_resume_continues_as_if_nothing_had_happened(task: ControlTask, steps: int) -> None:
    rng = np.random.default_rng(1)
    original = _environments(task, 4)
    actions = rng.integers(0, original.simulators.n_actions, (steps + 60, 4))
    for action_b in actions[:steps]:
        original.step(action_b)
    resumed = Environments(make_simulators(task), 5)
    resumed.load_state_dict({name: tensor.clone() for name, tensor in original.state_dict().items()})
    ends = 0
    for action_b in actions[steps:]:
        mine, theirs = resumed.step(action_b), original.step(action_b)
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert np.array_equal(resumed.observation_n, original.observation_n)
        ends += int((mine.terminated_b | mine.truncated_b).sum())
    states = resumed.state_dict(), original.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert ends > 0 or task.name == "acrobot"


def test_resume_in_another_world_is_refused() -> None:
    original = _environments(CountingTask(), 2)
    original.step(np.array([0, 0]))
    with pytest.raises(UserError, match="did not arrive where it was"):
        Environments(make_simulators(CountingTask()), 6).load_state_dict(original.state_dict())
