"""DPCA's chunks, OPRD's states, OPDVR's signs, and the methods whose constants are ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench import registry
from opdbench.baselines.adwin import ADWIN
from opdbench.baselines.aopd import AOPD
from opdbench.baselines.dispo import DISPO
from opdbench.baselines.dpca import DPCA, shared_out
from opdbench.baselines.grpo import GRPO
from opdbench.baselines.lgr import LGR, standardised
from opdbench.baselines.opd import OPD
from opdbench.baselines.opdvr import OPDVR
from opdbench.baselines.oprd import OPRD, distance, fitted, proportional
from opdbench.baselines.typhoon_s import TyphoonS
from opdbench.baselines.vold import VOLD
from opdbench.conformance.enumerable import EnumerableWorld, PrefixPolicy
from opdbench.conformance.harness import make_rows
from opdbench.context import Context
from opdbench.distiller import Distiller, Needs
from opdbench.divergences import forward_kl
from opdbench.errors import UserError
from opdbench.lm.generate import last_decision
from opdbench.lm.remote_reference import _check_needs
from opdbench.loop import Trainer
from opdbench.pieces import IMPOSSIBLE, PIECE_HEAD, PIECE_START, PIECE_TOKENS, TEACHER_REST_LOGP
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.schema.spec import Budget, Training
from tests.enumerable import context, flat_gradient, generator, make, near, prepared, random_logits, small_language


def twins() -> EnumerableWorld:
    return EnumerableWorld(*(PrefixPolicy(generator(1), scale=1.0) for _ in range(2)))


def batch(method: Distiller, world: EnumerableWorld | None = None, **settings: Any) -> tuple[Context, Rows]:
    ctx = context(world or small_language(), **settings)
    ctx.begin_step()
    needs = method.asks(ctx)
    return ctx, make_rows(ctx, method.prepare(ctx.score(method.collect(ctx), needs), ctx))


def rewarded(rollouts: Rollouts, outcome_b: list[float]) -> Rollouts:
    return replace(rollouts, reward_bt=last_decision(rollouts.source_bt) * torch.tensor(outcome_b)[:, None])


# ---------------------------------------------------------------------------------------------------------------- dpca

CHUNK = torch.tensor([0, 1, 1, 2, 2, 2])


def test_dpcas_chunks_sum_to_the_difference_and_one_to_one_is_the_log_ratio() -> None:
    logq_n, teacher_c = -random_logits(6, seed=1).abs(), -random_logits(3, seed=2).abs()
    found_n = shared_out(logq_n, CHUNK, teacher_c)
    assert near(torch.zeros(3).double().index_add(0, CHUNK, found_n),
                teacher_c - torch.zeros(3).double().index_add(0, CHUNK, logq_n))
    assert near(found_n[0], teacher_c[0] - logq_n[0])
    each = torch.arange(6)
    logp_n = -random_logits(6, seed=3).abs()
    assert near(shared_out(logq_n, each, logp_n), logp_n - logq_n)
    share = found_n[1:3] / found_n[1:3].sum()
    assert near(share, logq_n[1:3] / logq_n[1:3].sum())


def test_dpca_shares_evenly_what_the_student_is_certain_of() -> None:
    found_n = shared_out(torch.zeros(6).double(), CHUNK, torch.tensor([-1.0, -2.0, -3.0]).double())
    assert near(found_n, -1.0)


def columns(tokens: list[int], rest: list[float]) -> dict[str, Tensor]:
    """Three chunks of 1, 2 and 3 rows, headed by their first; of so many teacher tokens."""
    start = torch.tensor([True, True, False, True, False, False])
    per_row = [[tokens[0], tokens[1], 0, tokens[2], 0, 0], [rest[0], rest[1], 0.0, rest[2], 0.0, 0.0]]
    return {PIECE_HEAD: start, PIECE_START: start, PIECE_TOKENS: torch.tensor(per_row[0]),
            TEACHER_REST_LOGP: torch.tensor(per_row[1], dtype=torch.float64)}


def test_dpca_leaves_out_long_chunks_and_what_the_teacher_cannot_write() -> None:
    logq_n, logp_n = -random_logits(6, seed=1).abs(), -random_logits(6, seed=2).abs()
    method = make(DPCA, longest=2, clip=1e9)
    assert isinstance(method, DPCA)
    found_n, compared_n = method.advantage(logq_n, logp_n, columns([1, 2, 1], [0.0, -0.5, 0.0]))
    assert compared_n.tolist() == [True, True, True, False, False, False] and near(found_n[3:], 0.0)
    assert near(found_n[1:3].sum(), logp_n[1] - 0.5 - logq_n[1:3].sum())
    _, compared_n = method.advantage(logq_n, logp_n, columns([3, 2, 1], [0.0, IMPOSSIBLE, 0.0]))
    assert not compared_n.any()


def test_dpca_with_one_tokenizer_is_opd() -> None:
    values = [batch(make(cls, **params))[1] for cls, params in ((DPCA, {}), (OPD, {"estimator": "sampled"}))]
    assert near(values[0].columns["advantage"], values[1].columns["advantage"], 1e-6)  # behaviour is float32


# ---------------------------------------------------------------------------------------------------------------- oprd


def test_oprd_of_identical_models_is_nothing_and_directions_are_bounded() -> None:
    method = make(OPRD)
    ctx, rows = batch(method, twins())
    assert near(method.loss(rows, ctx).value_n.detach(), 0.0)
    teacher, student = random_logits(20, 3, 5, seed=1), random_logits(20, 3, 5, seed=2)
    value_n = distance(teacher, student, normalise=True)
    assert bool((value_n <= 4 / 5).all()) and near(distance(teacher, -teacher, normalise=True), 4 / 5)
    assert near(value_n, distance(7 * teacher, 0.1 * student, normalise=True))
    assert not near(distance(teacher, student, normalise=False), distance(7 * teacher, student, normalise=False), 0.1)


def test_an_orthogonal_projection_of_full_rank_changes_no_distance() -> None:
    teacher, student = random_logits(40, 2, 5, seed=1), random_logits(40, 2, 5, seed=2)
    p_lhr = fitted(teacher, student, 5)["teacher"]
    sides = [torch.einsum("nlh,lhr->nlr", side, p_lhr) for side in (teacher, student)]
    for normalise in (True, False):
        assert near(distance(*sides, normalise=normalise), distance(teacher, student, normalise=normalise))


def test_layers_are_mapped_in_proportion() -> None:
    assert proportional(2, 3) == [1, 2] and proportional(3, 3) == [0, 1, 2] and proportional(3, 2) == [0, 0, 1]
    assert proportional(4, 36) == [8, 17, 26, 35]


def test_models_of_different_widths_are_projected_once_and_it_resumes() -> None:
    world = EnumerableWorld(PrefixPolicy(generator(1), scale=1.0, n_features=4),
                            PrefixPolicy(generator(2), scale=1.0, n_features=6))
    method = make(OPRD, rank=2)
    trainer = Trainer(method, context(world))
    losses = [trainer.step()["loss"] for _ in range(20)]
    assert isinstance(method, OPRD) and losses[-1] < losses[0]
    assert {side: tuple(value.shape) for side, value in method.projections.items()} == {
        "teacher": (1, 6, 2), "student": (1, 4, 2)}
    other = make(OPRD, rank=2)
    other.load_state_dict(method.state_dict())
    assert isinstance(other, OPRD) and torch.equal(other.projections["teacher"], method.projections["teacher"])


def test_only_the_last_decisions_are_compared() -> None:
    method = make(OPRD, last=1)
    ctx = context(small_language())
    rollouts = ctx.score(method.collect(ctx), Needs.HIDDEN)
    kept = method.prepare(rollouts, ctx).mask_bt
    assert kept.sum(1).tolist() == [1] * 8
    assert torch.equal(kept.int().argmax(1), (rollouts.mask_bt.int() * torch.arange(kept.shape[1])).argmax(1))


# --------------------------------------------------------------------------------------------------------------- opdvr


def test_opdvrs_sign_never_contradicts_the_verdict() -> None:
    method = make(OPDVR)
    ctx = context(small_language(), batch=64)
    rollouts = ctx.score(method.collect(ctx), Needs.SAMPLED)
    rows = make_rows(ctx, method.prepare(rewarded(rollouts, [1.0, 0.0] * 32), ctx))
    loss = method.loss(rows, ctx)
    advantage_n = -loss.value_n.detach()  # on policy the ratio is 1
    right_n, ratio_n = rows.columns["right"], loss.scalars["log_ratio"]
    assert bool((advantage_n[right_n] >= 0).all() and (advantage_n[~right_n] <= 0).all())
    agrees_n = (ratio_n > 0) == right_n
    assert near(advantage_n[agrees_n], ratio_n[agrees_n], 1e-6) and near(advantage_n[~agrees_n], 0.0)
    assert 0 < int(agrees_n.sum()) < len(rows)


def test_opdvr_rests_at_the_teacher_and_refuses_a_group_of_one() -> None:
    ctx, rows = batch(make(OPDVR), twins())
    assert near(make(OPDVR).loss(rows, ctx).value_n.detach(), 0.0, 1e-7)
    with pytest.raises(UserError, match="no group"):
        make(OPDVR, scale="group").collect(context(small_language()))


# -------------------------------------------------------------------------------------------------- with our constants

APPROXIMATE = ["ogls-sd", "aopd", "adwin", "mopd-peers", "dispo", "vold", "lgr"]


def test_what_is_ours_is_named() -> None:
    for name in APPROXIMATE:
        cls = registry.load("method", name)
        assert cls.standing == "unspecified" and cls.Params().approximate is False
        assert "Ours:" in cls.__doc__ and "Missing:" in cls.__doc__


@pytest.mark.parametrize("cls", [OPRD, AOPD, LGR], ids=lambda cls: cls.name)
def test_a_teacher_that_tells_only_its_likeliest_tokens_is_refused_by_what_needs_all(cls: type[Distiller]) -> None:
    with pytest.raises(UserError, match="needs its teacher's"):
        _check_needs(make(cls), Training(), None)


def test_aopd_rewards_where_the_teacher_likes_the_token_better_and_corrects_elsewhere() -> None:
    method = make(AOPD, top_k=3)  # all actions
    ctx, rows = batch(method, batch=64)
    logq_n = rows.student.logp(rows.action_n)
    ratio_n = (rows.teacher_logp_n - logq_n).detach()
    stated_n = torch.where(ratio_n > 0, -ratio_n * logq_n, forward_kl(rows.teacher, rows.student))
    loss = method.loss(rows, ctx)
    assert near(loss.value_n.detach(), stated_n.detach()) and 0 < float(loss.scalars["corrected"].mean()) < 1


def test_vold_distils_what_earned_nothing() -> None:
    method = make(VOLD, group=4, weight=0.5)
    ctx = context(small_language())
    rollouts = rewarded(ctx.score(method.collect(ctx), Needs.FULL), [1.0] * 4 + [0.0] * 4)  # no group has a spread
    rows = make_rows(ctx, method.prepare(rollouts, ctx))
    right_n = rows.columns["missing"] == 0
    value_n = method.loss(rows, ctx).value_n
    assert near(value_n[right_n].detach(), 0.0)
    assert near(value_n[~right_n].detach(), 0.5 * forward_kl(rows.teacher, rows.student)[~right_n].detach())


def test_dispo_on_policy_is_the_policy_gradient_and_its_bounds_are_apart() -> None:
    method = make(DISPO, wrong_high=0.01)
    ctx = context(small_language())
    plain = make(GRPO, kl_coefficient=0.0)
    rollouts = rewarded(method.collect(ctx), [1.0, 0.0] * 4)
    rows = make_rows(ctx, method.prepare(rollouts, ctx))
    found, wanted = (flat_gradient(it.loss(rows, ctx).value_n.sum(), ctx.student, retain_graph=True)
                     for it in (method, plain))
    assert float(wanted.norm()) > 0.01 and near(found, wanted, 1e-6)
    stale = replace(rows, behaviour_logp_n=rows.behaviour_logp_n - 1)  # every ratio is e
    value_n, logq_n = method.loss(stale, ctx).value_n, rows.student.logp(rows.action_n)
    weight_n = -(value_n / (rows.columns["advantage"] * logq_n)).detach()
    right_n = rows.columns["right"]
    assert near(weight_n[right_n], 1.28, 1e-6) and near(weight_n[~right_n], 1.01, 1e-6)


def test_adwins_window_grows_where_gradients_disagree_and_never_else() -> None:
    for agreement, grown in ((1.0, True), (-1.0, False)):
        method = make(ADWIN, window=1, period=2, agreement=agreement)
        trainer = Trainer(method, context(small_language()))
        figures = [trainer.step() for _ in range(2)]
        assert figures[0]["length"] == 1 and "agreement_of_gradients" not in figures[0]
        assert -1 <= figures[1]["agreement_of_gradients"] < 1
        assert isinstance(method, ADWIN) and (method.window == 2) == grown


def test_lgrs_lookahead_is_the_teachers_own() -> None:
    """After every candidate, in full: against a table of the teacher's."""
    world = small_language()
    method, ctx = make(LGR, share=1.0, top_k=3), context(world)
    assert isinstance(method, LGR)
    rollouts = ctx.score(method.collect(ctx), Needs.FULL)
    trajectory_r, step_r = rollouts.mask_bt.nonzero().unbind(1)
    candidate_rk = torch.arange(3).expand(len(step_r), 3)
    found_rk = method.sureness(rollouts, ctx, trajectory_r, step_r, candidate_rk)
    assert world.teacher is not None
    for number in range(len(step_r)):
        prefix = rollouts.input_bt[trajectory_r[number], :step_r[number] + 1].tolist()
        for candidate in range(3):
            tokens = torch.tensor([[*prefix, candidate]])
            logits = world.teacher.project(world.teacher.features(tokens, torch.tensor([tokens.shape[1]]))[0, -1:])
            assert near(found_rk[number, candidate], logits.softmax(-1).max().detach())
    rows = make_rows(ctx, method.prepare(rollouts, ctx))
    bonus_n = standardised(found_rk).gather(-1, rows.action_n[:, None])[:, 0]
    assert near(rows.columns["advantage"] - rows.columns["log_ratio"], bonus_n)
    plain = prepared(make(LGR, gamma=0.0), ctx, rollouts)
    assert near(plain.columns["advantage"], plain.columns["log_ratio"])


def test_typhoon_goes_through_its_phases_and_its_second_one_is_gkd() -> None:
    trainer = Trainer(make(TyphoonS, text=1.0), context(small_language(), budget=Budget(steps=6)))
    phases, sources = [], []
    for _ in range(6):
        figures = trainer.step()
        phases.append(trainer.method.phase)  # type: ignore[attr-defined]
        sources.append(figures["student_share"])
    assert phases == [0, 0, 1, 1, 2, 2] and sources[:2] == [0.0, 0.0] and 0 < sources[-1] < 1
    method = make(TyphoonS, imitation=0.0, distillation=1.0, lmbda=1.0)
    ctx, rows = batch(method)
    assert near(method.loss(rows, ctx).value_n.detach(), forward_kl(rows.teacher, rows.student).detach())
