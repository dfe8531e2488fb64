"""Rewards from the sampled action: OPD+, GNDPO, PowerOPD, ExOPD, REOPOLD, on bandits and in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench.baselines.exopd import ExOPD
from opdbench.baselines.gndpo import GNDPO, normalised
from opdbench.baselines.opd_plus import OPDPlus
from opdbench.baselines.poweropd import PowerOPD
from opdbench.baselines.reopold import REOPOLD
from opdbench.conformance.enumerable import PrefixPolicy
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP
from opdbench.schema.spec import Budget
from tests.enumerable import context, flat_gradient, generator, leaf, make, near, random_logits
from tests.frontier.exact import expected_slope, kl, loss_of, rows_of, stated_slope, world_of

DIVERGENCES: dict[str, Callable[[Tensor], Tensor]] = {  # f(u), u = p / q
    "reverse_kl": lambda u: -u.log(),
    "forward_kl": lambda u: u * u.log(),
    "jsd": lambda u: (u * (2 * u / (1 + u)).log() + (2 / (1 + u)).log()) / 2,
}


def finite_differences(value: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-5) -> Tensor:
    nudges = step * torch.eye(len(at), dtype=at.dtype)
    return torch.stack([(value(at + nudge) - value(at - nudge)) / (2 * step) for nudge in nudges])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_opd_plus_weights_descend_the_divergence_by_finite_differences(name: str) -> None:
    """On a softmax bandit: E_q[w(u) grad log q] is minus the slope of E_q[f(u)]."""
    method = make(OPDPlus, divergence=name, clip=50.0)
    assert isinstance(method, OPDPlus)
    p, logits = random_logits(30, seed=1).softmax(0), leaf(30, seed=2)

    def divergence(z: Tensor) -> Tensor:
        return (z.softmax(0) * DIVERGENCES[name](p / z.softmax(0))).sum()

    q = logits.softmax(0)
    weight = method.weight((p / q).log()).detach()
    found = torch.autograd.grad((q.detach() * weight * q.log()).sum(), logits, retain_graph=True)[0]
    slope = finite_differences(divergence, logits.detach())
    assert float(slope.norm()) > 0.01 and near(found, -slope, 1e-8)
    naive = torch.autograd.grad((q.detach() * -DIVERGENCES[name](p / q).detach() * q.log()).sum(), logits)[0]
    assert near(naive, -slope, 1e-8) == (name == "reverse_kl")  # minus the integrand is right for one only


def test_opd_plus_weights_are_bounded_and_vanish_where_the_two_agree() -> None:
    far = torch.tensor([-80.0, 0.0, 80.0], dtype=torch.float64)
    for name in DIVERGENCES:
        method = make(OPDPlus, divergence=name)
        assert isinstance(method, OPDPlus)
        weight = method.weight(far)
        assert weight.isfinite().all() and near(weight[1], 0.0) and weight[0] < 0 < weight[2]


# --------------------------------------------------------------------------------------------------------------- gndpo


def test_gndpo_advantages_have_mean_0_and_variance_1_over_decisions_and_padding_is_not_counted() -> None:
    world = world_of()
    ctx = context(world)
    advantage_n = rows_of(make(GNDPO), ctx, world.completions()).columns["advantage"]
    assert near(advantage_n.mean(), 0.0) and near(advantage_n.var(correction=0), 1.0, 1e-6)
    assert ctx.notes["spread"] > 0.1


def test_gndpo_does_not_see_a_constant_and_learns_nothing_from_one() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    value = random_logits(2, 3)
    first, shifted = (normalised(value + shift, mask)[0] for shift in (0.0, 2.5))
    assert near(first, shifted) and near(first[~mask], 0.0)
    flat, spread = normalised(torch.full((2, 3), 1.7, dtype=torch.float64), mask)
    assert near(flat, 0.0) and spread < 1e-12


def test_gndpo_pushes_down_what_the_teacher_likes_less_than_the_average_action() -> None:
    """Why its fixed point is another: a positive log-ratio below the mean gets a negative advantage."""
    advantage, _ = normalised(torch.tensor([[0.1, 1.0, 1.0]]), torch.ones(1, 3, dtype=torch.bool))
    assert advantage[0, 0] < 0 < advantage[0, 1]


# ------------------------------------------------------------------------------------------------------------ poweropd


def test_poweropds_reward_is_bounded_has_the_log_ratios_sign_and_tends_to_it() -> None:
    world = world_of(scale=3.0)
    rollouts = world.completions()
    for alpha in (0.1, 1.0, 5.0):
        loss = loss_of(make(PowerOPD, alpha=alpha, stop_token=True), context(world), rollouts)
        reward_n, ratio_n = loss.scalars["power_reward"], -loss.scalars["sampled_reverse_kl"]
        assert reward_n.abs().max() <= 1 and torch.equal(reward_n.sign(), ratio_n.sign())
    small = loss_of(make(PowerOPD, alpha=1e-6, stop_token=True), context(world), rollouts)
    assert near(small.scalars["power_reward"] / 1e-6, -small.scalars["sampled_reverse_kl"], 1e-4)


def test_poweropd_leaves_the_stop_token_alone() -> None:
    world = world_of()
    rollouts = world.completions()
    rows = rows_of(make(PowerOPD), context(world), rollouts)
    assert len(rows) == rollouts.n_rows - int(rollouts.done_bt.sum()) < rollouts.n_rows
    assert not (rows.action_n == 0).any()  # the end


# --------------------------------------------------------------------------------------------------------------- exopd


def test_exopds_closed_form_is_where_its_gradient_vanishes() -> None:
    """On every state at once: log q = lambda log p + (1 - lambda) log q_ref + const."""
    world = world_of()
    reference = PrefixPolicy(generator(5), scale=1.0, tabular=True)
    teacher = PrefixPolicy(generator(6), scale=1.0, tabular=True)
    student = PrefixPolicy(generator(7), scale=1.0, tabular=True)
    world.student, world.teacher = student, teacher
    method = make(ExOPD, extrapolation=1.25)
    assert isinstance(method, ExOPD)
    method.reference.of(reference)
    assert float(expected_slope(method, world).norm()) > 0.05
    with torch.no_grad():
        student.table.copy_(1.25 * teacher.table - 0.25 * reference.table)
    assert near(expected_slope(method, world), 0.0, 1e-10)


def with_reference(extrapolation: float, reference: Any) -> ExOPD:
    method = make(ExOPD, extrapolation=extrapolation)
    assert isinstance(method, ExOPD)
    method.reference.of(reference)
    return method


def test_exopd_at_lambda_1_needs_no_reference_and_at_0_has_no_other_aim() -> None:
    world = world_of()
    others = [PrefixPolicy(generator(seed), scale=1.0) for seed in (5, 6)]
    one, two = (expected_slope(with_reference(1.0, other), world) for other in others)
    assert torch.equal(one, two) and near(one, stated_slope(lambda p, q: kl(q, p), world), 1e-10)
    to_reference = expected_slope(with_reference(0.0, others[0]), world)
    here = world_of()
    here.student, here.teacher = world.student, others[0]
    assert near(to_reference, stated_slope(lambda p, q: kl(q, p), here), 1e-10)


def test_exopd_with_the_teacher_as_reference_is_opd_for_any_lambda() -> None:
    world = world_of()
    found = [expected_slope(with_reference(extrapolation, world.teacher), world) for extrapolation in (0.0, 1.0, 3.0)]
    assert near(found[0], found[1]) and near(found[2], found[1])


# ------------------------------------------------------------------------------------------------------------- reopold


def test_reopolds_floor_and_its_limits() -> None:
    def floor(mixture: float) -> float:
        method = make(REOPOLD, mixture=mixture)
        assert isinstance(method, REOPOLD)
        return method.floor

    assert floor(0.3) == pytest.approx(-1.720, abs=5e-4)
    assert floor(1 - 1e-9) == pytest.approx(-1, abs=1e-6) and floor(1e-300) < -600


def test_reopolds_first_phase_leaves_out_what_is_below_the_floor() -> None:
    world = world_of(scale=2.0)
    method = make(REOPOLD, switch=1.0)
    rows = rows_of(method, context(world), world.completions())
    assert isinstance(method, REOPOLD) and 0 < len(rows) < world.completions().n_rows
    assert (rows.columns["advantage"] >= method.floor).all() and torch.equal(
        rows.columns["advantage"], rows.columns["log_ratio"])


def test_reopolds_second_phase_keeps_the_top_share_by_entropy_and_floors_the_rest_of_the_ratio() -> None:
    world = world_of(scale=2.0)
    rollouts = world.completions()
    method, ctx = make(REOPOLD, switch=0.0, share=0.2), context(world)
    rows = rows_of(method, ctx, rollouts)
    everything = rows_of(make(REOPOLD, switch=0.0, share=1.0), context(world), rollouts)
    assert len(everything) == rollouts.n_rows and (everything.columns["advantage"] == method.floor).any()  # type: ignore
    threshold = everything.student.entropy().sort().values[int(0.8 * (len(everything) - 1))]
    assert (rows.student.entropy() >= threshold).all()
    assert ctx.notes["tokens_kept"] == pytest.approx(0.2, abs=0.1)


def teacher_logp(rollouts: Rollouts, world: Any) -> Tensor:
    return context(world).score(rollouts, REOPOLD.needs).columns[TEACHER_LOGP]


def test_reopold_switches_after_its_share_of_the_budget() -> None:
    world = world_of(scale=2.0)
    rollouts = world.completions()
    ctx = context(world, budget=Budget(steps=9))
    kept = []
    for ctx.ledger.steps in (0, 2, 3, 8):
        ctx.begin_step()
        make(REOPOLD).prepare(ctx.score(rollouts, REOPOLD.needs), ctx)
        kept.append(ctx.notes["tokens_kept"])
    assert kept[0] == kept[1] != kept[2] == kept[3]
    ratio_bt = teacher_logp(rollouts, world) - rollouts.behaviour_logp_bt
    above = (ratio_bt[rollouts.mask_bt] >= math.log(0.3) / 0.7).double().mean()
    assert kept[0] == pytest.approx(float(above))


def test_the_gradient_of_a_stale_sample_is_weighted_by_its_ratio() -> None:
    world = world_of()
    rollouts = world.completions()
    loss = loss_of(make(REOPOLD, switch=1.0, mixture=1e-9), context(world), rollouts)
    later = loss.value_n.sum()
    assert near(flat_gradient(later, world.student),
                flat_gradient(loss_of(make(OPDPlus, divergence="reverse_kl", clip=99.0), context(world),
                                      rollouts).value_n.sum(), world.student))
