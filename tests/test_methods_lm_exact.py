"""The classical language-model methods on a language of three tokens and three steps, against exact expectations."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench.baselines.ammd import AMMD
from opdbench.baselines.distillm import DistiLLM
from opdbench.baselines.distillm2 import STUDENT_PART, TEACHER_PART, DistiLLM2
from opdbench.baselines.fdistill import FDistill
from opdbench.baselines.gkd import GKD
from opdbench.baselines.grpo import GRPO
from opdbench.baselines.imitkd import ImitKD
from opdbench.baselines.kd import KD
from opdbench.baselines.kdrl import KDRL
from opdbench.baselines.minillm import MiniLLM
from opdbench.baselines.opd import OPD
from opdbench.baselines.qwen3 import Qwen3
from opdbench.baselines.seqkd import SeqKD
from opdbench.baselines.sft import SFT
from opdbench.conformance.enumerable import EnumerableWorld, step_logp, trajectory_logp
from opdbench.conformance.harness import make_rows
from opdbench.context import Context
from opdbench.distiller import Distiller
from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl, skew_kl, total_variation
from opdbench.errors import UserError
from opdbench.lm.generate import last_decision
from opdbench.loop import Trainer
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import TEACHER_FEATURES
from opdbench.schema.spec import Budget
from tests.enumerable import (
    context,
    distributions,
    expected_loss,
    flat_gradient,
    make,
    near,
    small_language,
    trajectory_weights,
)


@pytest.fixture(params=[False, True], ids=["plain", "with an environment"])
def world(request: pytest.FixtureRequest) -> EnumerableWorld:
    return small_language(echo=request.param)


def expected_gradient(method: Distiller, ctx: Context, rollouts: Rollouts, weight_n: Tensor) -> Tensor:
    """Of the weighted sum over all rows of all completions, after scoring and preparing them together."""
    prepared = method.prepare(ctx.score(rollouts, method.asks(ctx)), ctx)
    value_n = method.loss(make_rows(ctx, prepared), ctx).value_n
    return flat_gradient((weight_n.detach() * value_n).sum(), ctx.student)


def sequence_reverse_kl(world: EnumerableWorld, rollouts: Rollouts) -> Tensor:
    assert world.teacher is not None
    logq_b, logp_b = trajectory_logp(world.student, rollouts), trajectory_logp(world.teacher, rollouts).detach()
    return (logq_b.exp() * (logq_b - logp_b)).sum() / 4


def weights_after(method: Distiller, *, steps: int = 4, echo: bool = False) -> list[Tensor]:
    here = small_language(echo=echo)
    trainer = Trainer(method, context(here, budget=Budget(steps=steps)))
    for _ in range(steps):
        trainer.step()
    return [weight.detach() for weight in here.student.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


# ------------------------------------------------------------------------------------------------------------- minillm

UNBIASED = {"clip": 1e9, "length_normalised": False, "epochs": 1, "minibatches": 1}


def blended(world: EnumerableWorld, alpha: float) -> tuple[Rollouts, Tensor]:
    """All completions as if the blend had written them, and the weight of each row under the blend."""
    rollouts = world.completions()
    assert world.teacher is not None
    logq_bt, logp_bt = step_logp(world.student, rollouts).detach(), step_logp(world.teacher, rollouts).detach()
    blend_bt = torch.logaddexp(logp_bt + math.log(alpha), logq_bt + math.log1p(-alpha)) if alpha else logq_bt
    blend_bt = blend_bt.where(rollouts.mask_bt, 0.0)
    weight_b = blend_bt.sum(1).exp() / 4
    return replace(rollouts, behaviour_logp_bt=blend_bt), weight_b.repeat_interleave(rollouts.mask_bt.sum(1))


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_minillm_without_its_devices_is_the_exact_gradient_of_the_sequence_reverse_kl(
        alpha: float, world: EnumerableWorld) -> None:
    """Single-step term, later rewards and importance weights: nothing left out, nothing counted twice."""
    rollouts, weight_n = blended(world, alpha)
    method = make(MiniLLM, alpha=alpha, importance="prefix", **UNBIASED)
    exact = flat_gradient(sequence_reverse_kl(world, rollouts), world.student)
    assert near(expected_gradient(method, context(world), rollouts, weight_n), exact)


def test_minillms_documented_biases_are_there(world: EnumerableWorld) -> None:
    """Token-wise weights and length normalisation each move the expected gradient, and leave it a descent direction."""
    rollouts, weight_n = blended(world, 0.2)
    exact = flat_gradient(sequence_reverse_kl(world, rollouts), world.student)
    for biased in ({**UNBIASED, "importance": "token"},
                   {**UNBIASED, "importance": "prefix", "length_normalised": True}):
        found = expected_gradient(make(MiniLLM, alpha=0.2, **biased), context(world), rollouts, weight_n)
        assert float((found - exact).norm() / exact.norm()) > 0.01
        assert float(torch.cosine_similarity(found, exact, dim=0)) > 0.7


def test_minillm_with_no_discounted_future_is_opd(world: EnumerableWorld) -> None:
    """discount 0: only the exact next-step term is left, and on policy that is `opd` over the whole vocabulary."""
    rollouts, weight_n = blended(world, 0.0)
    found = expected_gradient(make(MiniLLM, alpha=0.0, discount=0.0, **UNBIASED), context(world), rollouts, weight_n)
    opd = expected_loss(make(OPD), context(world), rollouts, world.student)
    assert near(found, flat_gradient(opd, world.student))


def test_minillms_blend_samples_what_it_says_and_its_probability_is_kept(world: EnumerableWorld) -> None:
    ctx = context(world, batch=400)
    rollouts = make(MiniLLM, alpha=0.3).collect(ctx)
    assert world.teacher is not None
    p, q = (step_logp(policy, rollouts).exp() for policy in (world.teacher, world.student))
    mask = rollouts.mask_bt
    assert near(rollouts.behaviour_logp_bt[mask].exp().double(), (0.3 * p + 0.7 * q)[mask], 1e-5)


def test_minillms_second_loss_has_its_own_mean_and_no_advantage() -> None:
    """Trap: data has no sampler's probability (NaN); it must reach neither the advantages nor the gradient."""
    world = small_language()
    ctx, method = context(world), make(MiniLLM, data="solutions", whiten=True, data_weight=0.7)
    prepared = method.prepare(ctx.score(method.collect(ctx), method.asks(ctx)), ctx)
    rows = make_rows(ctx, prepared)
    value_n = method.loss(rows, ctx).value_n
    by_data_n = rows.columns["part"] == 1
    assert torch.equal(by_data_n, rows.source_n == Source.DATA) and by_data_n.any() and not by_data_n.all()
    assert near(value_n[by_data_n], -0.7 * rows.student.logp(rows.action_n)[by_data_n])
    assert near(rows.columns["advantage"][by_data_n], 0.0)
    assert near(rows.columns["advantage"][~by_data_n].mean(), 0.0)
    assert flat_gradient(value_n.sum(), world.student).isfinite().all()


