"""Methods that a verdict steers: SCOPE's two paths, KEPO's gate and hints."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench.baselines.grpo import GRPO
from opdbench.baselines.kepo import KEPO, failed_groups, succeeded
from opdbench.baselines.scope import SCOPE
from opdbench.conformance.enumerable import EnumerableWorld
from opdbench.divergences import generalized_jsd
from opdbench.errors import UserError
from opdbench.lm.generate import last_decision
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import TEACHER_LOGP
from opdbench.schema.spec import Training
from tests.enumerable import context, distributions, flat_gradient, make, near
from tests.frontier.exact import loss_of, rows_of, unrewarded, world_of


def judged(rollouts: Rollouts, score_b: Tensor) -> Rollouts:
    return replace(rollouts, reward_bt=last_decision(rollouts.source_bt) * score_b[:, None].float())


def scope(**params: Any) -> SCOPE:
    method = make(SCOPE, **params)
    assert isinstance(method, SCOPE)
    return method


def mixed(world: EnumerableWorld) -> Rollouts:
    """All completions, every second one right."""
    rollouts = world.completions()
    return judged(rollouts, torch.arange(rollouts.n_trajectories) % 2)


# --------------------------------------------------------------------------------------------------------------- scope


def weights(method: SCOPE, rollouts: Rollouts, world: EnumerableWorld) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(w, right, mean log q, mean log p) of every trajectory."""
    scored = context(world).score(rollouts, method.requires())
    right_b = rollouts.reward_bt.sum(1) > 0
    rows_b = rollouts.mask_bt.sum(1)
    means = (value.where(rollouts.mask_bt, 0.0).sum(1) / rows_b for value in (
        rollouts.behaviour_logp_bt, scored.columns[TEACHER_LOGP]))
    return method.weights(scored, right_b), right_b, *means


def test_scopes_weights_are_shares_of_perplexities_in_each_set_of_each_prompt() -> None:
    world = world_of()
    rollouts = mixed(world)
    for tau in (0.5, 1.0):
        weight_b, right_b, own_b, teachers_b = weights(scope(tau=tau), rollouts, world)
        for prompt in rollouts.columns["group"].unique():
            for right, score_b in ((True, (-own_b).exp() ** (1 / tau)), (False, (-teachers_b).exp() ** (-1 / tau))):
                inside = (rollouts.columns["group"] == prompt) & (right_b == right)
                assert near(weight_b[inside], score_b[inside] / score_b[inside].sum())
    uniform, *_ = weights(scope(tau=1e9), rollouts, world)
    assert near(uniform[0] / uniform[2], 1.0, 1e-6)


def test_scopes_code_averages_one_and_turns_the_students_sign_only() -> None:
    assert dict(SCOPE.presets["code"]) == {"unsure_first": False, "average_one": True}
    world = world_of()
    rollouts = mixed(world)
    paper, right_b, own_b, _ = weights(scope(average_one=True), rollouts, world)
    code, *_ = weights(scope(**SCOPE.presets["code"]), rollouts, world)
    assert near(code[~right_b], paper[~right_b]) and near(code.mean(), 1.0) and near(paper.mean(), 1.0)
    first = (rollouts.columns["group"] == 0) & right_b
    unsure = int(own_b[first].argmin())
    assert (int(paper[first].argmax()), int(code[first].argmin())) == (unsure, unsure)


@pytest.mark.parametrize("right", [True, False])
def test_scope_with_one_kind_of_answer_is_weighted_likelihood_or_weighted_opd(right: bool) -> None:
    world = world_of()
    rollouts = judged(world.completions(), torch.full((world.completions().n_trajectories,), float(right)))
    method = scope()
    value_n = loss_of(method, context(world), rollouts).value_n
    weight_b, right_b, *_ = weights(method, rollouts, world)
    assert right_b.all() if right else not right_b.any()
    weight_n = weight_b.repeat_interleave(rollouts.mask_bt.sum(1))
    teacher, student = distributions(world, rollouts)
    logq_n, logp_n = (side.logp(rollouts.action_bt[rollouts.mask_bt]) for side in (student, teacher))
    advantage_n = 1.0 if right else (logp_n - logq_n).detach()
    by_hand = -(weight_n * advantage_n * logq_n).sum()
    assert near(flat_gradient(value_n.sum(), world.student, retain_graph=True), flat_gradient(by_hand, world.student),
                1e-10)


