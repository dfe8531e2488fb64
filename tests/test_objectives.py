"""Every method against the objective that its page states: the expected gradient over all rollouts, in float64.

An objective is written down here once more, in probabilities and for automatic differentiation, and weighted with the
exact probability of every completion of the three-token, three-step language under whoever writes. What the methods do
beyond one expectation (advantages, curricula, buffers, adversaries) is in the other `test_methods_*` files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from opdbench import registry
from opdbench.baselines.actor_mimic import ActorMimic
from opdbench.baselines.ammd import AMMD
from opdbench.baselines.bc import BehaviourCloning
from opdbench.baselines.continual import Continual
from opdbench.baselines.dagger import DAgger
from opdbench.baselines.distillm import DistiLLM
from opdbench.baselines.distillm2 import DistiLLM2
from opdbench.baselines.dpd import DPD
from opdbench.baselines.fdistill import FDistill
from opdbench.baselines.gkd import GKD
from opdbench.baselines.gold import GOLD
from opdbench.baselines.grpo import GRPO
from opdbench.baselines.imitkd import ImitKD
from opdbench.baselines.kd import KD
from opdbench.baselines.kdrl import KDRL
from opdbench.baselines.kickstarting import Kickstarting
from opdbench.baselines.kickstarting_pbt import KickstartingPBT
from opdbench.baselines.minillm import MiniLLM
from opdbench.baselines.opd import OPD
from opdbench.baselines.policy_distillation import PolicyDistillation
from opdbench.baselines.ppd import PPD
from opdbench.baselines.qwen3 import Qwen3
from opdbench.baselines.seqkd import SeqKD
from opdbench.baselines.sft import SFT
from opdbench.baselines.student_distill import StudentDistill
from opdbench.baselines.uld import ULD
from opdbench.conformance.enumerable import EnumerableWorld, PrefixPolicy, trajectory_logp
from opdbench.conformance.harness import make_rows
from opdbench.distiller import Distiller, Needs
from opdbench.distributions import Categorical
from opdbench.divergences import skew_kl
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts, Source
from opdbench.schema.spec import Budget
from tests import frontier
from tests import test_methods_lm_exact as lm_exact
from tests.enumerable import (
    context,
    distributions,
    flat_gradient,
    generator,
    make,
    near,
    small_language,
    trajectory_weights,
)
from tests.rl import test_methods as rl_methods
from tests.rl import test_search

TEACHER, STUDENT = "teacher", "student"


class Sides(NamedTuple):
    """What an objective is a function of, in the rows of one writer."""

    p: Tensor  # the teacher's probabilities [N, A], constant
    q: Tensor  # the student's
    a: Tensor  # int64 [N], the action taken


Objective = Callable[[Sides], Tensor]


class Case(NamedTuple):
    """A method with parameters and shared settings, and its objective as a sum over writers of E[...]."""

    cls: type[Distiller]
    params: Mapping[str, Any]
    terms: Mapping[str, Objective]
    settings: Mapping[str, Any] = {}


def kl(first: Tensor, second: Tensor) -> Tensor:
    return (first * (first / second).log()).sum(-1)


def tempered(p: Tensor, temperature: float) -> Tensor:
    return (p.log() / temperature).softmax(-1)


def jsd(p: Tensor, q: Tensor, beta: float) -> Tensor:
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def likelihood(s: Sides) -> Tensor:
    return -s.q.log().gather(-1, s.a[:, None])[:, 0]


def hard_label(s: Sides) -> Tensor:
    return -s.q.log().gather(-1, s.p.argmax(-1, keepdim=True))[:, 0]


def forward(s: Sides) -> Tensor:
    return kl(s.p, s.q)


def reverse(s: Sides) -> Tensor:
    return kl(s.q, s.p)


def variation(s: Sides) -> Tensor:
    return (s.p - s.q).abs().sum(-1) / 2


def entropy(q: Tensor) -> Tensor:
    return -(q * q.log()).sum(-1)


def sorted_gap(s: Sides) -> Tensor:
    return (s.p.sort(-1).values - s.q.sort(-1).values).abs().sum(-1)


def bucketed(s: Sides) -> Sides:
    """Both sides on the teacher's most likely action and "anything else"."""
    top = s.p.argmax(-1, keepdim=True)
    p, q = (torch.cat([side.gather(-1, top), 1 - side.gather(-1, top)], -1) for side in s[:2])
    return Sides(p, q, s.a)


