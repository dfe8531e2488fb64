"""What no loss can be made of: a clear sentence, or no influence at all; never a loss of zero that nobody sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from opdbench import registry
from opdbench.baselines.gkd import GKD
from opdbench.baselines.grpo import GRPO
from opdbench.baselines.kdrl import KDRL
from opdbench.conformance.enumerable import A, EnumerableWorld
from opdbench.conformance.harness import gradient
from opdbench.distiller import Needs
from opdbench.errors import DivergedError, UserError
from opdbench.lm.generate import Completion, to_rollouts
from opdbench.loop import Trainer
from opdbench.rollouts import Rollouts, Source
from opdbench.schema.spec import Budget
from opdbench.task import Example, Split
from tests import frontier
from tests.enumerable import context, generator, make, near, small_language
from tests.lm.test_world import Spelling, world

METHODS = [name for name in registry.names("method") if "lm" in registry.load("method", name).domains
           and name not in frontier.names()]  # those have tests/frontier/test_bad_input.py
NAN = float("nan")


def trainer_of(name: str, world: EnumerableWorld) -> Trainer:
    return Trainer(make(registry.load("method", name)), context(world, budget=Budget(steps=4)))


def after(rollouts: Callable[[Rollouts], Rollouts], world: EnumerableWorld) -> EnumerableWorld:
    """The same world, all of whose rollouts and solutions are changed."""
    sampled, solved = world.rollout, world.demonstrations
    world.rollout = lambda *args, **settings: rollouts(sampled(*args, **settings))  # type: ignore[method-assign]
    world.demonstrations = lambda **settings: rollouts(solved(**settings))  # type: ignore[method-assign]
    return world


# ------------------------------------------------------------------------------------------------- NaN from the teacher


FIRST_STATES = [2, 3, 9, 11]  # the prompts a, b, ab and ba, in bijective base 3


@pytest.mark.parametrize("where", ["everywhere", "in the first states"])
@pytest.mark.parametrize("name", [name for name in METHODS if registry.load("method", name).needs != Needs.NOTHING])
def test_a_teacher_that_is_not_a_number_ends_the_run_with_a_sentence(name: str, where: str) -> None:
    """Whether the method reads its distribution, its label, or what it writes. The student is left as it was."""
    world = small_language()
    assert world.teacher is not None
    with torch.no_grad():
        if where == "everywhere":
            world.teacher.head.fill_(NAN)  # type: ignore[union-attr]
        else:
            world.teacher.table[FIRST_STATES] = NAN  # type: ignore[operator]
    before = [weight.clone() for weight in world.student.parameters()]
    trainer = trainer_of(name, world)
    with pytest.raises(UserError, match=r"logits are not numbers \(NaN\) in \d+ of \d+ states of step 1"):
        trainer.step()
    assert all(torch.equal(one, other) for one, other in zip(before, world.student.parameters(), strict=True))


def test_a_student_that_is_not_a_number_is_not_blamed_on_its_teacher() -> None:
    world = small_language()
    trainer = trainer_of("kd", world)
    with torch.no_grad():
        world.student.head.fill_(NAN)  # type: ignore[union-attr]
    with pytest.raises(DivergedError, match="step 1: loss nan"):
        trainer.step()


# ---------------------------------------------------------------------------------------- nothing, or nobody's decision


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_without_a_row_is_a_sentence_and_no_update(name: str) -> None:
    def nobody(rollouts: Rollouts) -> Rollouts:
        return replace(rollouts, source_bt=torch.full_like(rollouts.source_bt, int(Source.NOBODY)))

    trainer = trainer_of(name, after(nobody, small_language()))
    with pytest.raises(UserError, match=r"step 1 has a batch of .* in which nobody decided anything"):
        trainer.step()
    assert trainer.ctx.ledger.updates == 0


@pytest.mark.parametrize("name", METHODS)
def test_a_trajectory_without_a_row_is_no_trouble(name: str) -> None:
    def silent_first(rollouts: Rollouts) -> Rollouts:
        source_bt = rollouts.source_bt.clone()
        source_bt[0] = int(Source.NOBODY)
        return replace(rollouts, source_bt=source_bt)

    world = after(silent_first, small_language())
    trainer = trainer_of(name, world)
    for _ in range(2):
        figures = trainer.step()
    assert all(math.isfinite(value) for value in figures.values())


@pytest.mark.parametrize("reduction", ["token", "sequence", "sum"])
def test_an_empty_completion_counts_for_nothing(reduction: str) -> None:
    """Not even in the mean over answers."""
    world = small_language()
    written = world.completions()
    empty = to_rollouts([[A]], [Completion([], [], [], ended=True)]).with_columns(
        per_trajectory={name: written.columns[name][:1] for name in written.columns})
    assert empty.n_rows == 0 and empty.n_trajectories == 1
    ctx, method = context(world, reduction=reduction), make(GKD)
    found = [gradient(method, ctx, ctx.score(rollouts, Needs.FULL))
             for rollouts in (written, Rollouts.cat([empty, written]))]
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12) and found[0][0] != 0
    assert all(near(found[0][1][name], found[1][1][name]) for name in found[0][1])


def test_an_empty_solution_teaches_to_end_at_once() -> None:
    class Silent(Spelling):
        def examples(self, split: Split) -> list[Example]:
            return [replace(example, solution="") for example in super().examples(split)]

    rollouts = world(Silent()).demonstrations(n=3, generator=generator())
    assert rollouts.mask_bt.sum(1).tolist() == [1, 1, 1]
    assert set(rollouts.action_bt[rollouts.mask_bt].tolist()) == {world().tokenizer.eos_id}


# ------------------------------------------------------------------------------------------------------- no advantage


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_answers_that_are_all_right_or_all_wrong_move_nothing_and_the_record_says_why(reward: float) -> None:
    """Neither `grpo`, nor the part of `kdrl` that follows rewards."""
    def graded(rollouts: Rollouts) -> Rollouts:
        last_bt = rollouts.mask_bt & (rollouts.mask_bt.cumsum(1) == rollouts.mask_bt.sum(1, keepdim=True))
        return replace(rollouts, reward_bt=reward * last_bt.float())

    for method in (make(GRPO, kl_coefficient=0.0), make(KDRL, teacher=0.0)):
        language = after(graded, small_language())
        before = [weight.detach().clone() for weight in language.student.parameters()]
        figures = Trainer(method, context(language)).step()
        assert figures["informative"] == 0 and figures["reward"] == reward
        assert all(near(one, other.detach()) for one, other in zip(before, language.student.parameters(), strict=True))