# ---------------------------------------------------------------------------------------------------------- grpo, kdrl


def test_grpos_expected_gradient_is_that_of_the_expected_reward(world: EnumerableWorld) -> None:
    """The group's mean is a constant for each prompt, so it takes nothing away from the gradient."""
    rollouts = world.completions()
    reward_b = rollouts.reward_bt.nan_to_num().sum(1).double()
    assert 0 < float(reward_b.sum()) < len(reward_b)
    exact = -flat_gradient((trajectory_logp(world.student, rollouts).exp() * reward_b).sum() / 4, world.student)
    found = expected_gradient(make(GRPO, scale=False, kl_coefficient=0.0), context(world), rollouts,
                              trajectory_weights(rollouts, world.student))
    assert near(found, exact, 1e-7)  # rewards are float32


def test_a_batch_that_is_all_right_or_all_wrong_teaches_nothing_and_says_so() -> None:
    world = small_language()
    ctx, method = context(world), make(GRPO, kl_coefficient=0.0)
    for reward in (0.0, 1.0):
        rollouts = method.collect(ctx)
        flat = replace(rollouts, reward_bt=reward * last_decision(rollouts.source_bt))
        loss = method.loss(make_rows(ctx, method.prepare(flat, ctx)), ctx)
        assert near(loss.value_n, 0.0) and near(loss.scalars["informative"], 0.0)