def renormalised(s: Sides) -> Sides:
    """Both sides on the student's two most likely actions, as if there were no others."""
    top = s.q.topk(2, -1).indices
    p, q = (side.gather(-1, top) / side.gather(-1, top).sum(-1, keepdim=True) for side in s[:2])
    return Sides(p, q, s.a)


CASES = {
    "sft": Case(SFT, {}, {TEACHER: likelihood}),
    "kd": Case(KD, {}, {TEACHER: forward}),
    "kd, hot": Case(KD, {}, {TEACHER: lambda s: 4 * kl(tempered(s.p, 2), tempered(s.q, 2))}, {"loss_temperature": 2.0}),
    "gkd": Case(GKD, {"beta": 0.3}, {STUDENT: lambda s: jsd(s.p, s.q, 0.3)}),
    "gkd on data": Case(GKD, {"beta": 0.3, "lmbda": 0.0}, {TEACHER: lambda s: jsd(s.p, s.q, 0.3)}),
    "gkd, forward": Case(GKD, {"divergence": "forward_kl"}, {STUDENT: forward}),
    "gkd, hot": Case(GKD, {"beta": 0.5}, {STUDENT: lambda s: jsd(tempered(s.p, 3), tempered(s.q, 3), 0.5)},
                     {"loss_temperature": 3.0}),
    "gkd, top 1 of the teacher, bucket": Case(
        GKD, {"beta": 0.3}, {STUDENT: lambda s: jsd(*bucketed(s)[:2], 0.3)}, {"support": "teacher", "top_k": 1}),
    "gkd, top 2 of the student, renormalised": Case(
        GKD, {"divergence": "reverse_kl"}, {STUDENT: lambda s: reverse(renormalised(s))},
        {"support": "student", "top_k": 2, "tail": "renormalise"}),
    "opd": Case(OPD, {"coefficient": 0.7}, {STUDENT: lambda s: 0.7 * reverse(s)}),
    "opd, sampled": Case(OPD, {"estimator": "sampled"}, {STUDENT: reverse}),
    "dagger": Case(DAgger, {"beta": "never"}, {STUDENT: hard_label}),
    "dagger, soft": Case(DAgger, {"beta": "never", "labels": "soft"}, {STUDENT: forward}),
    "seqkd, sampled": Case(SeqKD, {"decode": "sample"}, {TEACHER: likelihood}),
    "seqkd, word level": Case(SeqKD, {"decode": "sample", "word_level": 0.3}, {
        TEACHER: lambda s: 0.7 * likelihood(s) + 0.3 * forward(s)}),
    "imitkd": Case(ImitKD, {"schedule": "never"}, {STUDENT: hard_label}),
    "imitkd, soft": Case(ImitKD, {"schedule": "never", "labels": "soft"}, {STUDENT: forward}),
    "fdistill": Case(FDistill, {}, {TEACHER: lambda s: variation(s) / 2, STUDENT: lambda s: variation(s) / 2}),
    "fdistill, js": Case(FDistill, {"divergence": "js"}, {TEACHER: lambda s: kl(s.p, (s.p + s.q) / 2) / 2,
                                                          STUDENT: lambda s: kl(s.q, (s.p + s.q) / 2) / 2}),
    "fdistill, kl": Case(FDistill, {"divergence": "kl"}, {TEACHER: forward}),
    "fdistill, rkl": Case(FDistill, {"divergence": "rkl"}, {STUDENT: reverse}),
    "distillm": Case(DistiLLM, {"alpha": 0.1}, {TEACHER: lambda s: kl(s.p, 0.1 * s.p + 0.9 * s.q)}),
    "distillm, srkl": Case(DistiLLM, {"alpha": 0.2, "divergence": "srkl", "initial": 1.0}, {
        STUDENT: lambda s: kl(s.q, 0.8 * s.p + 0.2 * s.q)}),
    "distillm2": Case(DistiLLM2, {"adaptive": False, "b_start": 0.6}, {
        TEACHER: lambda s: 1.4 * kl(s.p, 0.1 * s.p + 0.9 * s.q),
        STUDENT: lambda s: 0.6 * kl(s.q, 0.9 * s.p + 0.1 * s.q)}),
    "distillm2, fixed mixture": Case(DistiLLM2, {"adaptive": False, "moving_mixture": False}, {
        TEACHER: lambda s: kl(s.p, 0.1 * s.p + 0.9 * s.q),
        STUDENT: lambda s: kl(s.q, (0.9 * s.p + 0.1 * s.q).detach())}),
    "qwen3, first stage": Case(Qwen3, {"stage_1": 1.0}, {TEACHER: likelihood}),
    "qwen3, second stage": Case(Qwen3, {"stage_1": 0.0}, {STUDENT: reverse}),
    "kdrl": Case(KDRL, {"teacher": 0.3}, {STUDENT: lambda s: 0.3 * reverse(s)}),  # no reward in this test
    "gold": Case(GOLD, {"beta": 0.3}, {STUDENT: lambda s: jsd(s.p, s.q, 0.3)}),  # one tokenizer: all is matched
    "gold on data": Case(GOLD, {"beta": 0.3, "lmbda": 0.0}, {TEACHER: lambda s: jsd(s.p, s.q, 0.3)}),
    "dpd, teacher": Case(DPD, {"variant": "teacher"}, {TEACHER: forward}),  # the others are in test_dpd.py
    "dpd, on-policy": Case(DPD, {"variant": "on-policy"}, {STUDENT: forward}),
    "uld": Case(ULD, {}, {TEACHER: lambda s: likelihood(s) + 1.5 * sorted_gap(s)}),
    "uld, distance alone": Case(ULD, {"likelihood": 0.0, "lmbda": 0.7}, {TEACHER: lambda s: 0.7 * sorted_gap(s)}),
    # Those of control tasks, whose losses are functions of rows like any other's. There is no reward in this test.
    "bc": Case(BehaviourCloning, {"entropy": 0.3}, {TEACHER: lambda s: likelihood(s) - 0.3 * entropy(s.q)}),
    "bc, mode": Case(BehaviourCloning, {"entropy": 0.0, "labels": "mode"}, {TEACHER: hard_label}),
    "bc, soft": Case(BehaviourCloning, {"entropy": 0.0, "labels": "soft"}, {TEACHER: forward}),
    "policy-distillation": Case(PolicyDistillation, {"tau": 0.5}, {TEACHER: lambda s: kl(tempered(s.p, 0.5), s.q)}),
    "policy-distillation, nll": Case(PolicyDistillation, {"target": "nll"}, {TEACHER: hard_label}),
    "actor-mimic": Case(ActorMimic, {"tau": 2.0, "beta": 0.0}, {STUDENT: lambda s: kl(tempered(s.p, 2.0), s.q)}),
    "continual": Case(Continual, {}, {STUDENT: forward}),  # of one game; of several: tests/rl/test_continual.py
    "student-distill": Case(StudentDistill, {}, {STUDENT: forward}),
    "kickstarting": Case(Kickstarting, {"weight": 0.3}, {STUDENT: lambda s: 0.3 * forward(s)}),
    "kickstarting-pbt": Case(KickstartingPBT, {"weight": 0.3, "spread": 1.0}, {STUDENT: lambda s: 0.3 * forward(s)}),
    "ppd": Case(PPD, {"weight": 0.3}, {STUDENT: lambda s: 0.3 * forward(s)}),
}

