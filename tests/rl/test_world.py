"""The control world: what a rollout holds, and what an evaluation counts."""

from __future__ import annotations

import pytest
import torch
from torch import Generator, Tensor

from opdbench.actors import Decision, Mixture, Student, Teacher
from opdbench.errors import UserError
from opdbench.rl.policy import Architecture, ControlPolicy
from opdbench.rl.world import ControlWorld, evaluate, fresh_student
from opdbench.rollouts import Rollouts, Source
from opdbench.seeds import generator
from opdbench.tasks.control import CartPole
from tests.rl.small_tasks import CountingTask


def _policy(seed: int) -> ControlPolicy:
    return ControlPolicy(Architecture((2,), 2, (4,)), generator=generator(seed, "test"))


def _world(seed: int = 3) -> ControlWorld:
    return ControlWorld(CountingTask(), _policy(0), _policy(1), seed=seed)


class Never(ControlPolicy):
    """Fails when it is run."""

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        raise AssertionError("a model that the actor does not use was run")


def _rollout(world: ControlWorld, actor: object, n: int = 3, horizon: int = 8, draw: int = 0) -> Rollouts:
    return world.rollout(actor, n=n, horizon=horizon, generator=generator(9, draw))  # type: ignore[arg-type]


def test_segments_go_on_where_the_last_one_stopped() -> None:
    one, two = _world(), _world()
    long = _rollout(one, Student())
    again = generator(9, 0)
    parts = [two.rollout(Student(), n=3, horizon=4, generator=again) for _ in range(2)]
    for name in ("input_bt", "action_bt", "reward_bt", "done_bt"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1), getattr(long, name))


def test_rollout_is_whole_and_its_rewards_restart_with_every_episode() -> None:
    rollouts = _rollout(_world(), Student(), n=4, horizon=50)
    assert rollouts.input_bt.shape == (4, 50, 2) and rollouts.n_rows == 200
    # The observed step number and the reward tell where each row stands in its episode.
    assert torch.equal(rollouts.reward_bt, rollouts.input_bt[..., 1] + 1)
    starts_bt = rollouts.input_bt[..., 1] == 0
    assert torch.equal(starts_bt[:, 1:], rollouts.done_bt[:, :-1])
    assert torch.equal(rollouts.truncated_b, ~rollouts.done_bt[:, -1])
    chosen_bt = rollouts.action_bt == 1
    cut_bt = rollouts.columns["truncated"]
    assert torch.equal(rollouts.done_bt, chosen_bt | (rollouts.reward_bt == 5))
    assert torch.equal(cut_bt, rollouts.reward_bt == 5) and cut_bt.any() and (chosen_bt & ~cut_bt).any()


def test_behaviour_logp_is_the_actors() -> None:
    world = _world()
    rollouts = _rollout(world, Student(temperature=2.0))
    logits = world.student.project(world.student.features(rollouts.input_bt, rollouts.length_b))
    expected = (logits / 2).log_softmax(-1).gather(-1, rollouts.action_bt[..., None])[..., 0]
    torch.testing.assert_close(rollouts.behaviour_logp_bt, expected.detach())
    assert (rollouts.source_bt == Source.STUDENT).all()


def test_mixture_records_who_acted() -> None:
    rollouts = _rollout(_world(), Mixture(0.3), n=32, horizon=60)
    share = rollouts.count(Source.TEACHER) / rollouts.n_rows
    assert abs(share - 0.3) < 4 * (0.3 * 0.7 / rollouts.n_rows) ** 0.5
    assert rollouts.count(Source.TEACHER) + rollouts.count(Source.STUDENT) == rollouts.n_rows


def test_only_the_models_that_act_are_run() -> None:
    never = Never(Architecture((2,), 2, (4,)))
    _rollout(ControlWorld(CountingTask(), _policy(0), never, seed=0), Student())
    _rollout(ControlWorld(CountingTask(), never, _policy(0), seed=0), Teacher())


def test_resumed_world_repeats_the_next_rollout() -> None:
    original, resumed = _world(), _world()
    _rollout(original, Student(), horizon=7)
    resumed.load_state_dict(original.state_dict())
    mine, theirs = _rollout(resumed, Mixture(0.5), draw=1), _rollout(original, Mixture(0.5), draw=1)
    assert all(torch.equal(value, theirs.tensors()[name]) for name, value in mine.tensors().items())


