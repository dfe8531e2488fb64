"""The methods on a language of three tokens and three steps, in float64, against exact expectations.

Names say which check of the reference lists (L1 to L13) a test is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from opdbench.baselines.dagger import DAgger
from opdbench.baselines.gkd import GKD
from opdbench.baselines.kd import KD
from opdbench.baselines.opd import OPD
from opdbench.baselines.sft import SFT
from opdbench.conformance.enumerable import (
    END,
    HORIZON,
    EnumerableWorld,
    PrefixPolicy,
    prefix_index,
    step_logp,
    trajectory_logp,
)
from opdbench.conformance.harness import gradient, make_rows, pad_with_garbage
from opdbench.distiller import Distiller
from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_LOGP
from tests.enumerable import (
    context,
    distributions,
    expected_loss,
    flat_gradient,
    generator,
    make,
    near,
    prepared,
    small_language,
    trajectory_weights,
)


def sequence_kl(rollouts: Rollouts, first: Policy, second: Policy) -> Tensor:
    """KL(first || second) between whole completions, over all of them, prompts being equally likely."""
    logp_b, logq_b = trajectory_logp(first, rollouts), trajectory_logp(second, rollouts)
    return (logp_b.exp() * (logp_b - logq_b)).sum() / len(rollouts.columns["example"].unique())


@pytest.fixture(params=[False, True], ids=["plain", "with an environment"])
def world(request: pytest.FixtureRequest) -> EnumerableWorld:
    return small_language(echo=request.param)


def test_the_completions_are_all_of_them_and_probabilities_sum_to_one(world: EnumerableWorld) -> None:
    rollouts = world.completions()
    if not world.task.echo:  # $, x$, xy$ and xyz for each of four prompts
        assert rollouts.n_trajectories == 4 * (1 + 2 + 4 * 3)
    assert near(trajectory_logp(world.student, rollouts).exp().sum(), 4.0)
    ended = [bool(row.any()) for row in ((rollouts.action_bt == END) & rollouts.mask_bt)]
    assert ended == (~rollouts.truncated_b).tolist()


def test_rollouts_are_drawn_with_those_probabilities(world: EnumerableWorld) -> None:
    """Sampling, stopping and bookkeeping of a rollout agree with the enumeration, by exact binomial tests."""
    rollouts = make(OPD).collect(context(world, batch=4000))
    assert near(rollouts.behaviour_logp_bt.nan_to_num().double(), step_logp(world.student, rollouts), 1e-5)
    every = world.completions()
    found = {key: 0 for key in keys(every)}
    for key in keys(rollouts):
        found[key] += 1
    for key, p in zip(keys(every), (trajectory_logp(world.student, every).exp() / 4).tolist(), strict=True):
        assert binomtest(found[key], 4000, p).pvalue > 1e-5


def keys(rollouts: Rollouts) -> list[tuple[int, ...]]:
    """The problem and the decisions of every trajectory."""
    return [(int(example), *actions[mask].tolist()) for example, actions, mask in
            zip(rollouts.columns["example"], rollouts.action_bt, rollouts.mask_bt, strict=True)]


# ---------------------------------------------------------------------------------- what the losses are expectations of


def test_l1_chain_rule_of_the_sequence_kl_in_both_directions(world: EnumerableWorld) -> None:
    """The sequence KL is the sum over visited prefixes of the token KL: `opd` at sum reduction, and `kd`'s states."""
    assert world.teacher is not None
    rollouts = world.completions()
    on_policy = expected_loss(make(OPD), context(world), rollouts, world.student)
    assert near(on_policy, sequence_kl(rollouts, world.student, world.teacher))
    off_policy = expected_loss(make(KD), context(world), rollouts, world.teacher)
    assert near(off_policy, sequence_kl(rollouts, world.teacher, world.student))


def test_off_policy_kd_has_the_gradient_of_the_sequence_kl(world: EnumerableWorld) -> None:
    """The teacher's states do not move with the student, so here nothing is left out."""
    assert world.teacher is not None
    rollouts = world.completions()
    method = expected_loss(make(KD), context(world), rollouts, world.teacher)
    exact = sequence_kl(rollouts, world.teacher, world.student)
    assert near(flat_gradient(method, world.student), flat_gradient(exact, world.student))


