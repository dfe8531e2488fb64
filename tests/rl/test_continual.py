"""Tasks in sequence: what is replayed, what is forgotten, and figures against values worked out by hand."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench import probes
from opdbench.actors import Student
from opdbench.baselines.continual import Continual, phase
from opdbench.baselines.policy_distillation import PolicyDistillation
from opdbench.conformance.harness import make_rows
from opdbench.context import Context
from opdbench.distiller import Distiller
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.probes.base import Look
from opdbench.rl.games_policy import GamesPolicy
from opdbench.rl.games_world import GamesWorld
from opdbench.schema.spec import Budget
from opdbench.stats import continual
from tests.enumerable import context, flat_gradient, make, near
from tests.rl.games import world

EVERYTHING = 10_000  # states: more than were visited


def in_context(here: GamesWorld, steps: int = 2) -> Context:
    return context(here, budget=Budget(steps=steps), batch=4, horizon=6)


def collected(method: Distiller, ctx: Context, rounds: int = 2) -> Any:
    """The method with the states of so many rounds, and no update."""
    for _ in range(rounds):
        ctx.begin_step()
        method.prepare(ctx.score(method.collect(ctx), method.requires()), ctx)
        ctx.ledger.steps += 1
    return method


def gradient(method: Distiller, ctx: Context, minibatch: Any) -> Tensor:
    return flat_gradient(method.loss(make_rows(ctx, minibatch), ctx).value_n.mean(), ctx.student)


def test_replay_of_all_games_at_equal_weights_has_the_gradient_of_learning_them_jointly() -> None:
    """Rusu's multi-task loss: the expectation over which game a minibatch is of."""
    here = world()
    ctx = in_context(here)
    method = collected(make(Continual), ctx)
    assert method.data.games == [0, 1]
    joint = make(PolicyDistillation, tau=1.0)
    joint.data = method.data
    each = [gradient(joint, ctx, joint.data.sample(EVERYTHING, Random(0), game=game)) for game in (0, 1)]
    replayed = gradient(method, ctx, method.data.sample_each(EVERYTHING, Random(0)))
    assert near(replayed, (each[0] + each[1]) / 2) and not near(each[0], each[1], 1e-3)


def test_without_replay_the_gradient_is_that_of_the_newest_game_alone() -> None:
    ctx = in_context(world())
    method = collected(make(Continual, replay=False, minibatch=EVERYTHING), ctx)
    rollouts = method.data.sample(EVERYTHING, Random(0), game=1)
    minibatch = next(iter(method.minibatches(rollouts, ctx)))
    assert minibatch.columns["game"].unique().tolist() == [1]
    assert near(gradient(method, ctx, minibatch), gradient(method, ctx, rollouts))


def test_games_are_visited_in_their_order_and_replay_asks_neither_a_game_nor_a_teacher_again() -> None:
    assert [phase(progress, 3) for progress in (0, 0.33, 0.34, 0.66, 0.67, 1)] == [0, 0, 1, 1, 2, 2]
    ctx = in_context(world(), steps=4)
    trainer = Trainer(make(Continual, minibatch=8), ctx)
    seen = []
    for _ in range(4):
        trainer.step()
        seen.append(trainer.method.data.games)  # type: ignore[attr-defined]
    assert seen == [[0], [0], [0, 1], [0, 1]]
    assert ctx.ledger.student_tokens == ctx.ledger.teacher_scored == 4 * 4 * 6
    share_b = trainer.method.data.sample_each(8, Random(0)).columns["game"]  # type: ignore[attr-defined]
    assert share_b.bincount().tolist() == [4, 4]


def test_without_replay_the_second_game_undoes_what_was_learnt_of_the_first_and_with_it_does_not() -> None:
    """How far the student is from the first game's teacher, when that game ends and when the other does: they share a
    body, so that the second moves what the first one's head reads."""
    lost = {}
    for replay in (True, False):
        here = world()
        trainer = Trainer(make(Continual, replay=replay, minibatch=32, steps_per_update=4.0),
                          context(here, budget=Budget(steps=12), batch=8, horizon=12, lr=0.05))
        distances = []
        for step in range(12):
            trainer.step()
            if step in (5, 11):
                distances.append(distance(here))
        lost[replay] = distances[1] - distances[0]
    assert lost[False] > 10 * max(lost[True], 1e-3)