# Whose objectives are no sum of losses over fixed states.
ELSEWHERE: dict[str, Callable[..., None]] = {
    "minillm": lm_exact.test_minillm_without_its_devices_is_the_exact_gradient_of_the_sequence_reverse_kl,
    "exit": test_search.test_exits_gradient_is_that_of_its_cross_entropy_with_the_visit_counts,
    "alphazero": test_search.test_exits_gradient_is_that_of_its_cross_entropy_with_the_visit_counts,  # the same loss
    "grpo": lm_exact.test_grpos_expected_gradient_is_that_of_the_expected_reward,
    "ammd": lm_exact.test_ammds_students_gradient_is_that_of_its_expected_value_with_q_held_fixed,
    "ppo": rl_methods.test_ppos_gradient_is_that_of_the_whitened_advantages_and_of_the_critics_error,
    "dqn": rl_methods.test_dqns_gradient_is_that_of_the_huber_error_against_the_lagging_copy,
    "qdagger": rl_methods.test_qdaggers_gradient_is_dqns_and_the_teachers,
}


@pytest.mark.parametrize("method", sorted({*registry.names("method")} - frontier.names()))
def test_no_method_is_without_a_stated_objective(method: str) -> None:
    """A new one gets a case above, or a test that is named there."""
    assert method in {case.cls.name for case in CASES.values()} or method in ELSEWHERE