def test_sft_on_the_teachers_samples_has_that_gradient_too(world: EnumerableWorld) -> None:
    """Sequence-level distillation: the expected likelihood differs from the KL by the teacher's entropy, a constant."""
    assert world.teacher is not None
    rollouts = world.completions()
    likelihood = expected_loss(make(SFT), context(world), rollouts, world.teacher)
    soft = expected_loss(make(KD), context(world), rollouts, world.teacher)
    entropy = sequence_kl(rollouts, world.teacher, world.teacher) - (
        trajectory_logp(world.teacher, rollouts).exp() * trajectory_logp(world.teacher, rollouts)).sum() / 4
    assert near(likelihood, soft + entropy)
    assert near(flat_gradient(likelihood, world.student), flat_gradient(soft, world.student))


def test_l2_l3_opd_and_gkd_are_biased_by_design_against_the_sequence_kl(world: EnumerableWorld) -> None:
    """What is missing is known: the score-function term of the states visited later."""
    assert world.teacher is not None
    rollouts = world.completions()
    exact = flat_gradient(sequence_kl(rollouts, world.student, world.teacher), world.student)
    immediate = flat_gradient(expected_loss(make(OPD), context(world), rollouts, world.student), world.student)
    assert float((exact - immediate).norm()) > 0.05

    teacher, student = distributions(world, rollouts)
    weight_n = trajectory_weights(rollouts, world.student).detach()
    mask_bt = rollouts.mask_bt
    cost_bt = torch.zeros(mask_bt.shape, dtype=torch.float64)
    cost_bt[mask_bt] = reverse_kl(Categorical(teacher.logits_na.detach()), student).detach()
    later_n = (cost_bt.flip(1).cumsum(1).flip(1) - cost_bt)[mask_bt]
    score_n = student.logp(rollouts.action_bt[mask_bt])
    missing = flat_gradient((weight_n * later_n * score_n).sum(), world.student)
    assert near(exact, immediate + missing)


@pytest.mark.parametrize("cls", [GKD, OPD])
def test_gkd_with_reverse_kl_and_opd_are_one_objective(cls: type[Distiller], world: EnumerableWorld) -> None:
    rollouts = world.completions()
    params = {"divergence": "reverse_kl"} if cls is GKD else {}
    ours = expected_loss(make(cls, **params), context(world), rollouts, world.student)
    teacher, student = distributions(world, rollouts)
    by_hand = sum(q * (logq - logp) for q, logq, logp in zip(
        student.p_na.T, student.logp_na.T, teacher.logp_na.T, strict=True))
    assert near(ours, (trajectory_weights(rollouts, world.student) * torch.as_tensor(by_hand)).sum())


# ----------------------------------------------------------------------------------------------------------- estimators


def test_l4_the_sampled_estimator_of_opd_is_unbiased_for_its_full_gradient(world: EnumerableWorld) -> None:
    """The expectation, over all completions, of the sampled gradient is the full-vocabulary gradient, exactly."""
    rollouts = world.completions()
    full, sampled = (flat_gradient(expected_loss(make(OPD, estimator=estimator, coefficient=0.7), context(world),
                                                 rollouts, world.student), world.student)
                     for estimator in ("full", "sampled"))
    assert float(full.norm()) > 0.05 and near(full, sampled)


def test_l4_the_logged_sampled_reverse_kl_has_the_reverse_kl_as_its_mean(world: EnumerableWorld) -> None:
    """k1 is unbiased as an estimate of KL(student || teacher); k2 is not."""
    rollouts, ctx, method = world.completions(), context(world), make(OPD, estimator="sampled")
    rows = make_rows(ctx, prepared(method, ctx, rollouts))
    k1_n = method.loss(rows, ctx).scalars["sampled_reverse_kl"]
    weight_n = trajectory_weights(rollouts, world.student)
    exact = expected_loss(make(OPD), context(world), rollouts, world.student)
    assert near((weight_n * k1_n).sum(), exact)
    assert near((weight_n * ((-k1_n).exp() - 1 + k1_n)).sum(), exact)  # k3
    assert not near((weight_n * k1_n.square() / 2).sum(), exact, 1e-3)  # k2


