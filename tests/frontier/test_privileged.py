"""Teachers that know more: the same completions below other prompts, and the methods that are made of that."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench.actors import Student
from opdbench.baselines.mopd_peers import MOPDPeers
from opdbench.baselines.ogls_sd import OGLSSD
from opdbench.baselines.opsd import OPSD
from opdbench.baselines.ptd_po import PTDPO
from opdbench.baselines.rlsd import RLSD, weighted
from opdbench.baselines.safesteer import SafeSteer
from opdbench.baselines.sdft import SDFT
from opdbench.baselines.sdpo import SDPO
from opdbench.baselines.vicur import ViCuR
from opdbench.conformance.enumerable import EnumerableWorld, PrefixPolicy, trajectory_logp
from opdbench.conformance.harness import make_rows
from opdbench.context import Context
from opdbench.copies import SelfTeacher
from opdbench.distiller import Distiller, Needs
from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl, generalized_jsd
from opdbench.errors import UserError
from opdbench.lm.generate import last_decision
from opdbench.loop import Trainer
from opdbench.privilege import siblings, told
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_FEATURES, TEACHER_LOGP
from opdbench.support import Comparison
from tests.enumerable import context, flat_gradient, generator, leaf, make, near, random_logits, small_language

SELF_TAUGHT = [OPSD, SDPO, RLSD, PTDPO, SDFT, ViCuR, MOPDPeers, OGLSSD]


def own_prompts(rollouts: Rollouts, ctx: Context) -> list[Any]:
    return [example.prompt for example in ctx.prompts.problems(rollouts)]


def rewarded(rollouts: Rollouts, outcome_b: list[float]) -> Rollouts:
    """The same trajectories with these verdicts."""
    return replace(rollouts, reward_bt=last_decision(rollouts.source_bt) * torch.tensor(outcome_b)[:, None])


# ------------------------------------------------------------------------------------------------- the core's one way


@pytest.mark.parametrize("echo", [False, True], ids=["plain", "with an environment"])
def test_below_its_own_prompt_a_policy_says_what_it_says(echo: bool) -> None:
    world = small_language(echo=echo)
    ctx = context(world)
    rollouts = ctx.rollout(Student())
    plain, told_own = ctx.score(rollouts, Needs.FULL), ctx.score_under(rollouts, own_prompts(rollouts, ctx))
    mask = rollouts.mask_bt
    assert near(plain.columns[TEACHER_FEATURES][mask], told_own.columns[TEACHER_FEATURES][mask])
    assert near(ctx.score(rollouts, Needs.SAMPLED).columns[TEACHER_LOGP],
                ctx.score_under(rollouts, own_prompts(rollouts, ctx), Needs.SAMPLED).columns[TEACHER_LOGP])


@pytest.mark.parametrize("echo", [False, True], ids=["plain", "with an environment"])
def test_rows_below_other_prompts_stay_beside_their_own(echo: bool) -> None:
    """Prompts of different lengths, some of which nobody is asked about: every row has the features of its own prefix
    below its own other prompt, and rows without are zero."""
    ctx = context(small_language(echo=echo))
    rollouts = ctx.rollout(Student())
    prompts = [None if index % 3 == 0 else "ab" * (index % 2) + str(prompt)
               for index, prompt in enumerate(own_prompts(rollouts, ctx))]
    found = ctx.score_under(rollouts, prompts, policy=ctx.student).columns[TEACHER_FEATURES]
    for index, prompt in enumerate(prompts):
        mask_t = rollouts.mask_bt[index]
        if prompt is None:
            assert near(found[index], 0.0)
            continue
        first, length = int(mask_t.int().argmax()), int(rollouts.length_b[index])
        tokens = ["$ab".index(character) for character in prompt] + rollouts.action_bt[index, first:length].tolist()
        features_th = ctx.student.features(torch.tensor([tokens]), torch.tensor([len(tokens)]))[0]
        shift = len(prompt) - 1 - first
        for step in mask_t.nonzero()[:, 0].tolist():
            assert near(found[index, step], features_th[step + shift].detach())


def test_what_is_asked_below_other_prompts_is_metered() -> None:
    ctx = context(small_language())
    rollouts = ctx.rollout(Student())
    before = ctx.ledger.teacher_scored
    prompts = [prompt if index < 3 else None for index, prompt in enumerate(own_prompts(rollouts, ctx))]
    ctx.score_under(rollouts, prompts, policy=ctx.student)
    assert ctx.ledger.teacher_scored - before == rollouts.select([0, 1, 2]).n_rows
    assert ctx.score_under(rollouts, [None] * rollouts.n_trajectories) is rollouts


def test_who_was_asked_is_the_rows_teacher_until_the_step_ends() -> None:
    ctx = context(small_language())
    rollouts = ctx.rollout(Student())
    copy = PrefixPolicy(generator(9), scale=1.0)
    scored = ctx.score_under(rollouts, own_prompts(rollouts, ctx), policy=copy)
    rows = make_rows(ctx, scored)
    logits_na = copy.project(copy.features(rollouts.input_bt, rollouts.length_b)[rollouts.mask_bt])
    assert near(rows.teacher.logits_na, logits_na.detach())
    ctx.begin_step()
    assert ctx.teacher is ctx.world.teacher


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_a_self_teacher_follows_at_its_rate_and_resumes(rate: float) -> None:
    student, teacher = PrefixPolicy(generator(1), scale=1.0), SelfTeacher(rate, every=2)
    start = student.table.detach().clone()
    teacher.of(student)
    with torch.no_grad():
        student.table += 1
    teacher.follow(student, 1)
    assert near(teacher.of(student).table.detach(), start)  # type: ignore[arg-type]  # every other step
    teacher.follow(student, 2)
    resumed = SelfTeacher(rate, every=2)
    resumed.load_state_dict(deepcopy(teacher.state_dict()))
    for it in (teacher, resumed):
        it.follow(student, 4)
        assert near(it.of(student).table.detach(), start + (1 - (1 - rate) ** 2))  # type: ignore[arg-type]


def test_siblings_are_the_others_of_a_group() -> None:
    found = siblings(torch.tensor([1.0, 0.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1, 2]), 0.5)
    assert [tuple(map(tuple, its)) for its in found] == [((2,), (1,)), ((0, 2), ()), ((0,), (1,)), ((), ()), ((), ())]


# -------------------------------------------------------------------------------------------- no teacher, no lesson


class Untold(EnumerableWorld):
    """A world in which nothing that is told changes a prompt."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.task.informed = lambda example, notes: example.prompt  # type: ignore[method-assign]


