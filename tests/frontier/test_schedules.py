"""Targets and curricula that move: TAID's t, KAT's threshold, ESR's length."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from opdbench.baselines.esr import ESR
from opdbench.baselines.kat import KAT
from opdbench.baselines.opd import OPD
from opdbench.baselines.taid import TAID
from opdbench.loop import Trainer
from opdbench.schema.spec import Budget
from opdbench.weights import before_cut, window_means
from tests.enumerable import context, flat_gradient, make, near, random_logits
from tests.frontier.exact import loss_of, world_of

# ---------------------------------------------------------------------------------------------------------------- taid


def test_taid_at_0_targets_the_student_itself() -> None:
    world = world_of()
    value_n = loss_of(make(TAID, t_start=0.0), context(world), world.completions()).value_n
    assert near(value_n, 0.0) and near(flat_gradient(value_n.sum(), world.student), 0.0)


def followed(losses: list[float], progress: list[float], **params: Any) -> list[float]:
    """t after each of the steps whose losses were these."""
    method, ctx = make(TAID, **params), context(world_of(), budget=Budget(steps=1000))
    assert isinstance(method, TAID)
    found = []
    for loss, share in zip(losses, progress, strict=True):
        ctx.ledger.steps, method.measured = round(1000 * share), loss
        method.after_step(ctx)
        found.append(method.t)
    return found


def test_taids_t_follows_its_formula_and_the_first_step_only_remembers_the_loss() -> None:
    found = followed([2.0, 1.5, 1.6], [0.0, 0.0, 0.0], alpha=0.1, beta=0.5)
    momentum, t = 0.0, 0.4
    assert found[0] == t
    for (before, now), after in zip([(2.0, 1.5), (1.5, 1.6)], found[1:], strict=True):
        momentum = 0.5 * momentum + 0.5 * (before - now) / before
        t = t + 0.1 / (1 + math.exp(-momentum)) * (1 - t)
        assert after == pytest.approx(t, rel=1e-12)


def test_taids_t_never_falls_is_at_least_linear_and_stops_at_its_end() -> None:
    losses = random_logits(50).exp().tolist()
    found = followed(losses, [step / 49 for step in range(50)], t_end=0.9)
    assert found == sorted(found) and found[-1] == 0.9
    assert all(t >= 0.4 + 0.5 * step / 49 - 1e-3 for step, t in enumerate(found) if step)


# ----------------------------------------------------------------------------------------------------------------- esr


def test_esr_without_a_limit_is_opd_step_by_step_and_with_one_its_first_tokens() -> None:
    def weights(method: Any) -> list[torch.Tensor]:
        world = world_of()
        trainer = Trainer(method, context(world, budget=Budget(steps=3)))
        for _ in range(3):
            trainer.step()
        return [weight.detach() for weight in world.student.parameters()]

    assert all(torch.equal(*pair) for pair in zip(weights(make(ESR)), weights(make(OPD)), strict=True))
    world = world_of(echo=False)
    short, long = (make(ESR, tokens=tokens).collect(context(world_of(echo=False))) for tokens in (2, 3))
    assert int(short.mask_bt.sum(1).max()) == 2
    width = short.action_bt.shape[1]
    assert torch.equal(short.action_bt[short.mask_bt], long.action_bt[:, :width][short.mask_bt])
    losses = [loss_of(make(ESR, tokens=tokens), context(world), rollouts).value_n.sum()
              for tokens, rollouts in ((2, short), (3, long))]
    extra = replace(long, source_bt=long.source_bt.clone())
    extra.source_bt[:, :width][short.mask_bt] = 0
    assert near(losses[1] - losses[0], loss_of(make(ESR), context(world), extra).value_n.sum(), 1e-10)


# ----------------------------------------------------------------------------------------------------------------- kat


def test_window_means_are_over_the_last_decisions_only() -> None:
    mask = torch.tensor([[False, True, True, False, True, True], [True, True, False, False, False, False]])
    value = torch.tensor([[9.0, 1.0, 2.0, 9.0, 4.0, 8.0], [1.0, 2.0, 9.0, 9.0, 9.0, 9.0]])
    found = window_means(value, mask, 3)
    assert near(found[0, [4, 5]], torch.tensor([7 / 3, 14 / 3], dtype=torch.float64)) and found.isinf().sum() == 10


def test_a_cut_is_after_the_first_of_enough_low_windows_in_a_row() -> None:
    mask = torch.ones(3, 7, dtype=torch.bool)
    low = torch.tensor([[0, 1, 0, 1, 1, 1, 0], [1, 1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1, 1]]).bool()
    assert before_cut(low, mask, 3).sum(1).tolist() == [4, 7, 5]
    assert before_cut(low, mask, 1).sum(1).tolist() == [2, 1, 5]


def test_cutting_afterwards_keeps_what_stopping_in_time_would_have() -> None:
    """The decision to stop at a step depends on nothing later."""
    value, mask = random_logits(40, 30).abs(), torch.ones(40, 30, dtype=torch.bool)
    mask[:, 11:13] = False
    whole = before_cut(window_means(value, mask, 4) < 0.7, mask, 2)
    assert 0 < int((mask & ~whole).any(1).sum()) < 40
    for row in range(40):
        for seen in range(1, 31):
            part = (slice(row, row + 1), slice(0, seen))
            now = before_cut(window_means(value[part], mask[part], 4) < 0.7, mask[part], 2)
            if (mask[part] & ~now).any():
                break
        assert torch.equal(now[0], whole[row, :seen])
        assert seen == 30 or not whole[row, seen:].any()


def test_kats_share_of_cut_answers_is_about_eta_once_its_memory_is_full() -> None:
    """So the threshold is the eta quantile of the lowest windows, and not that of 1 - eta."""
    world = world_of(echo=False)
    method = make(KAT, window=1, consecutive=1, eta=0.3, after_answers=300, after_steps=0, memory=1000, top_p=1.0)
    ctx, cut, written = context(world, batch=100), 0.0, 0
    for ctx.ledger.steps in range(14):
        ctx.begin_step()
        rollouts = method.collect(ctx)
        kept = method.prepare(ctx.score(rollouts, method.requires()), ctx)
        assert (kept.mask_bt.sum(1) <= rollouts.mask_bt.sum(1)).all()
        if "threshold" in ctx.notes:
            cut, written = cut + ctx.notes["cut_answers"], written + 100
        else:
            assert torch.equal(kept.mask_bt, rollouts.mask_bt) and ctx.step < 3
    assert isinstance(method, KAT) and len(method.lowest) == 1000 and written == 1100
    assert 0.1 < cut / written < 0.35  # ties and last tokens count as low, and are not cut


def test_kat_remembers_over_a_resume_and_forgets_the_oldest() -> None:
    method = make(KAT, window=1, memory=10)
    world = world_of()
    ctx = context(world)
    method.prepare(ctx.score(world.completions(), method.requires()), ctx)
    restored = make(KAT, window=1, memory=10)
    restored.load_state_dict(method.state_dict())
    assert isinstance(restored, KAT) and isinstance(method, KAT)
    assert restored.lowest == method.lowest and len(method.lowest) == 10