def test_l5_as_a_loss_k1_teaches_nothing_k2_the_reverse_kl_and_k3_the_forward_kl(world: EnumerableWorld) -> None:
    """Why the advantage is detached and k1 is never differentiated: with samples held fixed it has no teacher in it."""
    rollouts = world.completions()
    teacher, student = distributions(world, rollouts)
    action_n = rollouts.action_bt[rollouts.mask_bt]
    weight_n = trajectory_weights(rollouts, world.student).detach()
    gap_n = student.logp(action_n) - teacher.logp(action_n).detach()
    fixed_teacher = Categorical(teacher.logits_na.detach())

    def slope(value_n: Tensor) -> Tensor:
        return flat_gradient((weight_n * value_n).sum(), world.student, retain_graph=True)

    assert near(slope(gap_n), 0.0)
    assert near(slope(gap_n.square() / 2), slope(reverse_kl(fixed_teacher, student)))
    assert near(slope((-gap_n).exp() - 1 + gap_n), slope(forward_kl(fixed_teacher, student)))


def test_the_sampled_advantage_is_a_constant(world: EnumerableWorld) -> None:
    """Trap: the gradient flows through the probability of what was sampled and through nothing else."""
    rollouts, ctx, method = world.completions(), context(world), make(OPD, estimator="sampled")
    rows = make_rows(ctx, prepared(method, ctx, rollouts))
    advantage_n = rows.columns[TEACHER_LOGP] - rows.behaviour_logp_n
    assert not advantage_n.requires_grad
    loss = flat_gradient(method.loss(rows, ctx).value_n.sum(), world.student, retain_graph=True)
    policy_gradient = flat_gradient(-(advantage_n * rows.student.logp(rows.action_n)).sum(), world.student)
    assert near(loss, policy_gradient)


def test_stale_samples_are_reweighted_to_the_current_student() -> None:
    """In expectation over the old sampler q_old: - sum_a q(a) (log p(a) - log q_old(a)), in value and gradient."""
    world, sampler = small_language(), PrefixPolicy(generator(7), scale=1.0)
    single = world.completions(horizon=1)  # one decision each: every action after every prompt
    ctx, method = context(world), make(OPD, estimator="sampled")
    stale = replace(single, behaviour_logp_bt=step_logp(sampler, single).detach())
    rows = make_rows(ctx, prepared(method, ctx, stale))
    found = (rows.behaviour_logp_n.exp() * method.loss(rows, ctx).value_n).sum()
    advantage_n = rows.columns[TEACHER_LOGP] - rows.behaviour_logp_n
    expected = -(rows.student.logp(rows.action_n).exp() * advantage_n).sum()
    assert len(rows) == 4 * 3 and near(found, expected)
    assert near(flat_gradient(found, world.student, retain_graph=True), flat_gradient(expected, world.student))


# --------------------------------------------------------------------------------------------- fixed points and masks


@pytest.mark.parametrize(("cls", "params"), [
    (KD, {}), (OPD, {}), (OPD, {"estimator": "sampled"}), (DAgger, {"labels": "soft"}),
    *((GKD, {"divergence": divergence}) for divergence in ("jsd", "forward_kl", "reverse_kl"))])
def test_l9_a_student_that_equals_its_teacher_has_no_loss_and_no_gradient(cls: type[Distiller],
                                                                          params: dict[str, Any]) -> None:
    same = [PrefixPolicy(generator(1), scale=1.0) for _ in range(2)]
    world = EnumerableWorld(*same)
    rollouts, ctx, method = world.completions(), context(world), make(cls, **params)
    loss, found = gradient(method, ctx, prepared(method, ctx, rollouts))
    assert abs(loss) < 1e-12 and all(near(value, 0.0) for value in found.values())