def writers(world: EnumerableWorld) -> dict[str, Policy]:
    assert world.teacher is not None
    return {TEACHER: world.teacher, STUDENT: world.student}


def completions(world: EnumerableWorld, who: list[str]) -> tuple[Rollouts, Tensor]:
    """All completions without their rewards, once for each writer; and the probability of each row under its writer."""
    plain = world.completions()
    sources = {TEACHER: Source.TEACHER, STUDENT: Source.STUDENT}
    parts = [replace(plain, reward_bt=torch.zeros_like(plain.reward_bt),
                     source_bt=torch.where(plain.mask_bt, int(sources[name]), 0).to(torch.uint8)).with_columns(
                         per_trajectory={"fresh": torch.zeros_like(plain.length_b)}) for name in who]
    weight_n = torch.cat([trajectory_weights(plain, writers(world)[name]).detach() for name in who])
    return Rollouts.cat_parts(parts) if len(parts) > 1 else parts[0], weight_n


def expected(case: Case, world: EnumerableWorld) -> tuple[Tensor, Tensor]:
    """The method's loss and its gradient, expected over all completions; scored and prepared as the loop does."""
    ctx, method = context(world, budget=Budget(steps=100), **case.settings), make(case.cls, **case.params)
    rollouts, weight_n = completions(world, list(case.terms))
    method.build(ctx)
    ctx.begin_step()
    rows = make_rows(ctx, method.prepare(ctx.score(rollouts, method.asks(ctx)), ctx))
    total = (weight_n * method.loss(rows, ctx).value_n).sum()
    return total.detach(), flat_gradient(total, world.student)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("echo", [False, True], ids=["plain", "with an environment"])
def test_the_expected_gradient_is_that_of_the_stated_objective(case: Case, echo: bool) -> None:
    """With the visited states held fixed, which all of these say of themselves."""
    world = small_language(echo=echo)
    rollouts = world.completions()
    action_n = rollouts.action_bt[rollouts.mask_bt]
    teacher, student = distributions(world, rollouts)
    stated = torch.zeros((), dtype=torch.float64)
    for name, objective in case.terms.items():
        weight_n = trajectory_weights(rollouts, writers(world)[name]).detach()
        stated = stated + (weight_n * objective(Sides(teacher.p_na.detach(), student.p_na, action_n))).sum()
    exact = flat_gradient(stated, world.student)
    loss, found = expected(case, world)
    assert float(exact.norm()) > 0.02 and near(found, exact)
    if "sampled" not in case.params.values() and case.cls is not KDRL:  # whose estimators have another value
        assert near(loss, stated.detach())


# ------------------------------------------------------------------------------------------- a student like its teacher