def test_grpo_refuses_a_batch_that_its_groups_do_not_divide() -> None:
    with pytest.raises(UserError, match="groups of 8") as raised:
        make(GRPO).collect(context(small_language(), batch=12))
    assert "batch=8" in str(raised.value.fix)


def test_l2_opd_with_discount_1_is_the_exact_gradient_of_the_sequence_reverse_kl(world: EnumerableWorld) -> None:
    rollouts = world.completions()
    exact = flat_gradient(sequence_reverse_kl(world, rollouts), world.student)
    found = {discount: flat_gradient(expected_loss(
        make(OPD, estimator="sampled", discount=discount), context(world), rollouts, world.student), world.student)
        for discount in (0.0, 0.5, 1.0)}
    assert near(found[1.0], exact)
    assert float((found[0.0] - exact).norm()) > 0.05 < float((found[0.5] - exact).norm())  # biased by design


def test_opds_groups_share_a_prompt_and_must_divide_the_batch() -> None:
    world = small_language()
    rollouts = make(OPD, group=4).collect(context(world, batch=8))
    assert rollouts.columns["group"].tolist() == [0] * 4 + [1] * 4
    assert rollouts.columns["example"][:4].unique().numel() == 1
    with pytest.raises(UserError, match="groups of 3"):
        make(OPD, group=3).collect(context(world, batch=8))


def test_grpos_reference_is_the_starting_student_also_after_a_resume() -> None:
    world = small_language()
    trainer = Trainer(make(GRPO, kl_coefficient=0.1), context(world, seed=2))  # whose draws earn some reward
    before = [weight.detach().clone() for weight in world.student.parameters()]
    for _ in range(3):
        trainer.step()
    restored = make(GRPO, kl_coefficient=0.1)
    restored.load_state_dict(trainer.method.state_dict())
    assert isinstance(restored, GRPO) and not same(before, [weight.detach() for weight in world.student.parameters()])
    assert same(before, [weight.detach() for weight in restored.reference.of(world.student).parameters()])


def test_kdrl_without_reward_is_the_reverse_kl_and_without_teacher_grpo(world: EnumerableWorld) -> None:
    rollouts = world.completions()
    silent = replace(rollouts, reward_bt=torch.zeros_like(rollouts.reward_bt))
    weight_n = trajectory_weights(rollouts, world.student)
    opd = flat_gradient(expected_loss(make(OPD), context(world), rollouts, world.student), world.student)
    assert near(expected_gradient(make(KDRL, teacher=0.3), context(world), silent, weight_n), 0.3 * opd)
    grpo = expected_gradient(make(GRPO, kl_coefficient=0.0), context(world), rollouts, weight_n)
    assert near(expected_gradient(make(KDRL, teacher=0.0), context(world), rollouts, weight_n), grpo)
    both = expected_gradient(make(KDRL, teacher=0.3), context(world), rollouts, weight_n)
    assert near(both, grpo + 0.3 * opd)


# ------------------------------------------------------------------------------------------------- special cases (L12)


@pytest.mark.parametrize(("one", "other"), [
    ((ImitKD, {"labels": "soft", "schedule": "never"}), (GKD, {"divergence": "forward_kl"})),
    ((FDistill, {"divergence": "kl"}), (KD, {})),
    ((FDistill, {"divergence": "rkl"}), (OPD, {})),
    ((FDistill, {"divergence": "js", "states": "student"}), (GKD, {"beta": 0.5})),
    ((SeqKD, {"decode": "sample"}), (SFT, {})),
    ((SeqKD, {"decode": "sample", "word_level": 1.0}), (KD, {})),
    ((Qwen3, {"stage_1": 0.0}), (OPD, {})),
    ((Qwen3, {"stage_1": 1.0}), (SFT, {})),
    ((KDRL, {"teacher": 0.0}), (GRPO, {"kl_coefficient": 0.0})),
], ids=lambda side: side[0].__name__)
def test_l12_special_cases_are_the_same_method_step_by_step(
        one: tuple[type[Distiller], dict[str, Any]], other: tuple[type[Distiller], dict[str, Any]]) -> None:
    first, second = (weights_after(make(cls, **params)) for cls, params in (one, other))
    assert all(near(mine, theirs) for mine, theirs in zip(first, second, strict=True))


