"""Which tokens, and how much: the weights library, FiRe-OPD, TIP, TA-OPD and rock tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench import weights
from opdbench.baselines.fire_opd import FiReOPD
from opdbench.baselines.rock_tokens import RockTokens
from opdbench.baselines.ta_opd import TAOPD
from opdbench.baselines.tip import TIP
from opdbench.divergences import reverse_kl
from opdbench.schema.spec import Budget
from tests.enumerable import context, generator, make, near, random_logits
from tests.frontier.exact import rows_of, world_of

MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4, [True] * 4])
GARBAGE = random_logits(4, 4).masked_fill(~MASK, math.nan)


# ------------------------------------------------------------------------------------------------------------- weights


def test_weights_that_average_one_over_the_batch_or_over_each_trajectory() -> None:
    value = GARBAGE.exp()
    found = weights.mean_one(value, MASK)
    assert near(found[MASK].mean(), 1.0) and near(found[~MASK], 0.0)
    assert near(found[MASK] / value[MASK], (found[MASK] / value[MASK])[0])
    own = weights.mean_one(value, MASK, by_trajectory=True)
    assert all(near(own[row][MASK[row]].mean(), 1.0) for row in (0, 1, 3)) and near(own[2], 0.0)
    assert near(weights.mean_one(torch.zeros(4, 4), MASK), 0.0)  # and no division by nothing


@pytest.mark.parametrize("n", [1, 2, 7])
def test_quantiles_are_torchs_and_of_one_value_that_value(n: int) -> None:
    value = random_logits(n)
    for share in (0.0, 0.05, 0.3, 0.95, 1.0):
        assert near(weights.quantile(value, share), torch.quantile(value, share))
    with pytest.raises(ValueError, match="nothing has no quantile"):
        weights.quantile(value[:0], 0.5)


def test_scales_go_from_0_to_1_between_quantiles_and_are_0_without_a_spread() -> None:
    found = weights.within_range(GARBAGE, MASK)
    assert near(found[MASK].min(), 0.0) and near(found[MASK].max(), 1.0) and near(found[~MASK], 0.0)
    clipped = weights.within_range(GARBAGE, MASK, 0.2, 0.8)
    assert (clipped[MASK] == 1).sum() > 1 < (clipped[MASK] == 0).sum()
    assert near(weights.within_range(torch.ones(4, 4), MASK), 0.0)
    rounded = torch.ones(4, 4, dtype=torch.float64).index_fill_(0, torch.tensor([1]), 1 + 2.0**-51)
    assert near(weights.within_range(rounded, MASK), 0.0)
    assert near(weights.within_range(GARBAGE, torch.zeros_like(MASK)), 0.0)


def test_the_top_of_a_batch_and_of_trajectories() -> None:
    everywhere = weights.top_of_batch(GARBAGE, MASK, 1.0)
    assert torch.equal(everywhere, MASK) and torch.equal(weights.top_of_trajectories(GARBAGE, MASK, 1.0), MASK)
    top = weights.top_of_batch(GARBAGE, MASK, 0.3)  # of eight
    assert top.sum() == 3 and GARBAGE[top].min() > GARBAGE[MASK & ~top].max()
    each = weights.top_of_trajectories(GARBAGE, MASK, 0.5)
    assert each.sum(1).tolist() == [1, 1, 0, 2] and not (each & ~MASK).any()
    for row in (0, 3):
        assert GARBAGE[row][each[row]].min() > GARBAGE[row][MASK[row] & ~each[row]].max()
    none = torch.zeros_like(MASK)
    assert not weights.top_of_batch(GARBAGE, none, 0.5).any()


def test_shares_within_groups_add_up_to_one_and_do_not_see_a_constant() -> None:
    group, logit = torch.tensor([7, 3, 7, 3, 9]), random_logits(5)
    shares = weights.shares_within(logit, group)
    assert near(shares[[0, 2]].sum(), 1.0) and near(shares[[1, 3]].sum(), 1.0) and near(shares[4], 1.0)
    assert near(shares, weights.shares_within(logit + torch.tensor([5.0, -2.0, 5.0, -2.0, 100.0]), group))
    assert near(shares[0] / shares[2], (logit[0] - logit[2]).exp())


def test_rows_that_are_taken_away_are_read_and_not_learnt_from() -> None:
    rollouts = world_of().completions()
    keep = torch.rand(rollouts.mask_bt.shape, generator=generator(3)) < 0.5
    less = weights.only(rollouts, keep)
    assert torch.equal(less.mask_bt, rollouts.mask_bt & keep) and torch.equal(less.input_bt, rollouts.input_bt)


# ------------------------------------------------------------------------------------------------------------ fire-opd


def fire(**params: Any) -> tuple[Tensor, Tensor, dict[str, float]]:
    """(weights of the answers that are kept, those of all answers, notes)."""
    world = world_of(scale=2.0)
    ctx, rollouts = context(world), world.completions()
    kept = rows_of(make(FiReOPD, **params), ctx, rollouts)
    return kept.columns["weight"], rows_of(make(FiReOPD, **{**params, "percentile": 0.0}), ctx,
                                           rollouts).columns["weight"], ctx.notes


def test_fires_weights_average_one_before_the_filter_and_lie_within_a_factor_of_four() -> None:
    kept, everything, _ = fire()
    assert near(everything.mean(), 1.0) and not near(kept.mean(), 1.0, 1e-3) and len(kept) < len(everything)
    assert 1.5 < everything.max() / everything.min() <= 4


def test_fires_text_preset_averages_one_in_every_answer() -> None:
    assert dict(FiReOPD.presets["text"]) == {"normalise": "answer"}
    world = world_of(scale=2.0)
    ctx, method = context(world), make(FiReOPD, normalise="answer", percentile=0.0)
    rollouts = world.completions()
    prepared = method.prepare(ctx.score(rollouts, method.requires()), ctx)
    mean_b = prepared.columns["weight"].sum(1) / rollouts.mask_bt.sum(1)
    assert near(mean_b, 1.0)


def test_fire_drops_the_fifth_of_answers_that_the_teacher_finds_least_likely() -> None:
    world = world_of(scale=2.0)
    ctx, method, rollouts = context(world), make(FiReOPD), world.completions()
    prepared = method.prepare(ctx.score(rollouts, method.requires()), ctx)
    kept_b = prepared.mask_bt.any(1)
    rows = rows_of(make(FiReOPD, percentile=0.0), ctx, rollouts)
    mean_b = torch.stack([part.mean() for part in rows.teacher_logp_n.split(rollouts.mask_bt.sum(1).tolist())])
    assert float(kept_b.double().mean()) == pytest.approx(0.8, abs=0.03)
    assert mean_b[kept_b].min() > mean_b[~kept_b].max()


# ----------------------------------------------------------------------------------------------------------------- tip


def test_tips_score_is_a_soft_or_of_its_two_parts() -> None:
    method, ctx = make(TIP), context(world_of())
    assert isinstance(method, TIP)
    entropy, distance = random_logits(4, 4, seed=1).exp(), random_logits(4, 4, seed=2).exp()
    score = method.score(entropy, distance, MASK, ctx)
    scaled = [weights.within_range(value, MASK) for value in (entropy, distance)]
    assert (score >= torch.maximum(*scaled) - 1e-12)[MASK].all() and score[MASK].max() <= 1
    by_entropy = method.score(entropy, torch.full((4, 4), 0.7), MASK, ctx)  # no spread: entropy alone ranks
    assert near(by_entropy[MASK], scaled[0][MASK]) and by_entropy.isfinite().all()


def test_tip_keeps_the_top_half_of_every_answer() -> None:
    world = world_of(scale=2.0)
    ctx, method, rollouts = context(world), make(TIP), world.completions()
    prepared = method.prepare(ctx.score(rollouts, method.requires()), ctx)
    before, after = rollouts.mask_bt.sum(1), prepared.mask_bt.sum(1)
    assert torch.equal(after, (before // 2).clamp(min=1)) and ctx.notes["tokens_kept"] < 0.8


def test_tips_entropy_baseline_draws_in_proportion_to_the_entropy() -> None:
    method = make(TIP, select="entropy")
    assert isinstance(method, TIP)
    entropy, mask = torch.tensor([[3.0, 1.0]]).expand(4000, 2).double(), torch.ones(4000, 2, dtype=torch.bool)
    score = method.score(entropy, entropy, mask, context(world_of()))
    first = float((score[:, 0] > score[:, 1]).double().mean())
    assert abs(first - 0.75) < 4 * math.sqrt(0.75 * 0.25 / 4000)


# -------------------------------------------------------------------------------------------------------------- ta-opd


def test_teachability_is_a_probability_and_zero_where_the_student_has_not_what_the_teacher_wants() -> None:
    world = world_of(scale=3.0)
    ctx, method, rollouts = context(world), make(TAOPD, top_k=1, share=0.25), world.completions()
    assert isinstance(method, TAOPD)
    scored = ctx.score(rollouts, method.requires())
    distance_bt, capture_bt = ctx.per_row(scored, method.figures).unbind(-1)
    mask_bt = rollouts.mask_bt
    assert (capture_bt[mask_bt] >= 0).all() and (capture_bt[mask_bt] <= 1).all()
    kept_bt = method.prepare(scored, ctx).mask_bt
    assert int(kept_bt.sum()) == math.ceil(0.25 * rollouts.n_rows)
    low = capture_bt <= weights.quantile(capture_bt[mask_bt], 0.05)
    assert (low & mask_bt).any() and not (kept_bt & low).any()
    score_bt = torch.ones_like(distance_bt)
    for part_bt in (distance_bt, capture_bt):
        start, end = (torch.quantile(part_bt[mask_bt], share) for share in (0.05, 0.95))
        score_bt = score_bt * ((part_bt - start) / (end - start)).clamp(0, 1)
    assert score_bt[kept_bt].min() >= score_bt[mask_bt & ~kept_bt].max()


def test_ta_opd_survives_a_batch_without_any_spread() -> None:
    world = world_of(teacher=1)  # all distances are zero
    rows = rows_of(make(TAOPD), context(world), world.completions())
    assert len(rows) >= 1 and rows.teacher_logp_n.isfinite().all()


# --------------------------------------------------------------------------------------------------------- rock tokens


def test_rock_score_is_mean_divergence_times_frequency_and_freezes_the_top_types() -> None:
    world = world_of()
    rollouts, ctx = world.completions(), context(world, budget=Budget(steps=100))
    method = make(RockTokens, measure=0.5, share=0.3)
    assert isinstance(method, RockTokens)
    rows = rows_of(method, ctx, rollouts)
    assert len(rows) == rollouts.n_rows  # while it measures nothing is frozen
    distance_n = reverse_kl(rows.teacher, rows.student).detach()
    by_hand = torch.stack([distance_n[rows.action_n == v].mean() * (rows.action_n == v).sum() for v in range(3)])
    assert method.score_v is not None and near(method.score_v, by_hand)
    ctx.ledger.steps = 60
    after = rows_of(method, ctx, rollouts)
    rock = int(by_hand.argmax())
    assert not (after.action_n == rock).any() and len(after) == int((rows.action_n != rock).sum())
    assert method.score_v is not None and near(method.score_v, by_hand)  # fixed from then on
    restored = make(RockTokens, measure=0.5, share=0.3)
    restored.load_state_dict(method.state_dict())
    assert len(rows_of(restored, ctx, rollouts)) == len(after)


def test_rock_share_is_the_papers_hundred_types_of_its_vocabulary() -> None:
    method = make(RockTokens)
    assert isinstance(method, RockTokens)
    for size, number in ((151_936, 100), (40, 1)):
        method.score_v = torch.arange(1.0, size + 1)
        assert int(method.rocks().sum()) == number