@pytest.mark.parametrize("cls", [OPSD, SDPO, SDFT, ViCuR, MOPDPeers], ids=lambda cls: cls.name)
def test_a_teacher_that_is_told_nothing_new_teaches_nothing(cls: type[Distiller]) -> None:
    world = Untold(PrefixPolicy(generator(1), scale=1.0), None)
    ctx, method = context(world), make(cls)
    ctx.begin_step()
    rollouts = rewarded(method.collect(ctx), [1, 0, 0, 1, 0, 1, 0, 0])
    value_n = method.loss(make_rows(ctx, method.prepare(rollouts, ctx)), ctx).value_n
    assert len(value_n) and near(value_n.detach(), 0.0)
    assert near(flat_gradient((torch.arange(1.0, len(value_n) + 1) * value_n).sum(), world.student), 0.0, 1e-8)


@pytest.mark.parametrize("cls", SELF_TAUGHT, ids=lambda cls: cls.name)
def test_they_run_without_any_other_teacher(cls: type[Distiller]) -> None:
    world = small_language()
    world.teacher = None
    trainer = Trainer(make(cls), context(world))
    for _ in range(3):
        trainer.step()
    assert make(cls).requires() == Needs.NOTHING and cls.own_teacher


# ---------------------------------------------------------------------------------------------------------------- opsd