AT_TEACHER = {
    **{name: case for name, case in CASES.items() if case.cls not in (
        SFT, DAgger, SeqKD, ImitKD, Qwen3, ULD, BehaviourCloning, PolicyDistillation, ActorMimic)
       or name in ("dagger, soft", "imitkd, soft", "qwen3, second stage", "uld, distance alone", "bc, soft")},
    "policy-distillation, as it is": Case(PolicyDistillation, {"tau": 1.0}, {TEACHER: forward}),
    "policy-distillation, mse": Case(PolicyDistillation, {"target": "mse"}, {TEACHER: forward}),
    "actor-mimic, as it is": Case(ActorMimic, {"beta": 0.0}, {STUDENT: forward}),
    "minillm": Case(MiniLLM, {}, {STUDENT: reverse}),
    "minillm, code": Case(MiniLLM, {"discount": 0.95, "own_reward": True, "whiten": True, "weigh_exact_term": False},
                          {STUDENT: reverse}),
    "distillm2, adaptive": Case(DistiLLM2, {}, {TEACHER: forward, STUDENT: reverse}),
    "ammd": Case(AMMD, {"adversary": 3}, {TEACHER: variation, STUDENT: variation}),
    "dpd, with the student's entropy": Case(DPD, {"student_entropy": True}, {STUDENT: reverse}),
    "opd, discounted": Case(OPD, {"estimator": "sampled", "discount": 1.0}, {STUDENT: reverse}),
    "seqkd, all word level": Case(SeqKD, {"decode": "sample", "word_level": 1.0}, {TEACHER: forward}),
}


def twins(echo: bool = True) -> EnumerableWorld:
    """A student with the very weights of its teacher."""
    return EnumerableWorld(*(PrefixPolicy(generator(1), scale=1.0) for _ in range(2)), echo=echo)


@pytest.mark.parametrize("case", AT_TEACHER.values(), ids=AT_TEACHER.keys())
def test_l9_a_student_that_equals_its_teacher_has_nothing_to_learn(case: Case) -> None:
    """No loss and no gradient, in every row and not only on average."""
    ctx, method = context(twins(), budget=Budget(steps=100), **case.settings), make(case.cls, **case.params)
    method.build(ctx)
    rollouts, _ = completions(ctx.world, list(case.terms))  # type: ignore[arg-type]
    ctx.begin_step()
    value_n = method.loss(make_rows(ctx, method.prepare(ctx.score(rollouts, method.asks(ctx)), ctx)), ctx).value_n
    assert near(value_n, 0.0)
    for weight_n in (torch.ones_like(value_n), torch.arange(1.0, len(value_n) + 1)):
        assert near(flat_gradient((weight_n * value_n).sum(), ctx.student, retain_graph=True), 0.0, 1e-10)


ON_AVERAGE = ("sft", "seqkd, sampled", "seqkd, word level", "qwen3, first stage")


@pytest.mark.parametrize("name", ON_AVERAGE)
def test_l9_maximum_likelihood_of_the_teachers_samples_rests_at_the_teacher_on_average(name: str) -> None:
    """A single sample has a gradient there, which is why these say that they do not vanish."""
    world, case = twins(), CASES[name]
    loss, found = expected(case, world)
    assert near(found, 0.0) and float(loss) > 0.1
    assert not make(case.cls, **case.params).vanishes_at_teacher or case.cls is SFT  # SFT is never asked


@pytest.mark.parametrize("method", sorted({*registry.names("method")} - frontier.names()))
def test_no_method_is_without_a_test_at_its_teacher(method: str) -> None:
    """But for those that ask none."""
    tested = {case.cls.name for case in (*AT_TEACHER.values(), *(CASES[name] for name in ON_AVERAGE))}
    elsewhere = {"qdagger": rl_methods.test_qdagger_at_its_teacher_is_dqn}
    assert method in {*tested, *elsewhere} or registry.load("method", method).needs == Needs.NOTHING


# -------------------------------------------------------------------------------------------------------- special cases