def test_scope_weighs_an_answer_that_is_alone_in_its_set_by_one() -> None:
    world = world_of()
    rollouts = mixed(world).select([0, 1])
    weight_b, right_b, *_ = weights(scope(), rollouts, world)
    assert right_b.tolist() == [False, True] and weight_b.tolist() == [1.0, 1.0]


# ---------------------------------------------------------------------------------------------------------------- kepo


def test_kepo_without_a_success_is_grpo_and_with_one_adds_a_divergence_on_that_answer_alone() -> None:
    world = world_of()
    rollouts = mixed(world)
    kepo, grpo = (loss_of(make(cls), context(world), rollouts).value_n for cls in (KEPO, GRPO))
    teacher, student = distributions(world, rollouts)
    gate_n = succeeded(rollouts).repeat_interleave(rollouts.mask_bt.sum(1))
    assert near(kepo - grpo, gate_n * generalized_jsd(teacher.detach(), student, 0.5)) and int(gate_n.sum()) > 0
    none = unrewarded(rollouts)
    assert near(loss_of(make(KEPO), context(world), none).value_n, loss_of(make(GRPO), context(world), none).value_n)


def hinted(**params: Any) -> tuple[Rollouts, Rollouts, dict[str, float]]:
    """A batch as GRPO collects it, the same one with hints, and what was noted; the teacher is always right."""
    worlds = [world_of(echo=False), world_of(echo=False)]
    for world in worlds:
        teach(world)
    ctx = context(worlds[1], batch=32)
    ctx.begin_step()
    before = make(GRPO, group=4).collect(context(worlds[0], batch=32))
    return before, make(KEPO, group=4, **params).collect(ctx), ctx.notes


def teach(world: EnumerableWorld) -> None:
    """The teacher writes an "a" after a prompt that ends in a, else "b", then "a" and the end: the right answers."""
    from opdbench.conformance.enumerable import encode, prefix_index

    assert world.teacher is not None
    logits = torch.zeros_like(world.teacher.table @ world.teacher.head.T)
    for example in world.task.examples("train"):
        tokens = [*encode(str(example.prompt) + example.answer), 0]
        for place in range(len(str(example.prompt)), len(tokens)):
            index = prefix_index(torch.tensor([tokens[:place]]), torch.tensor([place]), 3)[0, -1]
            logits[index, tokens[place]] = 50.0
    world.teacher.head = None
    world.teacher.table = torch.nn.Parameter(logits.detach())


def test_kepos_hints_replace_failed_answers_in_groups_without_a_success_and_nothing_else() -> None:
    before, after, notes = hinted(hint=3, hinted=2)
    failed = failed_groups(before)
    assert failed and notes["groups_failed"] == len(failed) == notes["groups_hinted"]
    assert torch.equal(before.columns["group"], after.columns["group"]) and not failed_groups(after)
    assert torch.equal(before.columns["example"], after.columns["example"])
    replaced = [index for index in range(32) if (after.source_bt[index] == Source.TEACHER).any()]
    assert len(replaced) == 2 * len(failed) and set(before.columns["group"][replaced].tolist()) == set(failed)
    kept = [index for index in range(32) if index not in replaced]
    for index in kept:
        length = int(before.length_b[index])
        assert torch.equal(before.action_bt[index, :length], after.action_bt[index, :length])


def test_kepo_leaves_a_group_that_no_hint_helps_as_it_was_and_counts_it() -> None:
    before, after, notes = hinted(hint=0)
    assert notes["groups_failed"] == len(failed_groups(after)) > 0 and "groups_hinted" not in notes
    assert torch.equal(before.action_bt, after.action_bt)


def test_kepo_learns_from_hinted_answers_like_from_any() -> None:
    _, after, _ = hinted(hint=3)
    world = world_of(echo=False)
    rows = rows_of(make(KEPO, group=4), context(world, batch=32), after)
    assert rows.behaviour_logp_n.isfinite().all() and (rows.columns["advantage"] != 0).any()


def test_groups_that_do_not_divide_the_batch_are_refused() -> None:
    for cls in (SCOPE, KEPO):
        with pytest.raises(UserError, match="groups of 8"):
            make(cls).collect(context(world_of(), batch=12))
    assert Training().batch % 8 == 0