def test_imitkds_share_of_data_falls_from_one_to_its_end() -> None:
    method = make(ImitKD, final_share=0.01)
    assert isinstance(method, ImitKD)
    assert (method.data_share(0.0), method.data_share(0.5), method.data_share(1.0)) == pytest.approx((1.0, 0.1, 0.01))
    linear = make(ImitKD, schedule="linear", final_share=0.2)
    assert isinstance(linear, ImitKD) and linear.data_share(0.5) == pytest.approx(0.6)


def test_imitkd_learns_the_teachers_most_likely_token_whoever_wrote_the_prefix(world: EnumerableWorld) -> None:
    rollouts = world.completions()
    teacher, student = distributions(world, rollouts)
    by_hand = (trajectory_weights(rollouts, world.student).detach() * -student.logp(teacher.mode())).sum()
    assert near(expected_loss(make(ImitKD), context(world), rollouts, world.student), by_hand)


def test_seqkd_greedy_writes_the_teachers_most_likely_tokens() -> None:
    world = small_language()
    rollouts = make(SeqKD).collect(context(world))
    teacher, _ = distributions(world, rollouts)
    assert torch.equal(rollouts.action_bt[rollouts.mask_bt], teacher.mode())


def test_qwen3_asks_its_teacher_for_scores_only_in_the_second_stage() -> None:
    trainer = Trainer(make(Qwen3), context(small_language(), budget=Budget(steps=4)))
    seen = []
    for _ in range(4):
        trainer.step()
        seen.append((trainer.ctx.ledger.teacher_scored > 0, trainer.ctx.ledger.student_tokens > 0))
    assert seen == [(False, False), (False, False), (True, True), (True, True)]


# ------------------------------------------------------------------------------------------------------------ fdistill


def test_fdistills_tvd_is_half_on_each_sides_states_and_bounds_the_sequences_total_variation(
        world: EnumerableWorld) -> None:
    assert world.teacher is not None
    rollouts = world.completions()
    teacher, student = (side.detach() for side in distributions(world, rollouts))
    by_teacher, by_student = (trajectory_weights(rollouts, policy) for policy in (world.teacher, world.student))
    step_n = total_variation(teacher, student)
    bound = 0.5 * (by_teacher * step_n).sum() + 0.5 * (by_student * step_n).sum()
    p_b, q_b = (trajectory_logp(policy, rollouts).exp().detach() for policy in (world.teacher, world.student))
    sequences = 0.5 * (p_b - q_b).abs().sum() / 4
    assert 0.05 < float(sequences) <= float(bound.detach())
    ctx, method = context(world), make(FDistill)
    halves = [expected_of_part(method, ctx, rollouts, part, weight_n)
              for part, weight_n in ((0, by_teacher), (1, by_student))]
    assert near(halves[0] + halves[1], bound)


def test_fdistills_js_takes_each_kl_to_the_mixture_on_its_own_sides_samples(world: EnumerableWorld) -> None:
    rollouts = world.completions()
    teacher, student = (side.detach() for side in distributions(world, rollouts))
    mixture = Categorical(((teacher.p_na + student.p_na) / 2).log())
    weight_n = trajectory_weights(rollouts, world.student)
    ctx, method = context(world), make(FDistill, divergence="js")
    for part, side in ((0, teacher), (1, student)):
        expected = 0.5 * (weight_n * forward_kl(side, mixture)).sum()
        assert near(expected_of_part(method, ctx, rollouts, part, weight_n), expected)


