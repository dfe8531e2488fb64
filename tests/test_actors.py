"""Actors draw from the distribution that they say they draw from, and say whose choice it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from opdbench.actors import (
    ACTION,
    STEP,
    Actor,
    Blend,
    Mixture,
    Student,
    Teacher,
    counted_cumsum,
    sample,
    uniform_table,
)
from opdbench.rollouts import Source
from tests.enumerable import generator, random_logits

N = 20_000  # draws
STUDENT = torch.tensor([0.5, -1.0, 2.0, 0.0])
TEACHER = torch.tensor([-2.0, 1.0, 0.0, 1.5])


def repeated(logits_a: Tensor) -> Tensor:
    return logits_a.expand(N, -1)


def uniform(n: int = N, seed: int = 0) -> Tensor:
    """Uniform numbers for n states, [n, D]."""
    return uniform_table(n, 1, generator(seed))[0]


def frequencies(action_b: Tensor, n_actions: int = 4) -> Tensor:
    return torch.bincount(action_b, minlength=n_actions) / len(action_b)


def assert_drawn_from(action_b: Tensor, p_a: Tensor) -> None:
    """Every action's frequency is within four standard errors of its probability."""
    error_a = (p_a * (1 - p_a) / len(action_b)).sqrt()
    assert ((frequencies(action_b, len(p_a)) - p_a).abs() <= 4 * error_a + 1e-12).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sample_draws_at_its_temperature_and_returns_that_log_probability(temperature: float) -> None:
    action_b, logp_b = sample(repeated(STUDENT), temperature, uniform()[:, ACTION])
    expected = (STUDENT / temperature).log_softmax(-1)
    assert_drawn_from(action_b, expected.exp())
    assert torch.allclose(logp_b, expected[action_b], atol=1e-6)


def test_temperature_zero_takes_the_largest_logit_with_certainty() -> None:
    action_b, logp_b = sample(random_logits(50, 7), 0.0, uniform(50)[:, ACTION])
    assert torch.equal(action_b, random_logits(50, 7).argmax(-1)) and (logp_b == 0).all()


def test_actions_that_are_impossible_are_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0])
    action_b, logp_b = sample(repeated(logits), 1.0, uniform()[:, ACTION])
    assert_drawn_from(action_b, torch.tensor([0.0, 0.5, 0.0, 0.5]))
    assert torch.allclose(logp_b, torch.tensor(math.log(0.5)))


def test_a_rare_action_among_many_keeps_its_probability() -> None:
    """10,000 equal actions and one that is a hundred times as likely: float32 sums must not lose either."""
    logits = torch.zeros(10_001)
    logits[-1] = math.log(100.0)
    action_b, _ = sample(logits.expand(5_000, -1), 1.0, uniform(5_000)[:, ACTION])
    share = float((action_b == 10_000).float().mean())
    p = 100 / 10_100
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 5_000)
    assert abs(float(action_b[action_b < 10_000].float().mean()) - 5_000) < 4 * 10_000 / math.sqrt(12 * 5_000)


