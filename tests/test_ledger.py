"""The ledger against counts made by hand, in both worlds."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from opdbench.actors import Mixture, Student, Teacher
from opdbench.baselines.dagger import DAgger
from opdbench.baselines.gkd import GKD
from opdbench.baselines.kd import KD
from opdbench.baselines.opd import OPD
from opdbench.baselines.sft import SFT
from opdbench.conformance.enumerable import EnumerableWorld
from opdbench.distiller import Distiller, Needs
from opdbench.ledger import Ledger
from opdbench.loop import Trainer
from opdbench.rl.policy import Architecture, ControlPolicy
from opdbench.rl.world import ControlWorld
from opdbench.rollouts import Rollouts
from opdbench.tasks.control import CartPole
from opdbench.world import World
from tests.enumerable import context, generator, make, small_language

HEAD_FLOPS = 2 * 5 * 3  # of the enumerable policy, a state: five features to three tokens
CARTPOLE_FLOPS = 2 * (4 * 16 + 16 * 2)
BATCH, HORIZON = 4, 6  # of the control runs


def cartpole() -> ControlWorld:
    architecture = Architecture((4,), 2, (16,))
    policies = [ControlPolicy(architecture, generator=generator(seed)) for seed in (1, 2)]
    return ControlWorld(CartPole(), *policies, seed=0)


def train(cls: type[Distiller], world: World, *, steps: int = 1, batch: int = 8, horizon: int = 3,
          **params: Any) -> Ledger:
    trainer = Trainer(make(cls, **params), context(world, batch=batch, horizon=horizon))
    for _ in range(steps):
        trainer.step()
    return trainer.ctx.ledger


class Recorder(EnumerableWorld):
    """Keeps what it hands out, to be counted by hand."""

    seen: list[Rollouts]

    def rollout(self, *args: Any, **keywords: Any) -> Rollouts:
        rollouts = super().rollout(*args, **keywords)
        self.seen = [*getattr(self, "seen", []), rollouts]
        return rollouts


def recorder() -> Recorder:
    plain = small_language(echo=True)
    return Recorder(plain.student, plain.teacher, echo=True)


def states(rollouts: Rollouts) -> int:
    """Inputs read, counted one by one."""
    return sum(1 for length in rollouts.length_b.tolist() for _ in range(length))


def decisions(rollouts: Rollouts) -> int:
    return sum(1 for sources in rollouts.source_bt.tolist() for source in sources if source != 0)


def test_language_counts_of_one_on_policy_step() -> None:
    world = recorder()
    ledger = train(OPD, world)
    (rollouts,) = world.seen
    n_states, n_decisions = states(rollouts), decisions(rollouts)
    assert 0 < n_decisions < n_states  # prompts of two tokens and environment turns are read and not decided
    assert (ledger.student_tokens, ledger.teacher_tokens) == (n_decisions, 0)
    assert ledger.given_tokens == n_states - n_decisions
    assert (ledger.steps, ledger.updates) == (1, 1)
    assert ledger.teacher_scored == ledger.trained_rows == n_decisions
    assert ledger.flops == {"student_rollout": HEAD_FLOPS * n_states, "teacher_score": HEAD_FLOPS * n_states,
                            "student_train": 3 * HEAD_FLOPS * n_states}
    assert ledger.total_flops == 5 * HEAD_FLOPS * n_states


def test_a_prompt_is_given_but_for_the_token_that_is_the_first_state() -> None:
    world = recorder()
    ctx = context(world)
    rollouts = ctx.rollout(Student(), n=4, horizon=1)  # one decision each, so no environment turn
    prompts = [str(world.task.examples("train")[index].prompt) for index in rollouts.columns["example"].tolist()]
    assert ctx.ledger.given_tokens == sum(len(prompt) - 1 for prompt in prompts) == 2
    assert ctx.ledger.student_tokens == 4


@pytest.mark.parametrize(("cls", "params", "student", "teacher", "scored"), [
    (SFT, {}, 0, 1, 0), (KD, {}, 0, 1, 1), (GKD, {"lmbda": 1.0}, 1, 0, 1), (GKD, {"lmbda": 0.0}, 0, 1, 1),
    (OPD, {"estimator": "sampled"}, 1, 0, 1),
    (DAgger, {"beta": "never"}, 1, 0, 1), (DAgger, {"beta": "zero"}, 0, 1, 1)])
def test_who_sampled_and_who_was_asked(cls: type[Distiller], params: dict[str, Any], student: int, teacher: int,
                                       scored: int) -> None:
    """By method, in units of the decisions of one round."""
    world = recorder()
    ledger = train(cls, world, **params)
    n_decisions = decisions(world.seen[0])
    counts = (ledger.student_tokens, ledger.teacher_tokens, ledger.teacher_scored)
    assert counts == (student * n_decisions, teacher * n_decisions, scored * n_decisions)


def test_reference_solutions_cost_no_tokens() -> None:
    ledger = train(SFT, small_language(), data="solutions")
    assert (ledger.student_tokens, ledger.teacher_tokens, ledger.teacher_scored) == (0, 0, 0)
    assert ledger.trained_rows == 2 * (2 + 3 + 2 + 3)  # `a$` after a and ba, `ba$` after b and ab, each twice


def test_a_mixture_runs_both_models_over_every_state() -> None:
    world = recorder()
    ctx = context(world)
    ctx.rollout(Mixture(0.5))
    n_states = states(world.seen[0])
    assert ctx.ledger.flops == {"student_rollout": HEAD_FLOPS * n_states, "teacher_rollout": HEAD_FLOPS * n_states}
    assert ctx.ledger.student_tokens + ctx.ledger.teacher_tokens == decisions(world.seen[0])
    assert ctx.ledger.student_tokens > 0 and ctx.ledger.teacher_tokens > 0


def test_cartpole_counts_of_three_on_policy_steps() -> None:
    ledger = train(GKD, cartpole(), steps=3, batch=BATCH, horizon=HORIZON)
    frames = 3 * BATCH * HORIZON
    assert (ledger.student_tokens, ledger.teacher_tokens, ledger.given_tokens) == (frames, 0, 0)
    assert ledger.teacher_scored == ledger.trained_rows == frames
    assert ledger.flops == {"student_rollout": CARTPOLE_FLOPS * frames, "teacher_score": CARTPOLE_FLOPS * frames,
                            "student_train": 3 * CARTPOLE_FLOPS * frames}


def test_r15_cartpole_counts_of_dagger_labels_every_environment_step_once() -> None:
    """Labels equal environment steps; what is trained on is minibatches of what has been aggregated so far."""
    ledger = train(DAgger, cartpole(), steps=3, batch=BATCH, horizon=HORIZON, replay_ratio=6.25, minibatch=30,
                   beta="zero")
    a_round = BATCH * HORIZON  # 24 states, fewer than a minibatch in the first round
    assert (ledger.teacher_tokens, ledger.student_tokens) == (a_round, 2 * a_round)
    assert ledger.teacher_scored == 3 * a_round
    assert (ledger.steps, ledger.updates) == (3, 15)
    assert ledger.trained_rows == 5 * (24 + 30 + 30)


def test_evaluation_and_checkpoints_are_not_on_the_clock() -> None:
    world = small_language()
    trainer = Trainer(make(OPD), context(world))
    trainer.step()
    before = trainer.ctx.ledger.as_dict()
    world.evaluate(world.student, split="test", mode="sampled", n=None, seed=0)
    trainer.state_dict()
    time.sleep(0.05)
    assert trainer.ctx.ledger.as_dict() == before
    assert 0 < before["seconds"] < 30 and before["peak_memory_bytes"] > 1 << 20


def test_time_is_counted_even_if_a_step_fails() -> None:
    ledger = Ledger()
    with pytest.raises(ZeroDivisionError), ledger.clock():
        time.sleep(0.02)
        raise ZeroDivisionError
    assert ledger.seconds >= 0.02


def test_round_trip_and_budget_axes() -> None:
    ledger = train(GKD, small_language())
    again = Ledger.from_dict(ledger.as_dict())
    assert again == ledger
    assert ledger.spent("student_tokens") == ledger.student_tokens and ledger.spent("steps") == 1


def test_scoring_is_charged_for_rows_and_not_for_prompts() -> None:
    world = small_language(echo=True)
    ctx = context(world)
    rollouts = world.rollout(Teacher(), n=4, horizon=3, generator=torch.Generator().manual_seed(0))
    ctx.score(rollouts, Needs.ACTION)
    assert ctx.ledger.teacher_scored == decisions(rollouts)
