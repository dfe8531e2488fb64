"""Actors draw from the distribution that they say they draw from, and say whose choice it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opdbench.actors import Actor, Blend, Mixture, Student, Teacher, sample
from opdbench.rollouts import Source
from tests.enumerable import generator, random_logits

N = 20_000  # draws
STUDENT = torch.tensor([0.5, -1.0, 2.0, 0.0])
TEACHER = torch.tensor([-2.0, 1.0, 0.0, 1.5])


def repeated(logits_a: Tensor) -> Tensor:
    return logits_a.expand(N, -1)


def frequencies(action_b: Tensor, n_actions: int = 4) -> Tensor:
    return torch.bincount(action_b, minlength=n_actions) / len(action_b)


def assert_drawn_from(action_b: Tensor, p_a: Tensor) -> None:
    """Every action's frequency is within four standard errors of its probability."""
    error_a = (p_a * (1 - p_a) / len(action_b)).sqrt()
    assert ((frequencies(action_b, len(p_a)) - p_a).abs() <= 4 * error_a + 1e-12).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sample_draws_at_its_temperature_and_returns_that_log_probability(temperature: float) -> None:
    action_b, logp_b = sample(repeated(STUDENT), temperature, generator())
    expected = (STUDENT / temperature).log_softmax(-1)
    assert_drawn_from(action_b, expected.exp())
    assert torch.allclose(logp_b, expected[action_b], atol=1e-6)


def test_temperature_zero_takes_the_largest_logit_with_certainty() -> None:
    action_b, logp_b = sample(random_logits(50, 7), 0.0, generator())
    assert torch.equal(action_b, random_logits(50, 7).argmax(-1)) and (logp_b == 0).all()


def test_actions_that_are_impossible_are_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0])
    action_b, logp_b = sample(repeated(logits), 1.0, generator())
    assert_drawn_from(action_b, torch.tensor([0.0, 0.5, 0.0, 0.5]))
    assert torch.allclose(logp_b, torch.tensor(math.log(0.5)))


def test_a_rare_action_among_many_keeps_its_probability() -> None:
    """10,000 equal actions and one that is a hundred times as likely: float32 sums must not lose either."""
    logits = torch.zeros(10_001)
    logits[-1] = math.log(100.0)
    action_b, _ = sample(logits.expand(5_000, -1), 1.0, generator())
    share = float((action_b == 10_000).float().mean())
    p = 100 / 10_100
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 5_000)
    assert abs(float(action_b[action_b < 10_000].float().mean()) - 5_000) < 4 * 10_000 / math.sqrt(12 * 5_000)


def test_draws_repeat_with_the_generator_and_leave_logits_and_global_randomness_alone() -> None:
    logits, state = repeated(STUDENT).clone(), torch.get_rng_state()
    first, again = sample(logits, 1.0, generator(3)), sample(logits, 1.0, generator(3))
    assert torch.equal(first[0], again[0]) and not torch.equal(first[0], sample(logits, 1.0, generator(4))[0])
    assert torch.equal(logits, repeated(STUDENT)) and torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(("actor", "logits", "source"), [
    (Student(0.7), STUDENT, Source.STUDENT), (Teacher(0.7), TEACHER, Source.TEACHER)])
def test_the_student_and_the_teacher_draw_from_their_own_logits(actor: Actor, logits: Tensor, source: Source) -> None:
    decision = actor.act(repeated(STUDENT) if actor.uses_student else None,
                         repeated(TEACHER) if actor.uses_teacher else None, generator())
    assert_drawn_from(decision.action_b, (logits / 0.7).softmax(-1))
    assert (decision.source_b == source).all() and decision.source_b.dtype == torch.uint8


def test_a_mixture_flips_a_coin_in_every_state() -> None:
    """R-side reference test: the rate of mixing, state by state; and the log-probability is the mixture's."""
    beta = 0.3
    decision = Mixture(beta).act(repeated(STUDENT), repeated(TEACHER), generator())
    mixed = beta * TEACHER.softmax(-1) + (1 - beta) * STUDENT.softmax(-1)
    assert_drawn_from(decision.action_b, mixed)
    assert torch.allclose(decision.logp_b, mixed.log()[decision.action_b], atol=1e-6)
    by_teacher = decision.source_b == Source.TEACHER
    assert abs(float(by_teacher.float().mean()) - beta) < 4 * math.sqrt(beta * (1 - beta) / N)
    assert_drawn_from(decision.action_b[by_teacher], TEACHER.softmax(-1))
    assert_drawn_from(decision.action_b[~by_teacher], STUDENT.softmax(-1))


def test_the_coins_of_neighbouring_states_are_independent() -> None:
    from_teacher = Mixture(0.5).act(repeated(STUDENT), repeated(TEACHER), generator()).source_b == Source.TEACHER
    both = float((from_teacher[1:] & from_teacher[:-1]).float().mean())
    assert abs(both - 0.25) < 4 * math.sqrt(0.25 * 0.75 / N)


@pytest.mark.parametrize(("beta", "same"), [(0.0, Student(0.7)), (1.0, Teacher(0.9))])
def test_a_mixture_at_either_end_is_that_actor_draw_for_draw(beta: float, same: Actor) -> None:
    mixture = Mixture(beta, student_temperature=0.7, teacher_temperature=0.9)
    assert (mixture.uses_student, mixture.uses_teacher) == (same.uses_student, same.uses_teacher)
    logits = (repeated(STUDENT) if same.uses_student else None, repeated(TEACHER) if same.uses_teacher else None)
    for one, other in zip(mixture.act(*logits, generator(5)), same.act(*logits, generator(5)), strict=True):
        assert torch.equal(one, other)


def test_a_greedy_teacher_in_a_mixture_keeps_the_choosers_own_log_probability() -> None:
    decision = Mixture(0.5, teacher_temperature=0.0).act(repeated(STUDENT), repeated(TEACHER), generator())
    by_teacher = decision.source_b == Source.TEACHER
    assert (decision.action_b[by_teacher] == 3).all() and (decision.logp_b[by_teacher] == 0).all()
    assert torch.allclose(decision.logp_b[~by_teacher], STUDENT.log_softmax(-1)[decision.action_b[~by_teacher]])


def test_a_blend_draws_from_the_combined_distribution_and_is_the_students() -> None:
    def combine(student_ba: Tensor, teacher_ba: Tensor) -> Tensor:
        return (0.2 * teacher_ba.softmax(-1) + 0.8 * student_ba.softmax(-1)).log()

    decision = Blend(combine).act(repeated(STUDENT), repeated(TEACHER), generator())
    expected = combine(STUDENT, TEACHER)
    assert_drawn_from(decision.action_b, expected.exp())
    assert torch.allclose(decision.logp_b, expected[decision.action_b], atol=1e-6)
    assert (decision.source_b == Source.STUDENT).all()
