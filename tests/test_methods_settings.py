"""What the settings of the methods mean: who writes, how hot, and what two methods have in common (L8, L12)."""

from __future__ import annotations

import math
from itertools import pairwise, product
from typing import Any

import pytest
import torch
from torch import Tensor

from opdbench.baselines.dagger import DAgger
from opdbench.baselines.gkd import GKD
from opdbench.baselines.kd import KD
from opdbench.baselines.opd import OPD
from opdbench.baselines.sft import SFT
from opdbench.conformance.enumerable import EnumerableWorld, PrefixPolicy, trajectory_logp
from opdbench.conformance.harness import gradient, make_rows
from opdbench.distiller import Distiller
from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl
from opdbench.loop import Trainer
from opdbench.rollouts import Source
from tests.enumerable import (
    context,
    distributions,
    expected_loss,
    flat_gradient,
    generator,
    make,
    near,
    small_language,
    trajectory_weights,
)


@pytest.fixture(params=[False, True], ids=["plain", "with an environment"])
def world(request: pytest.FixtureRequest) -> EnumerableWorld:
    return small_language(echo=request.param)


def test_l12_gkd_without_student_samples_is_supervised_kd(world: EnumerableWorld) -> None:
    """lmbda = 0, forward KL, temperature 1: the same batches, losses and weights as `kd`, step by step."""
    def run(method: Distiller) -> list[Tensor]:
        here = small_language(echo=world.task.echo)
        trainer = Trainer(method, context(here))
        losses = [trainer.step()["loss"] for _ in range(4)]
        return [torch.tensor(losses), *(weight.detach() for weight in here.student.parameters())]

    supervised = run(make(KD))
    for one, other in zip(run(make(GKD, lmbda=0.0, divergence="forward_kl")), supervised, strict=True):
        assert torch.equal(one, other)
    solutions = run(make(GKD, lmbda=0.0, divergence="forward_kl", data="solutions"))
    for one, other in zip(solutions, run(make(KD, data="solutions")), strict=True):
        assert torch.equal(one, other)


def test_l12_a_certain_teacher_makes_gkd_and_kd_maximum_likelihood(world: EnumerableWorld) -> None:
    certain = PrefixPolicy(generator(2), scale=3000.0)
    here = EnumerableWorld(world.student, certain, echo=world.task.echo)
    rollouts = here.completions()
    likely = rollouts.select((trajectory_logp(certain, rollouts) > -1e-3).nonzero()[:, 0])
    assert likely.n_trajectories == 4  # one completion a prompt
    ctx = context(here)
    hard_loss, hard = gradient(make(SFT), ctx, likely)
    for method in (make(KD), make(GKD, divergence="forward_kl")):
        soft_loss, soft = gradient(method, ctx, ctx.score(likely, method.requires()))
        assert soft_loss == pytest.approx(hard_loss, abs=1e-6)
        assert all(near(soft[name], hard[name], 1e-6) for name in hard)


@pytest.mark.parametrize(("lmbda", "source"), [(1.0, Source.STUDENT), (0.0, Source.TEACHER)])
def test_l12_at_the_ends_of_lmbda_only_one_side_writes(lmbda: float, source: Source) -> None:
    world = small_language()
    ctx, method = context(world, batch=2), make(GKD, lmbda=lmbda)
    for ctx.ledger.steps in range(50):
        ctx.begin_step()
        rollouts = method.collect(ctx)
        assert rollouts.count(source) == rollouts.n_rows


def test_l12_the_share_of_on_policy_steps_is_binomial_and_repeats_with_the_seed() -> None:
    """Trap: the draw must be the same on every rank and after a resume; here it depends on (seed, step) alone."""
    def on_policy_steps(seed: int, n: int = 600) -> list[bool]:
        ctx, method = context(small_language(), seed=seed, batch=1, horizon=1), make(GKD, lmbda=0.3)
        found = []
        for ctx.ledger.steps in range(n):
            ctx.begin_step()
            found.append(method.collect(ctx).count(Source.STUDENT) == 1)
        return found

    first = on_policy_steps(0)
    assert first == on_policy_steps(0) and first != on_policy_steps(1)
    assert abs(sum(first) / 600 - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 600)
    followed = sum(now and then for now, then in pairwise(first)) / 599
    assert abs(followed - 0.09) < 4 * math.sqrt(0.09 * 0.91 / 599)  # neighbouring steps are independent


def test_sampling_and_loss_temperatures_are_separate(world: EnumerableWorld) -> None:
    """Trap: one knob for both. Sampling at T changes who is visited, and the loss at tau what is compared."""
    rollouts = world.completions()
    for cls, params in ((GKD, {"divergence": "forward_kl"}), (KD, {})):
        losses = {(tau, temperature): expected_loss(
            make(cls, **params), context(world, temperature=temperature, loss_temperature=tau), rollouts,
            world.student).item() for tau, temperature in product((1.0, 3.0), (1.0, 2.0))}
        assert losses[1.0, 1.0] == losses[1.0, 2.0] != losses[3.0, 1.0] == losses[3.0, 2.0]
        teacher, student = distributions(world, rollouts)
        tempered = forward_kl(Categorical(teacher.logits_na.detach() / 3), Categorical(student.logits_na / 3))
        factor = 9 if cls is KD else 1  # Hinton's tau squared
        assert losses[3.0, 1.0] == pytest.approx(
            factor * (trajectory_weights(rollouts, world.student) * tempered).sum().item(), rel=1e-12)


@pytest.mark.parametrize(("cls", "params", "knob"), [
    (OPD, {}, "temperature"), (GKD, {}, "temperature"), (DAgger, {"beta": "never"}, "temperature"),
    (SFT, {}, "teacher_temperature"), (KD, {}, "teacher_temperature"), (DAgger, {}, "teacher_temperature")])
def test_rollouts_are_sampled_at_the_temperature_of_who_writes(cls: type[Distiller], params: dict[str, Any],
                                                               knob: str) -> None:
    world = small_language()
    rollouts = make(cls, **params).collect(context(world, **{knob: 2.5}))
    writer = world.student if knob == "temperature" else world.teacher
    assert writer is not None
    logits = writer.project(writer.features(rollouts.input_bt, rollouts.length_b))[rollouts.mask_bt] / 2.5
    expected_n = Categorical(logits).logp(rollouts.action_bt[rollouts.mask_bt])
    assert near(rollouts.behaviour_logp_bt[rollouts.mask_bt].double(), expected_n, 1e-5)


def test_l8_kd_at_a_high_temperature_regresses_centred_logits(world: EnumerableWorld) -> None:
    rollouts, ctx, method = world.completions(), context(world, loss_temperature=500.0), make(KD)
    rows = make_rows(ctx, ctx.score(rollouts, method.requires()))
    student, teacher = rows.student.logits_na, rows.teacher.logits_na
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    regression = flat_gradient((centred.square() / 6).sum(), world.student, retain_graph=True)
    found = flat_gradient(method.loss(rows, ctx).value_n.sum(), world.student)
    assert near(found, regression, 1e-2 * float(regression.abs().max()))
