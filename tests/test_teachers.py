"""Teachers made of others and teachers that are the student, on control tasks and through whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opdbench import worlds
from opdbench.actors import Student, Teacher
from opdbench.context import Context
from opdbench.copies import averaged, averages, frozen
from opdbench.ledger import Ledger
from opdbench.loop import Trainer
from opdbench.policy import Policy
from opdbench.resolve import Plan
from opdbench.signals import Cancelled
from opdbench.teachers import Mixture
from tests.test_run import Watcher, execute, plan_of

MIX = "mix:cartpole/teacher=0.7,student=0.3"


def logits(policy: Policy, input_bt: Tensor) -> Tensor:
    length_b = torch.full(input_bt.shape[:1], input_bt.shape[1])
    return policy.project(policy.features(input_bt, length_b).flatten(0, 1)).detach()


def trainer_of(plan: Plan) -> Trainer:
    recipe = plan.spec.recipe
    return Trainer(plan.new_method(), Context(worlds.build(plan), recipe.training, recipe.budget, plan.spec.execution,
                                              Ledger(), recipe.seed))


def test_probabilities_are_mixed_exactly_and_chunk_by_chunk() -> None:
    world = worlds.build(plan_of("opd", "dtype=float64", teacher=MIX))
    assert isinstance(world.teacher, Mixture)
    one, other = world.teacher.policies
    input_bt = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    expected = 0.7 * logits(one, input_bt).softmax(-1) + 0.3 * logits(other, input_bt).softmax(-1)
    mixed = logits(world.teacher, input_bt)
    torch.testing.assert_close(mixed.exp(), expected, rtol=1e-12, atol=0)
    assert world.teacher.forward_flops(7, 1) == one.forward_flops(7, 1) + other.forward_flops(7, 1)
    features_nh = world.teacher.features(input_bt, torch.full((3,), 5)).flatten(0, 1)
    chunks = torch.cat([world.teacher.project(chunk_nh) for chunk_nh in features_nh.split(4)])
    torch.testing.assert_close(chunks, mixed)


def test_a_mixture_of_precisions_gives_each_part_its_own() -> None:
    one = worlds.build(plan_of("opd", "dtype=float64")).student
    other = frozen(one).to(torch.float32)
    mixture = Mixture([one, other], torch.zeros(1, 1, 4), [0.5, 0.5])
    input_bt = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(mixture, input_bt), logits(one, input_bt).log_softmax(-1), rtol=1e-6, atol=1e-6)


def test_acting_has_the_mixtures_frequencies() -> None:
    world = worlds.build(plan_of("opd", teacher=MIX))
    assert world.teacher is not None
    rollouts = world.rollout(Teacher(), n=64, horizon=64, generator=torch.Generator().manual_seed(0))
    p_n = logits(world.teacher, rollouts.input_bt).softmax(-1)[:, 1]
    chosen_n = rollouts.action_bt.flatten().float()
    deviation = float((chosen_n - p_n).sum() / (p_n * (1 - p_n)).sum().sqrt())
    assert abs(deviation) < 4 and float((p_n * (1 - p_n)).mean()) > 0.01
    torch.testing.assert_close(rollouts.behaviour_logp_bt.flatten(), torch.where(chosen_n == 1, p_n, 1 - p_n).log(),
                               rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["cartpole", "chain-sum"])
@pytest.mark.parametrize("teacher", ["student", "ema:0.9"])
@pytest.mark.parametrize(("method", "setting"), [("opd", "batch=4"), ("gkd", "divergence=reverse_kl")])
def test_at_first_the_student_agrees_with_itself_exactly(task: str, teacher: str, method: str, setting: str) -> None:
    trainer = trainer_of(plan_of(method, setting, task=task, teacher=teacher))
    figures = trainer.step()
    assert figures["loss"] == 0 and figures["reverse_kl"] == 0


def test_a_frozen_teacher_stays_and_a_moving_one_is_the_average() -> None:
    student = worlds.build(plan_of("opd")).student
    stays, moves = frozen(student), averaged(student, 0.75)
    start = {name: weight.clone() for name, weight in student.state_dict().items()}
    expected = dict(start)
    for step in range(3):
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(0.1 * (step + 1))
        (average,) = averages(moves)
        average.follow(student)
        expected = {name: 0.75 * weight + 0.25 * student.state_dict()[name] for name, weight in expected.items()}
    for name, weight in start.items():
        assert torch.equal(stays.state_dict()[name], weight)
        torch.testing.assert_close(moves.state_dict()[name], expected[name])
    assert averages(stays) == [] and averages(None) == []
    assert not any(parameter.requires_grad for copy in (stays, moves) for parameter in copy.parameters())


def test_an_average_of_bfloat16_weights_does_not_stand_still() -> None:
    student = worlds.build(plan_of("opd")).student.bfloat16()
    teacher = averaged(student, 0.999)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.fill_(1.0)
    for parameter in teacher.parameters():
        before = parameter.clone()
    for _ in range(2000):
        averages(teacher)[0].follow(student)
    assert parameter.dtype == torch.bfloat16
    torch.testing.assert_close(parameter.float(), 1 + 0.999**2000 * (before.float() - 1), rtol=0.005, atol=0.005)


@pytest.mark.parametrize(("method", "teacher"), [("dagger", "ema:0.5"),
                                                 ("opd", "mix:cartpole/teacher=0.5,ema:0.5=0.5")])
def test_a_run_with_a_moving_teacher_resumes_exactly(method: str, teacher: str, tmp_path: Path) -> None:
    plan = plan_of(method, teacher=teacher)
    whole, whole_folder = execute(plan, tmp_path / "whole")

    def stop(step: int) -> None:
        if step == 5:
            raise Cancelled(2)

    with pytest.raises(Cancelled):
        execute(plan, tmp_path / "cut", Watcher(stop))
    resumed, folder = execute(plan, tmp_path / "cut")
    assert resumed.curve == whole.curve and resumed.times.resumed == 1
    ours, theirs = (load_file(place.student / "policy.safetensors") for place in (whole_folder, folder))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_moving_teacher_moves_once_a_step() -> None:
    trainer = trainer_of(plan_of("opd", teacher="mix:cartpole/teacher=0.5,ema:0.5=0.5"))
    world = trainer.ctx.world
    assert isinstance(world.teacher, Mixture)
    before = {name: weight.clone() for name, weight in world.student.state_dict().items()}
    trainer.step()
    moved = world.teacher.policies[1].state_dict()
    for name, weight in world.student.state_dict().items():
        torch.testing.assert_close(moved[name], 0.5 * before[name] + 0.5 * weight)
    assert any(not torch.equal(before[name], moved[name]) for name in before)


def test_an_earlier_student_can_teach(tmp_path: Path) -> None:
    record, folder = execute(plan_of("opd"), tmp_path)
    again, _ = execute(plan_of("opd", teacher=str(folder.student)), tmp_path)
    assert again.teacher["greedy"].mean == record.after["greedy"].mean


def test_the_student_acts_while_its_average_teaches() -> None:
    world = worlds.build(plan_of("opd", teacher="ema:0.5"))
    assert world.teacher is not world.student
    one, other = (world.rollout(actor, n=2, horizon=8, generator=torch.Generator().manual_seed(0))
                  for actor in (Student(), Teacher()))
    assert one.input_bt.shape == other.input_bt.shape