def test_opsds_clipped_sum_is_below_the_plain_one_and_without_a_clip_it_is_the_divergence() -> None:
    teacher, logits = Categorical(random_logits(6, 5, seed=1)), leaf(6, 5, seed=2)
    student = Categorical(logits)
    for divergence, exact in (("forward_kl", lambda: forward_kl(teacher, student)),
                              ("jsd", lambda: generalized_jsd(teacher, student, 0.5))):
        terms_na = make(OPSD, divergence=divergence).terms(teacher, student)  # type: ignore[attr-defined]
        assert near(terms_na.sum(-1).detach(), exact().detach())
        found, wanted = (torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]
                         for value in (terms_na.sum(-1), exact()))
        assert near(found, wanted)
        clipped_n = terms_na.clamp(max=0.05).sum(-1)
        assert (clipped_n <= terms_na.sum(-1) + 1e-12).all()
        assert divergence != "forward_kl" or bool((clipped_n < 0).any())


def test_opsds_teacher_stays_the_starting_student_told_the_solution() -> None:
    world = small_language()
    trainer = Trainer(make(OPSD), context(world))
    start = {name: value.clone() for name, value in world.student.state_dict().items()}
    for _ in range(3):
        trainer.step()
    method = trainer.method
    assert isinstance(method, OPSD) and all(
        near(value, start[name]) for name, value in method.teacher.of(world.student).state_dict().items())
    ctx = context(world)
    rollouts = method.collect(ctx)
    assert told(ctx, rollouts, "solution") == [
        example.answer + str(example.prompt) for example in ctx.prompts.problems(rollouts)]


def test_opsd_sampled_is_the_reverse_kl_on_average() -> None:
    world = small_language()
    ctx = context(world)
    method, exact = make(OPSD, divergence="sampled"), make(OPSD, divergence="reverse_kl", clip=None)
    rollouts = world.completions()
    weight_n = (trajectory_logp(world.student, rollouts).exp() / 4).detach().repeat_interleave(rollouts.mask_bt.sum(1))
    found = [flat_gradient((weight_n * it.loss(make_rows(ctx, it.prepare(rollouts, ctx)), ctx).value_n).sum(),
                           world.student) for it in (method, exact)]
    assert float(found[1].norm()) > 0.02 and near(found[0], found[1])


# ---------------------------------------------------------------------------------------------------------------- sdpo


def test_sdpos_bucket_makes_both_sides_sum_to_one_and_all_actions_are_the_full_divergence() -> None:
    teacher, student = (Categorical(random_logits(7, 6, seed=seed)) for seed in (1, 2))
    for k in (1, 3, 5):
        pair = Comparison("student", k).pair(teacher, student)
        for side, mass_n in ((pair.teacher, pair.teacher_mass_n), (pair.student, pair.student_mass_n)):
            assert near(side.logp_na.exp().sum(-1), 1.0) and mass_n is not None
            assert near(side.logp_na[:, -1], torch.log(-torch.expm1(mass_n.log())), 1e-9)
    whole = Comparison("student", 6).pair(teacher, student)
    assert near(generalized_jsd(whole.teacher, whole.student, 0.3), generalized_jsd(teacher, student, 0.3))


def test_sdpos_middle_is_symmetric_at_a_half_and_its_ends_are_the_kls() -> None:
    p, q = (Categorical(random_logits(7, 6, seed=seed)) for seed in (1, 2))
    assert near(generalized_jsd(p, q, 0.5), generalized_jsd(q, p, 0.5))
    m = 0.7 * q.p_na + 0.3 * p.p_na  # alpha 0.3: 0.7 KL(q || m) + 0.3 KL(p || m)
    stated = 0.7 * (q.p_na * (q.logp_na - m.log())).sum(-1) + 0.3 * (p.p_na * (p.logp_na - m.log())).sum(-1)
    assert near(generalized_jsd(p, q, 0.3), stated)


