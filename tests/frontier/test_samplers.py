"""Who writes: TRB's blend, SKD's interleaving, TrOPD's prefix and coin, Draft-OPD's blocks, a nucleus."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from opdbench.actors import ACTION, STEP, Handover, Student, Teacher, nucleus, uniform_table
from opdbench.baselines.draft_opd import DraftOPD, places_after_rejection
from opdbench.baselines.revisiting_opd import RevisitingOPD
from opdbench.baselines.skd import SKD, Interleaved
from opdbench.baselines.trb import TRB, blended, trusted
from opdbench.baselines.tropd import TrOPD
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.rollouts import Source
from opdbench.schema.spec import Budget
from opdbench.support import top_k_forward_kl
from tests.enumerable import context, distributions, generator, leaf, make, near, random_logits
from tests.frontier.exact import loss_of, rows_of, world_of

N, A = 40, 12
LOGQ, LOGP = (random_logits(N, A, seed=seed).log_softmax(-1) for seed in (1, 2))
FULL_KL = (LOGP.exp() * (LOGP - LOGQ)).sum(-1)


def beta(value: float) -> Tensor:
    return torch.full((N, 1), value, dtype=torch.float64)


def distance(logmu: Tensor) -> Tensor:
    return (logmu.exp() * (logmu - LOGQ)).sum(-1)


# ----------------------------------------------------------------------------------------------------------------- trb


def test_trbs_blend_is_the_student_at_0_and_the_teacher_at_1() -> None:
    assert near(blended(LOGQ, LOGP, beta(0.0)), LOGQ) and near(blended(LOGQ, LOGP, beta(1.0)), LOGP)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_trbs_distance_grows_by_beta_times_the_variance_of_the_log_ratio(at: float) -> None:
    ratio, mu, step = LOGP - LOGQ, blended(LOGQ, LOGP, beta(at)).exp(), 1e-5
    variance = (mu * ratio.square()).sum(-1) - (mu * ratio).sum(-1).square()
    after, before = (distance(blended(LOGQ, LOGP, beta(at + sign * step))) for sign in (1, -1))
    slope = (after - before) / (2 * step)
    assert near(slope, at * variance, 1e-7) and (variance > 0).all()


def test_trb_goes_as_far_as_the_trust_region_and_no_further() -> None:
    assert near(trusted(LOGQ, LOGP, 0.0), LOGQ, 1e-6)
    radius = 1.001 * float(FULL_KL.median())
    distance_n = distance(trusted(LOGQ, LOGP, radius))
    far = radius < FULL_KL
    assert near(distance_n[far], radius, 1e-9) and (distance_n <= radius).all() and 5 < int(far.sum()) < N
    assert near(trusted(LOGQ, LOGP, radius)[~far], LOGP[~far]) and near(trusted(LOGQ, LOGP, 1e3), LOGP)


def test_trb_can_blend_with_a_teacher_that_rules_tokens_out() -> None:
    certain = LOGP.masked_fill(torch.arange(A) > 3, -math.inf)
    blend = trusted(LOGQ, certain, 0.05)
    assert blend.isfinite().all() and near(blend.exp().sum(-1), 1.0) and (distance(blend) <= 0.05).all()
    assert near(trusted(LOGQ, certain, 1e5), certain.log_softmax(-1).clamp(min=-1e4))


def test_trbs_region_shrinks_to_the_student_alone() -> None:
    method = make(TRB, radius=0.5, steps=10)
    teacher_share = []
    for step in (0, 5, 9, 10, 30):
        world = world_of()
        ctx = context(world, batch=64)
        ctx.ledger.steps = step
        rollouts = method.collect(ctx)
        _, student = distributions(world, rollouts)
        logq_n = student.logp(rollouts.action_bt[rollouts.mask_bt])
        teacher_share.append(float((rollouts.behaviour_logp_bt[rollouts.mask_bt] - logq_n).abs().mean().detach()))
        assert ("teacher_rollout" in ctx.ledger.flops) == (step < 10)
    assert teacher_share[0] > teacher_share[1] > teacher_share[2] > 1e-2 and max(teacher_share[3:]) < 1e-5


# ----------------------------------------------------------------------------------------------------------------- skd


def interleaved(k: int, n: int = 4000) -> tuple[Tensor, Tensor, Tensor]:
    """(actions, log-probabilities, sources) of one state, many times."""
    draws = uniform_table(n, 1, generator(5))[0]
    return Interleaved(k).act(LOGQ[:1].expand(n, -1), LOGP[:1].expand(n, -1), draws)


@pytest.mark.parametrize("k", [1, 3, 6])
def test_skd_draws_from_the_law_that_it_records_and_only_the_teacher_leaves_its_top(k: int) -> None:
    action_b, logp_b, source_b = interleaved(k)
    q, p = LOGQ[0].exp(), LOGP[0].exp()
    inside = torch.zeros(A).scatter(0, p.topk(k).indices, 1.0)
    law = q * inside + (1 - (q * inside).sum()) * p
    assert near(law.sum(), 1.0) and near(logp_b.double(), law.log()[action_b], 1e-5)
    for action in range(A):
        assert binomtest(int((action_b == action).sum()), 4000, float(law[action])).pvalue > 1e-4
    by_student = source_b == Source.STUDENT
    assert (inside[action_b[by_student]] == 1).all()
    assert binomtest(int(by_student.sum()), 4000, float((q * inside).sum())).pvalue > 1e-4


def test_skd_at_everything_is_on_policy_draw_by_draw_and_at_1_never_without_the_teacher() -> None:
    worlds = [world_of(), world_of()]
    rollouts = [make(SKD, top_k=k).collect(context(world, batch=64)) for k, world in zip((50, 50), worlds, strict=True)]
    own = context(world_of(), batch=64).rollout(Student())
    assert torch.equal(rollouts[0].action_bt, own.action_bt) and rollouts[0].count(Source.TEACHER) == 0
    action_b, _, source_b = interleaved(1)
    assert (action_b[source_b == Source.STUDENT] == LOGP[0].argmax()).all()


# --------------------------------------------------------------------------------------------------------------- tropd


def test_tropd_accepts_a_share_of_one_minus_total_variation() -> None:
    """Exactly: sum_v q(v) min(1, p(v) / q(v))."""
    p, q = LOGP.exp(), LOGQ.exp()
    assert near((q * (LOGP - LOGQ).exp().clamp(max=1)).sum(-1), 1 - (p - q).abs().sum(-1) / 2)


def coins(method: TrOPD, coin: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, accepted, log u) in every row of all completions, with this coin or its own."""
    world = world_of()
    rows = rows_of(method, context(world), world.completions())
    if coin is not None:
        rows = replace(rows, columns={**rows.columns, "coin": torch.full_like(rows.columns["coin"], coin)})
    loss = method.loss(rows, context(world))
    return loss.value_n, loss.scalars["accepted"], rows.teacher_logp_n - rows.behaviour_logp_n