def expected_of_part(method: Distiller, ctx: Context, rollouts: Rollouts, part: int, weight_n: Tensor) -> Tensor:
    """The weighted loss of all completions as part number `part` of a batch."""
    marked = rollouts.with_columns(per_trajectory={"part": torch.full_like(rollouts.length_b, part)})
    rows = make_rows(ctx, ctx.score(marked, method.asks(ctx)))
    return (weight_n.detach() * method.loss(rows, ctx).value_n).sum()


# ----------------------------------------------------------------------------------------------------- distillm and -2


def test_distillm_without_student_samples_and_skew_is_kd() -> None:
    tiny = {"alpha": 1e-12, "validate_every": 1000}
    world = small_language()
    rollouts = world.completions()
    rollouts = rollouts.with_columns(per_trajectory={"fresh": torch.zeros_like(rollouts.truncated_b)})
    skl, kd = (expected_loss(make(cls, **params), context(world), rollouts, world.student)
               for cls, params in ((DistiLLM, tiny), (KD, {})))
    assert near(flat_gradient(skl, world.student), flat_gradient(kd, world.student), 1e-8)
    srkl = expected_loss(make(DistiLLM, divergence="srkl", alpha=1e-12), context(world), rollouts, world.student)
    opd = expected_loss(make(OPD), context(world), rollouts, world.student)
    assert near(srkl, opd, 1e-8)


def distillm(**params: Any) -> tuple[DistiLLM, Context]:
    method = make(DistiLLM, validation=8, validate_every=1, **params)
    assert isinstance(method, DistiLLM)
    return method, context(small_language(), budget=Budget(steps=1000))


def test_distillms_phi_rises_when_validation_gets_worse_and_only_then() -> None:
    method, ctx = distillm(tolerance=0.1)
    method.collect(ctx)
    loss = method.compared
    method.after_step(ctx)
    assert method.phi == 0.0 and method.compared == pytest.approx(loss)
    method.compared = loss - 0.11
    method.after_step(ctx)
    assert method.phi == pytest.approx(0.1) and method.compared == pytest.approx(loss)
    method.compared, method.phi = loss - 1, 0.95
    method.after_step(ctx)
    assert method.phi == 1.0


@pytest.mark.parametrize("since", ["last_validation", "last_move"])
def test_distillms_two_readings_of_a_rise(since: str) -> None:
    method, ctx = distillm(rise_since=since)
    method.collect(ctx)
    start = method.compared = method.compared + 1.0  # validation has got better since
    method.after_step(ctx)
    assert method.phi == 0.0
    assert (method.compared == start) == (since == "last_move")


def test_distillm_validates_with_its_own_divergence() -> None:
    method, ctx = distillm()
    method.collect(ctx)
    teacher, student = distributions(ctx.world, method.held_out.all())  # type: ignore[arg-type]
    assert method.compared == pytest.approx(float(skew_kl(teacher.detach(), student.detach(), 0.1).mean()))


def test_distillm_replays_from_a_bounded_buffer_without_new_tokens_or_scores() -> None:
    method, ctx = distillm(initial=1.0, replay="constant", capacity=20)
    trainer = Trainer(method, ctx)
    spent = []
    for _ in range(30):
        before = (ctx.ledger.student_tokens, ctx.ledger.teacher_scored)
        trainer.step()
        spent.append((ctx.ledger.student_tokens - before[0], ctx.ledger.teacher_scored - before[1]))
        assert len(method.buffer) <= 20
    assert all(tokens > 0 for tokens, _ in spent[:3])  # until the buffer is full
    replayed = [step for step in spent if step == (0, 0)]
    assert 5 < len(replayed) < 25
    assert all(tokens == scored for tokens, scored in spent[1:])  # in the first step validation was scored too


def test_the_buffer_forgets_the_oldest_first() -> None:
    method, ctx = distillm(capacity=20)
    scored = [ctx.score(method.fixed_data(ctx, 8), method.needs).with_columns(
        per_trajectory={"number": torch.full((8,), number)}) for number in range(3)]
    for part in scored:
        method.buffer.add(part)
    kept = method.buffer.all()
    assert kept.columns["number"].tolist() == [0] * 4 + [1] * 8 + [2] * 8
    assert TEACHER_FEATURES in kept.columns


