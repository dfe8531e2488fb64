"""Simulators: bit equality with gymnasium, and clear errors when an environment fails."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest

from opdbench.errors import UserError
from opdbench.rl.simulators import CartPoleSimulators, GymSimulators, make_simulators
from opdbench.tasks.control import CartPole
from tests.rl.small_tasks import BrokenTask, CountingTask


def test_fast_cartpole_is_gymnasiums_bit_for_bit() -> None:
    """20 episodes of each of 16 copies; observations, rewards and both kinds of end, at a limit of 40 steps."""
    rng = np.random.default_rng(0)
    task = CartPole()
    task.max_episode_steps = 40  # type: ignore[misc]
    fast = make_simulators(task)
    assert isinstance(fast, CartPoleSimulators)
    slow = GymSimulators(task.make, task.make())
    ends = {"terminated": 0, "truncated": 0}
    for simulators in (fast, slow):
        simulators.grow(16)
    for episode in range(20):
        for index in range(16):
            seed = 1_000 * episode + index
            assert np.array_equal(fast.reset(index, seed), slow.reset(index, seed))
        running = np.arange(16)
        while len(running):
            # Mostly alternating actions, so that some episodes reach the limit.
            action = (fast.step_n[running] + (rng.random(len(running)) < 0.1)) % 2
            mine, theirs = fast.step(running, action), slow.step(running, action)
            for name, value in mine._asdict().items():
                assert np.array_equal(value, getattr(theirs, name)), name
            assert mine.observation_k.dtype == theirs.observation_k.dtype
            ends["terminated"] += int(mine.terminated_k.sum())
            ends["truncated"] += int((mine.truncated_k & ~mine.terminated_k).sum())
            running = running[~(mine.terminated_k | mine.truncated_k)]
    assert min(ends.values()) > 20


def test_fast_cartpole_only_for_the_plain_environment() -> None:
    class Shaped(CartPole):
        def make(self) -> gymnasium.Env[Any, Any]:
            return gymnasium.wrappers.TransformReward(super().make(), lambda reward: 2 * reward)

    class OtherRules(CartPole):
        def make(self) -> gymnasium.Env[Any, Any]:
            return gymnasium.make("CartPole-v1", sutton_barto_reward=True)

    assert isinstance(make_simulators(Shaped()), GymSimulators)
    assert isinstance(make_simulators(OtherRules()), GymSimulators)


@pytest.mark.parametrize(("fault", "says"), [
    ("raises", "raised ZeroDivisionError: the pole is gone"), ("observation", "not a number"),
    ("reward", "not a number")])
def test_failing_environment_is_named_with_step_and_seed(fault: str, says: str) -> None:
    simulators = make_simulators(BrokenTask(fault))
    simulators.grow(2)
    simulators.reset(0, 11)
    simulators.reset(1, 12)
    simulators.step(np.array([0]), np.array([0]))
    both = np.array([0, 1])
    simulators.step(both, np.array([0, 0]))
    with pytest.raises(UserError) as caught:
        simulators.step(both, np.array([0, 0]))
    assert says in caught.value.problem
    assert "environment Broken" in caught.value.problem and "(copy 0, step 3, reset seed 11)" in caught.value.problem


@pytest.mark.parametrize(("space", "says"), [
    (None, "FlattenObservation"), (gymnasium.spaces.MultiDiscrete([2, 2]), "discrete actions"),
    (gymnasium.spaces.Box(-np.inf, np.inf, (2,)), "discrete actions")], ids=["observations", "counts", "unbounded"])
def test_unsupported_spaces_are_refused(space: gymnasium.Space[Any] | None, says: str) -> None:
    class Unsupported(CountingTask):
        def make(self) -> gymnasium.Env[Any, Any]:
            environment = gymnasium.make("FrozenLake-v1") if space is None else super().make()
            environment.action_space = space or environment.action_space
            return environment

    with pytest.raises(UserError) as caught:
        make_simulators(Unsupported())
    assert says in str(caught.value.fix)


def test_environment_that_cannot_be_made() -> None:
    class Missing(CountingTask):
        def make(self) -> gymnasium.Env[Any, Any]:
            return gymnasium.make("NoSuchEnvironment-v0")

    with pytest.raises(UserError, match=r"task counting@1 cannot be made.*NoSuchEnvironment"):
        make_simulators(Missing())