def test_seeds_differ_between_runs_and_repeat_within_one() -> None:
    first, again, other = (_rollout(_world(seed), Student()).input_bt for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_teacher_features_are_the_teachers() -> None:
    world = _world()
    rollouts = _rollout(world, Student())
    assert world.teacher is not None
    features = world.teacher_features(rollouts)
    assert features.shape == (3, 8, 4) and not features.requires_grad
    torch.testing.assert_close(features, world.teacher.features(rollouts.input_bt, rollouts.length_b).detach())


class Enders(ControlPolicy):
    """Ends an episode in the step that its first observation's draw chooses, between 1 and 5."""

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        return input_bt

    def project(self, features_nh: Tensor) -> Tensor:
        ends_n = (features_nh[:, 0] * 5).floor() <= features_nh[:, 1]
        return torch.stack([~ends_n, ends_n], -1).float()


def test_evaluation_counts_the_first_episode_of_every_environment_once() -> None:
    task = CountingTask()
    outcomes = evaluate(task, Enders(Architecture((2,), 2, (4,))), mode="greedy", n=200)
    assert [outcome.id for outcome in outcomes] == [f"episode-{number}" for number in range(200)]
    lengths = torch.tensor([outcome.length for outcome in outcomes])
    # A return of 1 + 2 + ... + length; lengths 1 to 5 are equally likely, and short episodes must not count more.
    assert [outcome.score for outcome in outcomes] == [length * (length + 1) / 2 for length in lengths.tolist()]
    counts = lengths.bincount(minlength=6)[1:]
    assert (counts - 40).abs().max() < 4 * (200 * 0.2 * 0.8) ** 0.5
    assert lengths.float().mean() == pytest.approx(3, abs=4 * (2 / 200) ** 0.5)


def test_evaluation_tells_the_time_limit_from_an_end() -> None:
    class Longer(CountingTask):
        max_episode_steps = 9

    never_ends = ControlPolicy(Architecture((2,), 2, (4,)))  # zero weights: greedy takes action 0
    assert all(outcome.truncated and outcome.length == 5
               for outcome in evaluate(CountingTask(), never_ends, mode="greedy", n=3))
    assert all(not outcome.truncated and outcome.length == 7
               for outcome in evaluate(Longer(), never_ends, mode="greedy", n=3))


def test_evaluation_is_repeatable_and_its_splits_are_different_episodes() -> None:
    task, policy = CartPole(), fresh_student(CartPole(), 0)

    def scores(mode: str, **arguments: object) -> list[float]:
        return [outcome.score for outcome in evaluate(task, policy, mode=mode, n=40, **arguments)]  # type: ignore[arg-type]

    assert scores("sampled", seed=1) == scores("sampled", seed=1) != scores("sampled", seed=2)
    assert scores("greedy", seed=1) == scores("greedy", seed=2)  # where episodes start is the task's, not the run's
    assert scores("greedy", split="test") != scores("greedy", split="validation")


def test_more_episodes_than_run_in_parallel() -> None:
    policy = ControlPolicy(Architecture((2,), 2, (4,)))
    assert len({outcome.id for outcome in evaluate(CountingTask(), policy, mode="greedy", n=300)}) == 300


def test_refusals_say_what_to_do() -> None:
    world = _world()
    with pytest.raises(UserError, match="no reference solutions"):
        world.demonstrations(n=1, generator=Generator())
    with pytest.raises(UserError, match="cannot repeat one 4 times"):
        world.rollout(Student(), n=4, horizon=2, generator=Generator(), repeat=4)
    with pytest.raises(UserError, match="there is none"):
        _rollout(ControlWorld(CountingTask(), _policy(0), None, seed=0), Teacher())
    with pytest.raises(UserError, match=r"teacher on cartpole@1: .* observations \(2,\) and 2 actions"):
        ControlWorld(CartPole(), fresh_student(CartPole(), 0), _policy(0), seed=0)


def test_an_actor_sees_no_logits_of_a_model_that_it_does_not_use() -> None:
    class Looking:
        uses_student, uses_teacher = True, False

        def act(self, student: Tensor | None, teacher: Tensor | None, uniform_bd: Tensor) -> Decision:
            assert student is not None and student.shape == (3, 2) and teacher is None
            zeros = torch.zeros(3, dtype=torch.int64)
            return Decision(zeros, zeros.float(), zeros.to(torch.uint8))

    _rollout(_world(), Looking())