SAME = {  # two methods that must take the same steps; more of them are in `lm_exact`
    "gold with one tokenizer is gkd": ((GOLD, {"beta": 0.3, "lmbda": 0.5}), (GKD, {"beta": 0.3, "lmbda": 0.5})),
    "uld without its distance is sft": ((ULD, {"lmbda": 0.0}), (SFT, {})),
    "dagger that never lets its teacher act is imitkd": (
        (DAgger, {"beta": "never", "replay_ratio": 1, "minibatch": 8}), (ImitKD, {"schedule": "never"})),
    "dagger with soft labels is gkd with the forward KL": (
        (DAgger, {"beta": "never", "labels": "soft", "replay_ratio": 1, "minibatch": 8}),
        (GKD, {"divergence": "forward_kl"})),
    "student-distill is gkd with the forward KL": ((StudentDistill, {}), (GKD, {"divergence": "forward_kl"})),
    "minillm with no later rewards is opd": (
        (MiniLLM, {"alpha": 0.0, "discount": 0.0, "clip": 1e9, "epochs": 1, "minibatches": 1}), (OPD, {})),
}


@pytest.mark.parametrize(("one", "other"), SAME.values(), ids=SAME.keys())
def test_l12_endpoints_are_the_methods_that_they_are_named_for(one: tuple[type[Distiller], dict[str, Any]],
                                                                other: tuple[type[Distiller], dict[str, Any]]) -> None:
    first, second = (lm_exact.weights_after(make(cls, **params), steps=1) for cls, params in (one, other))
    start = [weight.detach() for weight in small_language().student.parameters()]
    assert all(near(mine, theirs) for mine, theirs in zip(first, second, strict=True))
    assert max(float((mine - before).abs().max()) for mine, before in zip(first, start, strict=True)) > 1e-3


def test_l12_distillm2_without_skew_is_both_kls_each_on_its_own_sides_samples() -> None:
    world = small_language()
    _, found = expected(Case(DistiLLM2, {"alpha": 1e-12, "adaptive": False, "b_start": 0.6},
                             {TEACHER: forward, STUDENT: reverse}), world)
    parts = [expected(Case(cls, {}, {who: forward}), world)[1] for cls, who in ((KD, TEACHER), (OPD, STUDENT))]
    assert near(found, 1.4 * parts[0] + 0.6 * parts[1], 1e-8)


# ------------------------------------------------------------------------------------------ what is left out, measured


def sequence_kl_gradient(world: EnumerableWorld, rollouts: Rollouts) -> Tensor:
    """Of KL(student || teacher) between whole completions: later states included."""
    logq_b, logp_b = (trajectory_logp(writers(world)[name], rollouts) for name in (STUDENT, TEACHER))
    return flat_gradient((logq_b.exp() * (logq_b - logp_b.detach())).sum() / 4, world.student)


@pytest.mark.parametrize("echo", [False, True], ids=["plain", "with an environment"])
def test_l2_l3_the_bias_of_holding_states_fixed_and_that_a_discount_of_one_removes_it(echo: bool) -> None:
    world = small_language(echo=echo)
    exact = sequence_kl_gradient(world, world.completions())
    found = {discount: expected(Case(OPD, {"estimator": "sampled", "discount": discount}, {STUDENT: reverse}), world)[1]
             for discount in (0.0, 0.5, 1.0)}
    assert near(found[1.0], exact)
    gaps = [float((found[discount] - exact).norm()) for discount in (0.0, 0.5)]
    assert gaps[0] > gaps[1] > 0.02
    assert near(found[0.0], expected(CASES["opd"]._replace(params={}), world)[1])


@pytest.mark.parametrize("name", ["gkd", "gkd, forward", "distillm, srkl", "imitkd, soft", "opd"])
def test_on_policy_losses_are_biased_against_the_gradient_through_sampling_by_the_score_term(name: str) -> None:
    """What each leaves out: E[ sum_t (losses after t) grad log q(y_t) ]."""
    world, case = small_language(), CASES[name]
    rollouts = world.completions()
    teacher, student = distributions(world, rollouts)
    mask_bt, objective = rollouts.mask_bt, case.terms[STUDENT]
    value_n = objective(Sides(teacher.p_na.detach(), student.p_na, rollouts.action_bt[mask_bt]))
    through = (trajectory_weights(rollouts, world.student) * value_n).sum()  # not detached: the writer moves
    later_bt = torch.zeros(mask_bt.shape, dtype=torch.float64)
    later_bt[mask_bt] = value_n.detach()
    later_n = (later_bt.flip(1).cumsum(1).flip(1) - later_bt)[mask_bt]
    weight_n = trajectory_weights(rollouts, world.student).detach()
    score = (weight_n * later_n * student.logp(rollouts.action_bt[mask_bt])).sum()
    missing = flat_gradient(score, world.student, retain_graph=True)
    assert float(missing.norm()) > 0.02
    assert near(flat_gradient(through, world.student), expected(case, world)[1] + missing)


