"""The six objectives of Distilling Policy Distillation, against exact gradients over every trajectory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from opdbench.baselines.dpd import DPD
from opdbench.conformance.compare import same_bits
from opdbench.conformance.enumerable import EnumerableWorld, trajectory_logp
from opdbench.conformance.harness import make_rows
from opdbench.loop import Trainer
from opdbench.rl.world import ControlWorld, fresh_student
from opdbench.rollouts import Rollouts
from opdbench.tasks.grid_world import GridWorld
from tests.enumerable import (
    context,
    distributions,
    expected_loss,
    flat_gradient,
    interrupted,
    make,
    near,
    small_language,
    trajectory_weights,
)


def objective(world: EnumerableWorld, rollouts: Rollouts, variant: str, student_entropy: bool) -> Tensor:
    """What a variant says that it minimises, exactly: differentiable through who visits what."""
    assert world.teacher is not None
    if variant == "n-distill":
        teacher, student = distributions(world, rollouts)
        cross_n = -(teacher.p_na.detach() * student.logp_na).sum(-1)
        return (trajectory_weights(rollouts, world.student) * cross_n).sum()
    logq_b, logp_b = (trajectory_logp(policy, rollouts) for policy in (world.student, world.teacher))
    return (logq_b.exp() * ((logq_b if student_entropy else 0.0) - logp_b.detach())).sum() / 4


FIELDS = [("entropy-regularised", False), ("entropy-regularised", True), ("n-distill", False),
          ("expected-entropy-regularised", False), ("expected-entropy-regularised", True)]


@pytest.mark.parametrize("echo", [False, True], ids=["plain", "with an environment"])
@pytest.mark.parametrize(("variant", "student_entropy"), FIELDS)
def test_r6_the_expected_update_is_the_exact_gradient_over_all_trajectories(variant: str, student_entropy: bool,
                                                                             echo: bool) -> None:
    """Later states included: nothing is held fixed, which is what makes these gradient fields (Theorem 2)."""
    world = small_language(echo=echo)
    rollouts = world.completions()
    exact = flat_gradient(objective(world, rollouts, variant, student_entropy), world.student)
    method = make(DPD, variant=variant, student_entropy=student_entropy, discount=1.0)
    found = flat_gradient(expected_loss(method, context(world), rollouts, world.student), world.student)
    assert float(exact.norm()) > 0.1 and near(found, exact, 1e-10)
    fixed = make(DPD, variant="on-policy")  # which holds the visited states fixed, is another field
    other = flat_gradient(expected_loss(fixed, context(world), rollouts, world.student), world.student)
    assert float((other - exact).norm()) > 0.05


def test_r6_the_expectation_over_the_own_action_has_less_variance() -> None:
    """Of the update of one sampled trajectory, summed over the weights."""
    world = small_language()
    rollouts = world.completions()
    weight_b = trajectory_logp(world.student, rollouts).detach().exp() / 4
    variances = []
    for variant in ("entropy-regularised", "expected-entropy-regularised"):
        method, ctx = make(DPD, variant=variant, discount=1.0), context(world)
        prepared = method.prepare(ctx.score(rollouts, method.requires()), ctx)
        gradients = [flat_gradient(method.loss(make_rows(ctx, prepared.select([b])), ctx).value_n.sum(), world.student)
                     for b in range(rollouts.n_trajectories)]
        gradient_bw = torch.stack(gradients)
        mean_w = (weight_b[:, None] * gradient_bw).sum(0)
        variances.append(float((weight_b * (gradient_bw - mean_w).square().sum(1)).sum()))
    assert variances[1] < 0.8 * variances[0]


@pytest.mark.parametrize(("student_entropy", "rests"), [(True, True), (False, False)])
def test_r7_only_with_the_students_entropy_does_the_teacher_rest(student_entropy: bool, rests: bool) -> None:
    """Without it the minimum is deterministic: at the teacher itself the update still sharpens."""
    world = small_language()
    world.student.load_state_dict(world.teacher.state_dict())  # type: ignore[union-attr]
    method = make(DPD, student_entropy=student_entropy, discount=1.0)
    found = flat_gradient(expected_loss(method, context(world), world.completions(), world.student), world.student)
    assert near(found, 0.0, 1e-10) == rests


def test_plus_r_adds_the_gradient_of_the_expected_reward() -> None:
    world = small_language()
    rollouts = world.completions()
    reward_b = rollouts.reward_bt.sum(1)
    exact = flat_gradient(-(trajectory_logp(world.student, rollouts).exp() * reward_b).sum() / 4, world.student)
    found = [flat_gradient(expected_loss(make(DPD, variant="n-distill", reward=reward, discount=1.0), context(world),
                                         rollouts, world.student), world.student) for reward in (0.0, 0.3)]
    assert float(exact.norm()) > 0.005 and near(found[1] - found[0], 0.3 * exact, 1e-8)


def grid(size: int = 5, **params: Any) -> ControlWorld:
    task = GridWorld(params=GridWorld.Params(size=size, **params))
    return ControlWorld(task, fresh_student(task, 0).double(), task.exact_teacher().double(), seed=0)


def test_r8_the_shaped_return_telescopes() -> None:
    """sum of r + gamma V(s') - V(s) over what is known of an episode, by plain loops."""
    world, discount = grid(), 0.9
    ctx, method = context(world, batch=6, horizon=40), make(DPD, variant="teacher-value", discount=discount)
    rollouts = method.prepare(ctx.score(method.collect(ctx), method.requires()), ctx)
    value_s = world.teacher.value_s  # type: ignore[union-attr]
    assert rollouts.done_bt.any() and not rollouts.columns["truncated"].any()
    for b in range(6):
        state_t, done_t = rollouts.input_bt[b].argmax(-1), rollouts.done_bt[b]
        for t in range(40):
            total, weight = 0.0, 1.0
            for i in range(t, 40):
                if i == 39 and not done_t[i]:
                    break  # its successor is not in the segment
                after = 0.0 if done_t[i] else float(value_s[state_t[i + 1]])
                total += weight * (float(rollouts.reward_bt[b, i]) + discount * after - float(value_s[state_t[i]]))
                weight *= discount
                if done_t[i]:
                    break
            assert float(rollouts.columns["return"][b, t]) == pytest.approx(total, abs=1e-5)


def test_the_value_gate_is_a_comparison_and_resumes() -> None:
    """It closes where the teacher's value is below the student's, and its critic is part of a checkpoint."""
    def trainer() -> Trainer:
        return Trainer(make(DPD, variant="on-policy", value_gate=True), context(grid(corrupted=0.5), horizon=20))

    whole, _, resumed = interrupted(trainer)
    assert same_bits(whole.ctx.student.table, resumed.ctx.student.table)
    method, ctx = whole.method, whole.ctx
    ctx.begin_step()
    rollouts = ctx.score(method.collect(ctx), method.requires())
    state_n = rollouts.input_bt.flatten(0, 1)
    critic_n = method.critic.values(state_n)  # type: ignore[attr-defined]
    gate_n = method.prepare(rollouts, ctx).columns["gate"].flatten()
    assert torch.equal(gate_n, ctx.world.teacher.value_s[state_n.argmax(-1)] > critic_n)  # type: ignore[union-attr,index]
    assert gate_n.any() and not gate_n.all() and float(critic_n.abs().max()) > 0


@pytest.mark.parametrize("params", [
    {"variant": "teacher", "reward": 1.0}, {"variant": "teacher-value", "reward": 1.0}, {"value_gate": True},
    {"variant": "on-policy", "student_entropy": True}, {"variant": "teacher", "value_gate": True}])
def test_combinations_that_mean_nothing_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="is for variant="):
        make(DPD, **params)


@pytest.mark.parametrize("variant", ["teacher", "on-policy", "entropy-regularised", "n-distill",
                                     "expected-entropy-regularised", "teacher-value"])
def test_every_variant_brings_a_student_of_a_grid_nearer_to_its_teacher(variant: str) -> None:
    """In exact expected return, after 30 rounds."""
    world = grid(grid=3)
    mdp = world.task.grid.mdp()  # type: ignore[attr-defined]
    trainer = Trainer(make(DPD, variant=variant, baseline="mean"), context(world, lr=0.1, batch=16, horizon=20))
    before = mdp.expected_return(world.student.table.detach().softmax(-1).numpy())  # type: ignore[union-attr,operator]
    for _ in range(30):
        trainer.step()
    after = mdp.expected_return(world.student.table.detach().softmax(-1).numpy())  # type: ignore[union-attr,operator]
    teacher = mdp.expected_return(world.teacher.table.detach().softmax(-1).numpy())  # type: ignore[union-attr,operator]
    assert after > before + 0.3 * (teacher - before)