def tropd(**params: object) -> TrOPD:
    method = make(TrOPD, **params)
    assert isinstance(method, TrOPD)
    return method


def test_tropd_always_accepts_what_the_teacher_likes_more_and_mixes_its_two_losses_by_the_coin() -> None:
    value_n, accepted_n, log_u_n = coins(tropd(), None)
    assert (accepted_n[log_u_n >= 0] == 1).all() and 0 < int(accepted_n[log_u_n < 0].sum()) < int((log_u_n < 0).sum())
    all_accepted, all_rejected = coins(tropd(), 0.0)[0], coins(tropd(), 1e9)[0]
    assert near(value_n, torch.where(accepted_n == 1, all_accepted, all_rejected))
    world = world_of()
    teacher, student = distributions(world, world.completions())
    assert near(all_rejected, top_k_forward_kl(teacher, student, 64))


def test_tropds_code_form_has_the_sign_that_lowers_the_reverse_kl() -> None:
    """A thirty-way choice: on rejected tokens -F is an advantage; flipped, it raises the divergence."""
    p, logits = random_logits(30, seed=3).softmax(0), leaf(30, seed=4)
    q = logits.softmax(0)
    rejected = (q * (1 - (p / q).clamp(max=1))).detach()  # probability that each token is written and rejected
    distance = (p * (p / q).log()).sum().detach()
    divergence = (q * (q / p).log()).sum()
    push = torch.autograd.grad((rejected * distance * q.log()).sum(), logits, retain_graph=True)[0]  # of -(-F) log q
    slope = torch.autograd.grad(divergence, logits)[0]
    assert float(-push @ slope) < 0 < float(push @ slope)  # descending the loss descends the divergence

    method = tropd(form="advantages")
    world = world_of()
    rows = rows_of(method, context(world), world.completions())
    rows = replace(rows, columns={**rows.columns, "coin": torch.full_like(rows.columns["coin"], 1e9)})
    value_n, logq_n = method.loss(rows, context(world)).value_n, rows.student.logp(rows.action_n)
    by_hand = top_k_forward_kl(rows.teacher, rows.student, 64).detach() * logq_n
    assert near(value_n, by_hand) and (value_n <= 0).all()


def test_tropds_prefix_shrinks_from_a_usual_reply_to_nothing_and_is_the_teachers() -> None:
    method, lengths = tropd(), []
    for step in range(11):
        world = world_of(echo=False)
        ctx = context(world, budget=Budget(steps=10), batch=32)
        ctx.ledger.steps = step
        rollouts = method.collect(ctx)
        first = int(ctx.notes["prefix"])
        place_bt = rollouts.mask_bt.cumsum(1) - 1
        by_teacher = rollouts.source_bt == Source.TEACHER
        assert torch.equal(by_teacher, rollouts.mask_bt & (place_bt < first))
        lengths.append(first)
    assert lengths == sorted(lengths, reverse=True) and lengths[0] in (1, 2) and lengths[-1] == 0
    restored = tropd()
    restored.load_state_dict(method.state_dict())
    assert restored.reply_length == method.reply_length > 1