def contexts(**params: Any) -> tuple[SDPO, Context, Rollouts]:
    ctx, method = context(small_language()), make(SDPO, **params)
    assert isinstance(method, SDPO)
    ctx.begin_step()
    return method, ctx, method.collect(ctx)


def test_sdpo_never_shows_an_answer_itself_and_hears_feedback_only_without_a_sibling() -> None:
    method, ctx, rollouts = contexts(group=4)
    rollouts = rewarded(rollouts, [0, 1, 0, 0, 0, 0, 0, 0])
    texts = ctx.prompts.written(rollouts)
    found = method.contexts(rollouts, ctx)
    assert [notes and notes.get("success") for notes in found] == [texts[1], None, texts[1], texts[1], *[None] * 4]
    assert all(("feedback" in notes) != ("success" in notes) for notes in found if notes)
    never = make(SDPO, group=4, feedback="never")
    assert isinstance(never, SDPO)
    assert [notes is None for notes in never.contexts(rollouts, ctx)] == [False, True, False, False, *[True] * 4]


def test_sdpo_leaves_out_what_has_no_context_and_a_batch_of_nothing_else_makes_no_update() -> None:
    method, ctx, rollouts = contexts(group=4, feedback="never")
    kept = method.prepare(rewarded(rollouts, [0, 1, 0, 0, 0, 0, 0, 0]), ctx)
    assert kept.n_trajectories == 3 and ctx.notes["without_context"] == 5
    assert method.prepare(rewarded(rollouts, [0.0] * 8), ctx).n_trajectories == 0

    class Failing(SDPO):
        name = "failing"

        def collect(self, ctx: Context) -> Rollouts:
            return rewarded(super().collect(ctx), [0.0] * 8)

    world = small_language()
    before = world.student.table.detach().clone()  # type: ignore[attr-defined]
    trainer = Trainer(make(Failing, feedback="never"), context(world))
    figures = trainer.step()
    assert figures["empty_minibatches"] == 1 and figures["without_context"] == 8 and "loss" not in figures
    assert torch.equal(before, world.student.table.detach())  # type: ignore[attr-defined]


def test_sdpo_refuses_what_could_never_teach() -> None:
    with pytest.raises(UserError, match="alone has no siblings"):
        make(SDPO, group=1, feedback="never").collect(context(small_language()))
    with pytest.raises(ValueError, match="reverse KL only"):
        make(SDPO, estimator="sampled")


# ---------------------------------------------------------------------------------------------------------------- rlsd


def test_rlsds_weight_keeps_the_sign_and_stays_within_its_bounds() -> None:
    advantage, gap = random_logits(50, seed=1), 4 * random_logits(50, seed=2)
    found = weighted(advantage, gap, 0.5, 0.2)
    share = found / advantage
    assert torch.equal(found.sign(), advantage.sign())
    assert bool((share >= 0.9 - 1e-9).all() & (share <= 1.1 + 1e-9).all())
    assert near(weighted(advantage, gap, 0.0, 0.2), advantage)
    assert near(weighted(advantage, 0 * gap, 0.5, 0.2), advantage)
    likelier = weighted(torch.tensor([1.0, -1.0]), torch.tensor([0.1, 0.1]), 1.0, 0.2)
    assert float(likelier[0]) > 1 and -1 < float(likelier[1]) < 0  # what the teacher likes: more credit, less blame


def test_rlsd_ends_as_grpo() -> None:
    world = small_language()
    ctx, method = context(world), make(RLSD, decay_steps=1)
    ctx.ledger.steps = 1
    rollouts = method.collect(ctx)
    prepared = method.prepare(rollouts, ctx)
    assert TEACHER_LOGP not in prepared.columns
    assert near(prepared.columns["advantage"], method.advantage(rollouts, ctx))  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------------------------------------- ptd-po