def test_dividing_by_the_groups_deviation_biases_grpo_and_measured_it_is_a_weight_for_each_prompt() -> None:
    """`scale`: with all completions of a prompt as its group, the gradient is that of the expected reward with each
    prompt's divided by the deviation of its group: prompts whose answers differ least weigh most."""
    world = small_language()
    rollouts = world.completions()
    group_b = rollouts.columns["group"]
    rollouts = replace(rollouts, reward_bt=rollouts.reward_bt.double() * (1 + group_b)[:, None])  # spreads that differ
    reward_b = rollouts.reward_bt.sum(1)
    ctx, weight_n = context(world), trajectory_weights(rollouts, world.student).detach()
    found = {}
    for scale in (True, False):
        method = make(GRPO, scale=scale, kl_coefficient=0.0)
        rows = make_rows(ctx, method.prepare(rollouts, ctx))
        found[scale] = flat_gradient((weight_n * method.loss(rows, ctx).value_n).sum(), world.student)
    p_b = trajectory_logp(world.student, rollouts).exp() / 4
    deviation_b = torch.stack([reward_b[group_b == group].std() for group in group_b])
    weighted = -flat_gradient((p_b * reward_b / deviation_b).sum(), world.student)
    assert near(found[True], weighted, 1e-3 * float(weighted.norm()))
    direction = torch.cosine_similarity(found[True], found[False], dim=0)
    assert 0.5 < float(direction) < 0.99


def test_grpos_penalty_has_the_gradient_of_the_forward_kl_from_its_reference() -> None:
    """k3 is differentiated as the paper has it; what that pulls towards is KL(reference || student)."""
    world = small_language()
    method, ctx = make(GRPO, kl_coefficient=0.3), context(world)
    reference = PrefixPolicy(generator(5), scale=1.0)
    assert isinstance(method, GRPO)
    method.load_state_dict({"reference": dict(reference.state_dict())})
    rollouts, weight_n = completions(world, [STUDENT])
    rows = make_rows(ctx, method.prepare(rollouts, ctx))
    found = flat_gradient((weight_n * method.loss(rows, ctx).value_n).sum(), world.student)
    logits_na = reference.project(reference.features(rollouts.input_bt, rollouts.length_b)[rollouts.mask_bt])
    _, student = distributions(world, rollouts)
    pulled = (weight_n * kl(Categorical(logits_na).p_na.detach(), student.p_na)).sum()
    assert near(found, 0.3 * flat_gradient(pulled, world.student)) and float(found.norm()) > 0.02


def test_l7_the_skew_bounds_the_gradients_ratio_of_teacher_to_mixture() -> None:
    """DistiLLM's claim: the weight of grad q in SKL(alpha) is (1 - alpha) p / m, at most (1 - alpha) / alpha, where the
    forward KL's p / q has no limit."""
    alpha, p = 0.1, torch.tensor([[1 - 1e-9, 1e-9]], dtype=torch.float64)
    for gap in (5.0, 20.0, 100.0):
        logits = torch.tensor([[-gap, 0.0]], dtype=torch.float64, requires_grad=True)
        q = logits.softmax(-1).detach()
        (found,) = torch.autograd.grad(skew_kl(Categorical(p.log()), Categorical(logits), alpha).sum(), logits)
        weight = (1 - alpha) * p / (alpha * p + (1 - alpha) * q)
        assert (weight <= (1 - alpha) / alpha + 1e-9).all() and float((p / q).max()) > math.exp(gap) / 2
        assert near(found, -q * (weight - (q * weight).sum()), 1e-12)