def test_distillm2s_skew_grows_with_the_gap_and_is_the_base_at_the_mean_gap() -> None:
    method = make(DistiLLM2)
    assert isinstance(method, DistiLLM2)
    gap_b = torch.tensor([0.2, 0.2, 0.1, 0.3, 0.2], dtype=torch.float64)
    alpha_b = method.adapted(gap_b, torch.tensor([0, 0, 1, 1, 1]))
    assert near(alpha_b[[0, 1, 4]], 0.1)  # gap = m
    assert near(alpha_b[2], 0.01) and near(alpha_b[3], 0.1)  # 1 - 0.9 * 2 and 1 - 0.9 * 2 / 3, beyond either limit
    later_b = method.adapted(torch.tensor([0.2, 0.195], dtype=torch.float64), torch.tensor([0, 1]))
    assert near(later_b, torch.tensor([0.1, 1 - 0.9 * 0.1975 / 0.195], dtype=torch.float64))  # m = mean of 0.2, 0.195
    fresh = make(DistiLLM2)
    assert isinstance(fresh, DistiLLM2)
    assert near(fresh.adapted(torch.zeros(2, dtype=torch.float64), torch.tensor([0, 1])), 0.1)  # nothing to adapt to


def test_distillm2_pulls_on_the_teachers_responses_and_pushes_on_its_own(world: EnumerableWorld) -> None:
    rollouts = world.completions().with_columns(per_trajectory={
        "alpha": torch.full((world.completions().n_trajectories,), 0.1, dtype=torch.float64)})
    weight_n = trajectory_weights(rollouts, world.student)
    ctx, method = context(world, budget=Budget(steps=4)), make(DistiLLM2)
    teacher, student = (side.detach() for side in distributions(world, rollouts))
    pull = (weight_n * skew_kl(teacher, student, 0.1)).sum()
    push = (weight_n * skew_kl(student, teacher, 0.1)).sum()  # SRKL is SKL with the sides exchanged
    for step, b in ((0, 1.0), (2, 1.25), (4, 1.5)):
        ctx.ledger.steps = step
        assert near(expected_of_part(method, ctx, rollouts, TEACHER_PART, weight_n), (2 - b) * pull)
        assert near(expected_of_part(method, ctx, rollouts, STUDENT_PART, weight_n), b * push)


# ---------------------------------------------------------------------------------------------------------------- ammd


def test_ammds_gap_is_at_most_twice_the_total_variation_which_a_trained_adversary_nears() -> None:
    world = small_language(tabular=True)
    method, ctx = make(AMMD, adversary=400, states="student", width=64), context(world, batch=64)
    ctx.begin_step()
    prepared = method.prepare(ctx.score(method.collect(ctx), method.asks(ctx)), ctx)
    rows = make_rows(ctx, prepared)
    gap_n = method.loss(rows, ctx).value_n
    limit_n = 2 * total_variation(rows.teacher, rows.student)
    assert (gap_n <= limit_n + 1e-12).all()
    assert float((gap_n.mean() / limit_n.mean()).detach()) > 0.8


def test_ammds_students_gradient_is_that_of_its_expected_value_with_q_held_fixed() -> None:
    world = small_language()
    method, ctx = make(AMMD), context(world)
    assert isinstance(method, AMMD)
    ctx.begin_step()
    rows = make_rows(ctx, method.prepare(ctx.score(method.collect(ctx), method.asks(ctx)), ctx))
    q_na = method.q_values(rows.features_nh, rows.columns["part"]).detach()
    assert float(q_na.abs().max()) > 0
    by_hand = -0.5 * (rows.student.p_na * q_na).sum()
    found = flat_gradient(method.loss(rows, ctx).value_n.sum(), world.student, retain_graph=True)
    assert near(found, flat_gradient(by_hand, world.student))