def test_r7_the_reverse_kl_objective_has_the_teacher_as_its_minimum() -> None:
    """With independent states, descending `opd`'s field ends at the teacher, where the sequence KL is zero."""
    world = small_language(tabular=True)
    assert world.teacher is not None
    rollouts, ctx, method = world.completions(), context(world), make(OPD)
    optimizer = torch.optim.LBFGS(world.student.parameters(), lr=0.5, max_iter=300, tolerance_grad=1e-10)
    scored = prepared(method, ctx, rollouts)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = method.loss(make_rows(ctx, scored), ctx).value_n.mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert sequence_kl(rollouts, world.student, world.teacher).item() > 0.1
    optimizer.step(closure)
    assert sequence_kl(rollouts, world.student, world.teacher).item() < 1e-8


@pytest.mark.parametrize(("cls", "params"), [
    (SFT, {}), (KD, {}), (GKD, {}), (OPD, {}), (OPD, {"estimator": "sampled"}), (DAgger, {}),
    (DAgger, {"labels": "soft"})])
def test_l13_padding_and_batch_order_change_nothing(
        cls: type[Distiller], params: dict[str, Any], world: EnumerableWorld) -> None:
    ctx, method = context(world), make(cls, **params)
    scored = prepared(method, ctx, world.completions())
    loss, found = gradient(method, ctx, scored)
    shuffled = scored.select(torch.randperm(scored.n_trajectories, generator=generator(3)))
    for other in (pad_with_garbage(scored, 3), shuffled):
        other_loss, other_found = gradient(method, ctx, other)
        assert other_loss == pytest.approx(loss, abs=1e-12)
        assert all(near(found[name], other_found[name]) for name in found)


def test_every_decision_is_trained_on_its_end_included_and_nothing_else_is() -> None:
    """Traps: pad == eos drops the end token; masks by the widest prompt drop others. Here each state has a weight of
    its own, so that the gradient shows which states were trained on."""
    world = small_language(tabular=True, echo=True)
    rollouts = world.completions()
    is_end_n = rollouts.action_bt[rollouts.mask_bt] == END
    assert int(is_end_n.sum()) == int((~rollouts.truncated_b).sum()) > 0
    assert rollouts.input_bt.shape[1] > HORIZON  # prompts of two tokens: the last step of the others is padding
    _, found = gradient(make(SFT), context(world), rollouts)
    visited = prefix_index(rollouts.input_bt, rollouts.length_b, 3)[rollouts.mask_bt].unique()
    assert found["table"].abs().sum(1).nonzero()[:, 0].tolist() == visited.tolist()


def test_r2_the_minimum_of_the_likelihood_is_the_empirical_frequencies_and_their_conditional_entropy() -> None:
    """On a batch with repeated states, whatever the sampler was."""
    world = small_language(tabular=True)
    ctx = context(world, batch=200)
    rollouts = make(SFT).collect(ctx)
    state_n = prefix_index(rollouts.input_bt, rollouts.length_b, 3)[rollouts.mask_bt]
    action_n = rollouts.action_bt[rollouts.mask_bt]
    counts_sa = torch.zeros(len(world.student.table), 3, dtype=torch.float64)  # type: ignore[arg-type]
    counts_sa.index_put_((state_n, action_n), torch.ones(len(state_n), dtype=torch.float64), accumulate=True)
    visits_s = counts_sa.sum(1, keepdim=True)
    frequency_sa = counts_sa / visits_s.clamp(min=1)
    with torch.no_grad():  # log-frequencies, with an unseen action as unlikely as float64 can say
        world.student.table.copy_(frequency_sa.clamp(min=1e-300).log())  # type: ignore[union-attr]
    loss, found = gradient(make(SFT), ctx, rollouts)
    entropy = -(counts_sa * frequency_sa.clamp(min=1e-300).log()).sum() / visits_s.sum()
    assert loss == pytest.approx(float(entropy), rel=1e-12)
    assert near(found["table"], 0.0)