def test_draws_repeat_with_the_numbers_and_leave_logits_and_global_randomness_alone() -> None:
    logits, state = repeated(STUDENT).clone(), torch.get_rng_state()
    first, again, other = (sample(logits, 1.0, uniform(seed=seed)[:, ACTION])[0] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(logits, repeated(STUDENT)) and torch.equal(state, torch.get_rng_state())


def test_a_table_is_reproducible_uniform_and_grows_with_the_horizon() -> None:
    table = uniform_table(50, 200, generator(3))
    assert table.shape == (200, 50, 3) and table.dtype == torch.float64 and table.device.type == "cpu"
    assert torch.equal(table[:30], uniform_table(50, 30, generator(3)))
    assert (table[..., STEP] == torch.arange(200)[:, None]).all()
    table = table[..., :2].reshape(200, 50, 2)
    assert table.min() >= 0 and table.max() < 1
    counts = torch.histc(table, bins=20, min=0, max=1)
    assert (counts - 1000).abs().max() < 4 * math.sqrt(20_000 * 0.05 * 0.95)
    assert abs(float(torch.corrcoef(table.view(-1, 2).T)[0, 1])) < 4 / math.sqrt(10_000)


def test_inversion_takes_the_first_action_whose_cumulative_probability_exceeds_the_number() -> None:
    probability = torch.tensor([0.0, 0.25, 0.5, 0.0, 0.25, 0.0], dtype=torch.float64)
    numbers = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    action_b, _ = sample(probability.log().expand(6, -1), 1.0, numbers)
    assert action_b[:5].tolist() == [1, 1, 2, 2, 4] and int(action_b[5]) >= 4


def test_counted_probabilities_sum_as_real_ones_do() -> None:
    """What a GPU sums with; both precisions, and a rare action that keeps what it has."""
    for dtype in (torch.float32, torch.float64):
        probability = random_logits(20, 5_000, scale=6.0).to(dtype).softmax(-1)
        expected = probability.double().cumsum(-1)
        counted = counted_cumsum(probability)
        assert counted.dtype == torch.float64
        assert ((counted / counted[:, -1:] - expected / expected[:, -1:]).abs() < 1e-11).all()
    assert counted_cumsum(torch.tensor([[0.0, 2.0**-40, 1.0]])).tolist() == [[0.0, 2.0**12, 2.0**52 + 2.0**12]]


@pytest.mark.parametrize(("actor", "logits", "source"), [
    (Student(0.7), STUDENT, Source.STUDENT), (Teacher(0.7), TEACHER, Source.TEACHER)])
def test_the_student_and_the_teacher_draw_from_their_own_logits(actor: Actor, logits: Tensor, source: Source) -> None:
    decision = actor.act(repeated(STUDENT) if actor.uses_student else None,
                         repeated(TEACHER) if actor.uses_teacher else None, uniform())
    assert_drawn_from(decision.action_b, (logits / 0.7).softmax(-1))
    assert (decision.source_b == source).all() and decision.source_b.dtype == torch.uint8


def test_a_mixture_flips_a_coin_in_every_state() -> None:
    """R-side reference test: the rate of mixing, state by state; and the log-probability is the mixture's."""
    beta = 0.3
    decision = Mixture(beta).act(repeated(STUDENT), repeated(TEACHER), uniform())
    mixed = beta * TEACHER.softmax(-1) + (1 - beta) * STUDENT.softmax(-1)
    assert_drawn_from(decision.action_b, mixed)
    assert torch.allclose(decision.logp_b, mixed.log()[decision.action_b], atol=1e-6)
    by_teacher = decision.source_b == Source.TEACHER
    assert abs(float(by_teacher.float().mean()) - beta) < 4 * math.sqrt(beta * (1 - beta) / N)
    assert_drawn_from(decision.action_b[by_teacher], TEACHER.softmax(-1))
    assert_drawn_from(decision.action_b[~by_teacher], STUDENT.softmax(-1))


def test_the_coins_of_neighbouring_states_are_independent() -> None:
    from_teacher = Mixture(0.5).act(repeated(STUDENT), repeated(TEACHER), uniform()).source_b == Source.TEACHER
    both = float((from_teacher[1:] & from_teacher[:-1]).float().mean())
    assert abs(both - 0.25) < 4 * math.sqrt(0.25 * 0.75 / N)


@pytest.mark.parametrize(("beta", "same"), [(0.0, Student(0.7)), (1.0, Teacher(0.9))])
def test_a_mixture_at_either_end_is_that_actor_draw_for_draw(beta: float, same: Actor) -> None:
    mixture = Mixture(beta, student_temperature=0.7, teacher_temperature=0.9)
    assert (mixture.uses_student, mixture.uses_teacher) == (same.uses_student, same.uses_teacher)
    logits = (repeated(STUDENT) if same.uses_student else None, repeated(TEACHER) if same.uses_teacher else None)
    for one, other in zip(mixture.act(*logits, uniform(seed=5)), same.act(*logits, uniform(seed=5)), strict=True):
        assert torch.equal(one, other)


def test_a_mixture_and_its_sides_share_their_random_numbers() -> None:
    """Whoever the coin names takes the action that it would have taken alone."""
    numbers = uniform(seed=5)
    action_b, _, source_b = Mixture(0.3).act(repeated(STUDENT), repeated(TEACHER), numbers)
    student, teacher = Student().act(repeated(STUDENT), None, numbers), Teacher().act(None, repeated(TEACHER), numbers)
    expected_b = torch.where(source_b == Source.TEACHER, teacher.action_b, student.action_b)
    assert torch.equal(action_b, expected_b) and not torch.equal(action_b, student.action_b)


def test_float64_logits_are_not_rounded_and_log_probabilities_are_float32() -> None:
    logits = torch.tensor([0.0, 1e-12], dtype=torch.float64)
    boundary = float(logits.softmax(-1)[0])
    assert boundary != 0.5
    action_b, logp_b = sample(logits.expand(2, -1), 1.0, torch.tensor([boundary - 1e-15, 0.5], dtype=torch.float64))
    assert action_b.tolist() == [0, 1] and logp_b.dtype == torch.float32


def test_a_greedy_teacher_in_a_mixture_keeps_the_choosers_own_log_probability() -> None:
    decision = Mixture(0.5, teacher_temperature=0.0).act(repeated(STUDENT), repeated(TEACHER), uniform())
    by_teacher = decision.source_b == Source.TEACHER
    assert (decision.action_b[by_teacher] == 3).all() and (decision.logp_b[by_teacher] == 0).all()
    assert torch.allclose(decision.logp_b[~by_teacher], STUDENT.log_softmax(-1)[decision.action_b[~by_teacher]])


def test_a_blend_draws_from_the_combined_distribution_and_is_the_students() -> None:
    def combine(student_ba: Tensor, teacher_ba: Tensor) -> Tensor:
        return (0.2 * teacher_ba.softmax(-1) + 0.8 * student_ba.softmax(-1)).log()

    decision = Blend(combine).act(repeated(STUDENT), repeated(TEACHER), uniform())
    expected = combine(STUDENT, TEACHER)
    assert_drawn_from(decision.action_b, expected.exp())
    assert torch.allclose(decision.logp_b, expected[decision.action_b], atol=1e-6)
    assert (decision.source_b == Source.STUDENT).all()