def test_tropds_prefix_counts_for_a_thousandth() -> None:
    world = world_of()
    ctx, method = context(world), tropd()
    rollouts = world.completions()
    theirs = replace(rollouts, source_bt=torch.where(rollouts.mask_bt, int(Source.TEACHER), 0).to(torch.uint8))
    teacher, student = distributions(world, rollouts)
    assert near(loss_of(method, ctx, theirs).value_n, 1e-3 * top_k_forward_kl(teacher, student, 64))


def test_a_handover_has_the_draws_of_whoever_acts() -> None:
    table = uniform_table(N, 6, generator(1))
    for step in range(6):
        found = Handover(3).act(LOGQ, LOGP, table[step])
        alone = (Teacher() if step < 3 else Student()).act(LOGQ, LOGP, table[step])
        assert all(torch.equal(*pair) for pair in zip(found, alone, strict=True))
        assert (table[step, :, STEP] == step).all()
    assert not Handover(0).uses_teacher


# --------------------------------------------------------------------------------------------------- nucleus sampling


def test_a_nucleus_is_the_smallest_set_of_likely_actions_that_reaches_its_probability() -> None:
    kept = nucleus(LOGQ, 0.9) > -math.inf
    for row, p in zip(kept, LOGQ.exp(), strict=True):
        inside = p[row]
        assert inside.sum() >= 0.9 > inside.sum() - inside.min() and inside.min() >= p[~row].max()
    assert torch.equal(nucleus(LOGQ, 1.0), LOGQ) and (nucleus(LOGQ, 1e-9) > -math.inf).sum() == N


def test_revisiting_samples_from_the_nucleus_and_records_its_law() -> None:
    world = world_of(scale=2.0)
    rollouts = make(RevisitingOPD, top_p=0.6).collect(context(world, batch=64))
    _, student = distributions(world, rollouts)
    logits = nucleus(student.logits_na.detach(), 0.6)
    expected_n = logits.log_softmax(-1).gather(-1, rollouts.action_bt[rollouts.mask_bt][:, None])[:, 0]
    assert expected_n.isfinite().all() and near(rollouts.behaviour_logp_bt[rollouts.mask_bt].double(), expected_n, 1e-5)
    plain, cut = (Student(top_p=top_p).act(LOGQ, None, uniform_table(N, 1, generator(2))[0])
                  for top_p in (1.0, 1 - 1e-12))
    assert torch.equal(plain.action_b, cut.action_b) and uniform_table(1, 1, generator(0))[0, 0, ACTION] < 1


# ----------------------------------------------------------------------------------------------------------- draft-opd


def test_places_after_a_rejection_count_within_blocks_of_decisions() -> None:
    mask = torch.tensor([[False, True, True, True, False, True, True, True, True]])
    passed = torch.tensor([[False, True, False, True, True, True, True, False, False]])
    assert places_after_rejection(passed, mask, 4).tolist() == [[-1, -1, 0, 1, -1, 2, -1, 0, 1]]
    assert places_after_rejection(passed, mask, 2).tolist() == [[-1, -1, 0, -1, -1, -1, -1, 0, 0]]


def weighed(**params: object) -> tuple[Tensor, Tensor, Tensor]:
    """(weights, accepted, losses) of all completions."""
    world = world_of()
    rows = rows_of(make(DraftOPD, **params), context(world), world.completions())
    value_n = make(DraftOPD, **params).loss(rows, context(world)).value_n
    return rows.columns["weight"], rows.columns["accepted"], value_n


def test_drafts_loss_is_the_mean_of_two_weighted_means() -> None:
    world = world_of()
    teacher, student = distributions(world, world.completions())
    weight_n, accepted_n, value_n = weighed(accepted=3.0, rejected=1.0)
    covering = forward_kl(teacher.detach(), student)[accepted_n].mean()
    raw_n = weight_n[~accepted_n]
    mending = (raw_n * reverse_kl(teacher.detach(), student)[~accepted_n]).sum() / raw_n.sum()
    assert near(value_n.mean(), (3 * covering + mending) / 4, 1e-10)
    assert near(weight_n.mean(), 1.0) and near(weight_n[accepted_n].std(), 0.0)
    ratios = (raw_n / raw_n.max()).log() / math.log(0.8)
    assert near(ratios, ratios.round(), 1e-9) and ratios.max() >= 1


def test_draft_with_gamma_0_is_the_first_rejected_token_of_a_block_alone() -> None:
    weight_n, accepted_n, _ = weighed(gamma=0.0)
    _, accepted_too, _ = weighed(gamma=0.8)
    assert torch.equal(accepted_n, accepted_too)
    assert 0 < int((weight_n[~accepted_n] > 0).sum()) < int((~accepted_n).sum())


def test_draft_that_is_all_accepted_is_forward_kl() -> None:
    twins = world_of(teacher=1)
    rows = rows_of(make(DraftOPD), context(twins), twins.completions())
    assert rows.columns["accepted"].all() and near(rows.columns["weight"], 1.0)