def ptd(outcome_b: list[float], **params: Any) -> tuple[Tensor, Tensor]:
    """PTD-PO's loss without a penalty, and GRPO's surrogate, in every row of one batch with these verdicts."""
    ctx, method = context(small_language()), make(PTDPO, group=4, kl_coefficient=0.0, **params)
    ctx.begin_step()
    rollouts = rewarded(method.collect(ctx), outcome_b)
    rows = make_rows(ctx, method.prepare(rollouts, ctx))
    return method.loss(rows, ctx).value_n, -rows.columns["advantage"]


def test_ptd_po_on_right_answers_is_grpo_and_teaches_only_wrong_ones() -> None:
    value_n, plain_n = ptd([1.0] * 8)
    assert near(value_n.detach(), plain_n, 1e-6)  # the behaviour's log-probability is float32
    value_n, plain_n = ptd([1.0, 0.0] * 4, coefficient=0.0)
    assert near(value_n.detach(), plain_n, 1e-6)
    value_n, plain_n = ptd([1.0] * 4 + [1.0, 0.0, 1.0, 1.0])
    assert 0 < int(((value_n - plain_n).detach().abs() > 1e-5).sum()) <= 3  # the rows of one answer


def test_ptd_pos_divergence_has_a_gradient() -> None:
    """The official code detaches it, so that it has none."""
    value_n, _ = ptd([0.0] * 8)  # no advantage at all
    assert value_n.requires_grad and float(value_n.detach().sum()) > 0


# -------------------------------------------------------------------------------- sdft, ogls-sd, safesteer, and all


def test_sdft_leaves_out_the_first_tokens_and_keeps_a_short_answers_last() -> None:
    ctx, method = context(small_language()), make(SDFT, skip=2)
    rollouts = method.collect(ctx)
    kept = method.prepare(rollouts, ctx).mask_bt
    for before, after in zip(rollouts.mask_bt, kept, strict=True):
        places = before.nonzero()[:, 0].tolist()
        assert after.nonzero()[:, 0].tolist() == (places[2:] or places[-1:])


def test_ogls_needs_a_sibling_of_each_kind_and_counts_what_has_none() -> None:
    ctx, method = context(small_language()), make(OGLSSD, group=4, likelihood=0.0)
    ctx.begin_step()
    rollouts = rewarded(method.collect(ctx), [1, 0, 0, 0, 0, 0, 0, 0])
    prepared = method.prepare(rollouts, ctx)
    assert ctx.notes["without_context"] == 4 and prepared.mask_bt.any(1).tolist() == [False, *[True] * 3, *[False] * 4]
    none = method.prepare(rewarded(rollouts, [0.0] * 8), ctx)
    assert none.n_rows == 0


def test_ogls_of_strength_zero_is_the_student_itself() -> None:
    ctx, method = context(small_language()), make(OGLSSD, group=4, likelihood=0.0, strength=0.0)
    ctx.begin_step()
    rows = make_rows(ctx, method.prepare(rewarded(method.collect(ctx), [1, 0, 0, 0, 1, 0, 0, 0]), ctx))
    assert near(method.loss(rows, ctx).value_n.detach(), 0.0) and len(rows)


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_safesteer_without_a_direction_starts_at_rest_and_with_all_tokens_is_the_reverse_kl(scale: float) -> None:
    world = small_language()
    ctx, method = context(world, batch=32), make(SafeSteer, scale=scale, top=3, tokens=3)
    ctx.begin_step()
    rows = make_rows(ctx, method.prepare(method.collect(ctx), ctx))
    value_n = method.loss(rows, ctx).value_n
    gradient = flat_gradient(value_n.sum(), world.student)
    assert ctx.notes["unmarked"] > 0 and len(value_n)
    if scale == 0:
        assert near(value_n.detach(), 0.0) and near(gradient, 0.0, 1e-9)
    else:
        assert bool((value_n > -1e-12).all()) and float(gradient.norm()) > 0.01


def test_safesteer_refuses_a_task_that_marks_nothing() -> None:
    world = small_language()
    world.task.marks = lambda example: False  # type: ignore[method-assign]
    with pytest.raises(UserError, match="marks none"):
        Trainer(make(SafeSteer), context(world)).step()