def distance(here: GamesWorld) -> float:
    """The first game's mean forward KL over all of its states."""
    assert here.teacher is not None
    state_s = torch.from_numpy(here.form.mark(torch.eye(5).numpy(), 0))[:, None]
    one_s = torch.ones(5, dtype=torch.int64)
    p_sa, q_sa = (policy.project(policy.features(state_s, one_s)[:, 0]).log_softmax(-1).detach()
                  for policy in (here.teacher, here.student))
    return float((p_sa.exp() * (p_sa - q_sa)).sum(-1).mean())


# ---------------------------------------------------------------------------------------------------------- the figures

# Before, and after each of three tasks: rows; the score on each: columns.
SCORES = [[0.0, 10.0, 20.0],
          [90.0, 16.0, 20.0],
          [70.0, 80.0, 50.0],
          [60.0, 90.0, 95.0]]


def test_figures_are_those_worked_out_by_hand() -> None:
    assert continual.forgetting(SCORES) == ((90 - 60) + (80 - 90)) / 2 == 10
    assert continual.backward_transfer(SCORES) == ((60 - 90) + (90 - 80)) / 2 == -10
    assert continual.forward_transfer(SCORES) == ((16 - 10) + (50 - 20)) / 2 == 18


def test_forgetting_counts_from_the_best_student_of_before_and_backward_transfer_from_the_task_s_own() -> None:
    better_later = [[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [80.0, 60.0, 0.0], [40.0, 60.0, 70.0]]
    assert continual.forgetting(better_later) == ((80 - 40) + 0) / 2
    assert continual.backward_transfer(better_later) == ((40 - 50) + 0) / 2


@pytest.mark.parametrize("wrong", [[[1.0], [2.0]], [[1.0, 2.0], [1.0, 2.0]], []])
def test_scores_of_no_sequence_are_refused(wrong: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="are not those"):
        continual.forgetting(wrong)


def says(student: GamesPolicy, *actions: int) -> None:
    """Make it choose one action in all states of each game."""
    for head, action in zip(student.network.heads, actions, strict=True):  # type: ignore[union-attr, arg-type]
        head.weight.data.zero_()
        head.bias.data.copy_(torch.eye(3)[action])


def test_the_probe_reports_what_enumerated_policies_score_and_the_figures_of_that() -> None:
    """In one corridor the right end pays 1 and in the other the left one; who always walks to it gets 1 from every
    start, and who stays (or walks the other way) nothing."""
    left, stay, right = 0, 1, 2
    here = world()
    ctx = in_context(here)
    (probe,) = probes.make(["forgetting"])
    probe.begin(ctx)
    look = Look(make(Continual), here.rollout(Student(), n=2, horizon=2, generator=torch.Generator()), ctx)
    for actions in ((stay, stay), (right, right)):
        says(here.student, *actions)  # type: ignore[arg-type]
        probe.watch(look)
        assert probe.summary(ctx) == {}
        probe.watch(look)  # once a share is enough
        ctx.ledger.steps += 1
    assert probe.series == [{"step": 0, "right": 0.0, "left": 0.0}, {"step": 1, "right": 100.0, "left": 0.0}]
    says(here.student, stay, left)  # type: ignore[arg-type]
    assert probe.summary(ctx) == {"at_the_end": {"right": 0.0, "left": 100.0}, "mean_score": 50.0, "forgetting": 100.0,
                                  "backward_transfer": -100.0, "forward_transfer": 0.0}


def test_the_probe_looks_where_a_share_ends_and_changes_nothing() -> None:
    trainers = []
    for names in ([], ["forgetting"]):
        trainers.append(Trainer(make(Continual, minibatch=8), in_context(world(), steps=4), probes.make(names)))
        for _ in range(4):
            trainers[-1].step()
    plain, watched = (trainer.ctx for trainer in trainers)
    assert all(value.equal(watched.student.state_dict()[name]) for name, value in plain.student.state_dict().items())
    assert plain.ledger.total_flops == watched.ledger.total_flops > 0
    (probe,) = trainers[1].probes
    assert [row["step"] for row in probe.series] == [0, 2] and "forgetting" in probe.summary(watched)


def test_the_probe_is_refused_where_there_is_one_game() -> None:
    (probe,) = probes.make(["forgetting"])
    with pytest.raises(UserError, match="several games"):
        probe.begin(context(world().worlds[0]))
