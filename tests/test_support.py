"""What a vocabulary support keeps of a divergence, and what it does to its gradient."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opdbench import divergences
from opdbench.distributions import Categorical
from opdbench.errors import UserError
from opdbench.support import Comparison, TopK
from tests.enumerable import leaf, near, random_logits

N, A = 6, 11
KINDS = ("teacher", "student", "union", "intersection")
TAILS = ("bucket", "renormalise", "stop_gradient")
ALL = [divergences.forward_kl, divergences.reverse_kl, divergences.total_variation, divergences.jeffreys]


@pytest.fixture
def teacher() -> Categorical:
    return Categorical(random_logits(N, A, seed=1))


def gradient(value_n: Tensor, logits_na: Tensor) -> Tensor:
    return torch.autograd.grad(value_n.sum(), logits_na, retain_graph=True)[0]


def support_of(kind: str, teacher: Categorical, student: Categorical, k: int) -> list[set[int]]:
    """By sets, row by row."""
    top = [[set(row) for row in side.logits_na.topk(k).indices.tolist()] for side in (teacher, student)]
    combine = {"teacher": lambda p, q: p, "student": lambda p, q: q, "union": set.union,
               "intersection": set.intersection}[kind]
    return [combine(p, q) for p, q in zip(*top, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", ALL)
def test_bucket_and_renormalised_are_the_divergences_of_the_distributions_that_they_say(
        kind: str, divergence: object, teacher: Categorical) -> None:
    student = Categorical(leaf(N, A, seed=2))
    for row, inside in enumerate(support_of(kind, teacher, student, 4)):
        ids = sorted(inside)
        p_a, q_a = teacher.p_na[row], student.p_na[row]
        events = [torch.cat([side[ids], 1 - side[ids].sum(0, keepdim=True)]) for side in (p_a, q_a)]
        for tail, (p_m, q_m) in {"bucket": events,
                                 "renormalise": [side[:-1] / side[:-1].sum() for side in events]}.items():
            pair = Comparison(kind, 4, tail).pair(teacher, student)
            value = divergence(pair.teacher, pair.student)[row]
            expected = divergence(Categorical(p_m.log()[None].detach()), Categorical(q_m.log()[None]))[0] if ids \
                else torch.zeros(())
            assert near(value, expected, 1e-9)
            if ids:
                found = torch.autograd.grad(value, student.logits_na, retain_graph=True)[0]
                wanted = torch.autograd.grad(expected, student.logits_na, retain_graph=True)[0]
                assert near(found, wanted, 1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_never_exceeds_the_full_divergence_and_masses_are_logged(kind: str, teacher: Categorical) -> None:
    student = Categorical(random_logits(N, A, seed=2))
    pair = Comparison(kind, 3).pair(teacher, student)
    assert (divergences.forward_kl(pair.teacher, pair.student) <= divergences.forward_kl(teacher, student)).all()
    sets = support_of(kind, teacher, student, 3)
    for mass_n, side in ((pair.teacher_mass_n, teacher), (pair.student_mass_n, student)):
        expected_n = torch.stack([side.p_na[row, sorted(inside)].sum() for row, inside in enumerate(sets)])
        assert mass_n is not None and near(mass_n, expected_n, 1e-12)


def test_as_many_actions_as_there_are_is_the_full_divergence(teacher: Categorical) -> None:
    student = Categorical(leaf(N, A, seed=2))
    full_n = divergences.reverse_kl(teacher, student)
    for kind in KINDS:
        for tail in TAILS:
            pair = Comparison(kind, A, tail).pair(teacher, student)
            value_n = divergences.reverse_kl(pair.teacher, pair.student)
            assert torch.equal(value_n, full_n)
            assert torch.equal(gradient(value_n, student.logits_na), gradient(full_n, student.logits_na))
    almost = Comparison("union", A - 1).pair(teacher, student)  # whose union may be everything
    assert near(gradient(divergences.reverse_kl(almost.teacher, almost.student), student.logits_na),
                gradient(full_n, student.logits_na), 1e-9)


@pytest.mark.parametrize("kind", ("teacher", "student", "union"))
def test_stop_gradient_is_the_plain_sum_without_the_gradient_of_the_mass(kind: str, teacher: Categorical) -> None:
    """The captured-mass identity: (no tail) - (stop gradient) = grad sum_S q."""
    student = Categorical(leaf(N, A, seed=2))
    inside_na = torch.zeros(N, A, dtype=torch.bool)
    for row, inside in enumerate(support_of(kind, teacher, student, 4)):
        inside_na[row, sorted(inside)] = True
    q_na, ratio_na = student.p_na, student.logp_na - teacher.logp_na
    no_tail_n = (q_na * ratio_na).masked_fill(~inside_na, 0).sum(-1)
    mass_n = q_na.masked_fill(~inside_na, 0).sum(-1)
    pair = Comparison(kind, 4, "stop_gradient").pair(teacher, student)
    found = gradient(divergences.reverse_kl(pair.teacher, pair.student), student.logits_na)
    assert near(gradient(no_tail_n, student.logits_na) - found, gradient(mass_n, student.logits_na), 1e-12)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_distributions_give_no_loss_and_no_gradient(kind: str, tail: str) -> None:
    student = Categorical(leaf(N, A, seed=2))
    pair = Comparison(kind, 4, tail, temperature=0.7).pair(student.detach(), student)
    for divergence in ALL:
        value_n = divergence(pair.teacher, pair.student)
        assert near(value_n, 0.0) and near(gradient(value_n, student.logits_na), 0.0)


@pytest.mark.parametrize("tail", TAILS)
def test_disjoint_supports_and_impossible_actions_give_finite_gradients(tail: str) -> None:
    logits_na = torch.full((2, 4), -50.0, dtype=torch.float64)
    logits_na[:, 0] = 0.0
    logits_na[1, 2:] = -math.inf
    student_na = logits_na.flip(-1).clone().requires_grad_()
    student_na.data[1] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    student = Categorical(student_na)
    for kind in KINDS:
        pair = Comparison(kind, 1, tail).pair(Categorical(logits_na), student)
        value_n = divergences.forward_kl(pair.teacher, pair.student)
        assert value_n.isfinite().all() and gradient(value_n, student_na).isfinite().all(), kind


def test_what_a_server_reveals_of_its_top_k_is_compared_as_the_teacher_itself(teacher: Categorical) -> None:
    student = Categorical(leaf(N, A, seed=2))
    top = teacher.logp_na.topk(6)
    revealed = TopK(top.indices, top.values)
    for tail in TAILS:
        in_process, remote = (Comparison("teacher", 4, tail).pair(side, student) for side in (teacher, revealed))
        first_n, second_n = (divergences.forward_kl(pair.teacher, pair.student) for pair in (in_process, remote))
        assert near(first_n, second_n, 1e-9)
        assert near(gradient(first_n, student.logits_na), gradient(second_n, student.logits_na), 1e-9)
    hot = Comparison("teacher", 4, "renormalise", temperature=2.0)
    first_n, second_n = (divergences.forward_kl(pair.teacher, pair.student)
                         for pair in (hot.pair(teacher, student), hot.pair(revealed, student)))
    assert near(first_n, second_n, 1e-9)


def test_what_a_top_k_teacher_cannot_answer_is_refused(teacher: Categorical) -> None:
    top = teacher.logp_na.topk(3)
    revealed, student = TopK(top.indices, top.values), Categorical(random_logits(N, A))
    refused = {"support=full": Comparison("full"), "support=student": Comparison("student", 2),
               "top_k=3": Comparison("teacher", 4), "tail": Comparison("teacher", 2, temperature=2.0)}
    for word, comparison in refused.items():
        with pytest.raises(UserError) as error:
            comparison.pair(revealed, student)
        assert word in f"{error.value.problem} {error.value.fix}"
