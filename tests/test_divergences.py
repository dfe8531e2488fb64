"""Divergences against closed forms, in float64; names say which check of the reference lists (L, R) they are."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl, generalized_jsd, negative_log_likelihood, reverse_kl
from tests.enumerable import leaf, near, random_logits

INF = float("inf")
DIVERGENCES = {"forward": forward_kl, "reverse": reverse_kl,
               "jsd": lambda teacher, student: generalized_jsd(teacher, student, 0.3)}


def two(p: float) -> Categorical:
    """The distribution (p, 1 - p)."""
    return Categorical(torch.tensor([[p, 1 - p]], dtype=torch.float64).log())


def gradient(divergence: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(divergence.sum(), logits)[0]


def test_values_by_hand_and_which_way_round() -> None:
    """Trap: F.kl_div(input, target) is KL(target || input); several trainers had it the wrong way round."""
    teacher, student = two(0.5), two(0.9)
    assert near(forward_kl(teacher, student), 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))
    assert near(reverse_kl(teacher, student), 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5))
    teacher, student = Categorical(random_logits(6, 5, seed=1)), Categorical(random_logits(6, 5, seed=2))
    assert near(forward_kl(teacher, student), torch.nn.functional.kl_div(
        student.logp_na, teacher.logp_na, reduction="none", log_target=True).sum(-1))


def test_gradients_in_closed_form() -> None:
    """d KL(p||q) / d logits = q - p;   d KL(q||p) / d logits = q (log q - log p - KL(q||p))."""
    teacher, logits = Categorical(random_logits(6, 5, seed=1)), leaf(6, 5, seed=2)
    student = Categorical(logits)
    p, q = teacher.p_na, student.p_na.detach()
    assert near(gradient(forward_kl(teacher, Categorical(logits)), logits), q - p)
    reverse = reverse_kl(teacher, student)
    log_ratio = student.logp_na.detach() - teacher.logp_na
    assert near(gradient(reverse, logits), q * (log_ratio - reverse.detach()[:, None]))


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_jsd_is_the_entropy_of_the_mixture_less_the_mean_entropy(beta: float) -> None:
    """An independent closed form: H(m) - beta H(p) - (1 - beta) H(q), with m = beta p + (1 - beta) q."""
    teacher, logits = Categorical(random_logits(6, 5, seed=1)), leaf(6, 5, seed=2)
    student = Categorical(logits)
    mixture = Categorical((beta * teacher.p_na + (1 - beta) * student.p_na).log())
    expected = mixture.entropy() - beta * teacher.entropy() - (1 - beta) * student.entropy()
    found = generalized_jsd(teacher, Categorical(logits), beta)
    assert near(found, expected)
    assert near(gradient(found, logits), gradient(expected, logits))


def test_l6_jsd_tends_to_the_kls_when_it_is_rescaled() -> None:
    teacher, student = Categorical(random_logits(6, 5, seed=1)), Categorical(random_logits(6, 5, seed=2))
    small = 1e-7
    assert near(generalized_jsd(teacher, student, small) / small, forward_kl(teacher, student), 1e-5)
    assert near(generalized_jsd(teacher, student, 1 - small) / small, reverse_kl(teacher, student), 1e-5)


def test_l6_jsd_itself_vanishes_at_both_ends_which_are_refused() -> None:
    teacher, student = Categorical(random_logits(6, 5, seed=1)), Categorical(random_logits(6, 5, seed=2))
    for beta in (1e-9, 1 - 1e-9):
        assert near(generalized_jsd(teacher, student, beta), 0.0, 1e-7)
    for beta in (0.0, 1.0):
        with pytest.raises(ValueError, match="use forward_kl or reverse_kl"):
            generalized_jsd(teacher, student, beta)


@settings(deadline=None, max_examples=30)
@given(beta=st.floats(0.01, 0.99), seed=st.integers(0, 10_000), scale=st.floats(0.1, 40))
def test_l6_jsd_is_bounded_by_the_entropy_of_beta_and_all_divergences_are_positive(beta: float, seed: int,
                                                                                   scale: float) -> None:
    teacher = Categorical(random_logits(4, 3, seed=seed, scale=scale))
    student = Categorical(random_logits(4, 3, seed=seed + 1, scale=scale))
    jsd = generalized_jsd(teacher, student, beta)
    assert (jsd <= -beta * math.log(beta) - (1 - beta) * math.log(1 - beta) + 1e-12).all()
    assert (jsd >= -1e-12).all()
    assert (forward_kl(teacher, student) >= -1e-12).all() and (reverse_kl(teacher, student) >= -1e-12).all()


def test_l6_jsd_of_one_half_is_symmetric_and_at_most_ln_2() -> None:
    teacher, student = Categorical(random_logits(6, 5, seed=1)), Categorical(random_logits(6, 5, seed=2))
    assert near(generalized_jsd(teacher, student, 0.5), generalized_jsd(student, teacher, 0.5))
    apart = generalized_jsd(Categorical(torch.tensor([[0.0, -INF]])), Categorical(torch.tensor([[-INF, 0.0]])), 0.5)
    assert near(apart, math.log(2), 1e-6)


def test_l8_at_high_temperature_kl_times_t_squared_is_a_regression_of_centred_logits() -> None:
    """Hinton et al. 2015, section 2.1: the gradient tends to (z - v) / N with both centred."""
    teacher, logits, temperature = random_logits(6, 5, seed=1), leaf(6, 5, seed=2), 200.0
    loss = temperature**2 * forward_kl(Categorical(teacher).tempered(temperature),
                                       Categorical(logits).tempered(temperature))
    student = logits.detach()
    centred = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    assert near(gradient(loss, logits), centred / 5, 1e-2)


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES.keys())
def test_l9_equal_distributions_give_zero_and_a_zero_gradient(divergence) -> None:  # type: ignore[no-untyped-def]
    logits = leaf(6, 5, seed=2)
    value = divergence(Categorical(logits.detach()), Categorical(logits))
    assert near(value, 0.0) and near(gradient(value, logits), 0.0)


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES.keys())
def test_l10_a_constant_added_to_all_logits_changes_nothing(divergence) -> None:  # type: ignore[no-untyped-def]
    teacher, student = random_logits(6, 5, seed=1), random_logits(6, 5, seed=2)
    shift = random_logits(6, 1, seed=3, scale=100)
    assert near(divergence(Categorical(teacher), Categorical(student)),
                divergence(Categorical(teacher + shift), Categorical(student - shift)))


def test_l12_r3_a_one_hot_teacher_makes_forward_kl_the_likelihood_of_its_label() -> None:
    """In value and gradient; and a teacher at vanishing temperature becomes one-hot."""
    logits, label = leaf(4, 3, seed=2), torch.tensor([0, 2, 1, 1])
    one_hot = torch.full((4, 3), -INF, dtype=torch.float64).scatter(1, label[:, None], 0.0)
    soft = forward_kl(Categorical(one_hot), Categorical(logits))
    hard = negative_log_likelihood(Categorical(logits), label)
    assert near(soft, hard)
    assert near(gradient(soft, logits), gradient(hard, logits))
    cold = Categorical(random_logits(4, 3, seed=1)).tempered(1e-3)
    student = Categorical(logits)
    assert near(forward_kl(cold, student), negative_log_likelihood(student, cold.mode()))


def test_r10_cross_entropies_of_several_teachers_are_that_of_their_mean() -> None:
    """sum_k w_k H(p_k, q) = W H(sum_k w_k p_k / W, q), with H(p, q) = KL(p || q) + H(p); order does not matter."""
    teachers = [Categorical(random_logits(6, 5, seed=seed)) for seed in (1, 2, 3)]
    weights, student = [0.2, 1.3, 0.5], Categorical(random_logits(6, 5, seed=4))

    def cross_entropy(teacher: Categorical) -> Tensor:
        return forward_kl(teacher, student) + teacher.entropy()

    apart = sum(weight * cross_entropy(teacher) for weight, teacher in zip(weights, teachers, strict=True))
    mean = sum(weight * teacher.p_na for weight, teacher in zip(weights, teachers, strict=True)) / sum(weights)
    assert near(torch.as_tensor(apart), sum(weights) * cross_entropy(Categorical(torch.as_tensor(mean).log())))


@pytest.mark.parametrize("divergence", DIVERGENCES.values(), ids=DIVERGENCES.keys())
def test_impossible_actions_make_no_nan_in_values_or_gradients(divergence) -> None:  # type: ignore[no-untyped-def]
    """Trap: -inf padding made NaN gradients in other trainers. Here both sides rule out action 2."""
    mask = torch.tensor([0.0, 0.0, -INF, 0.0, 0.0])
    teacher, logits = random_logits(6, 5, seed=1), leaf(6, 5, seed=2)
    value = divergence(Categorical(teacher + mask), Categorical(logits + mask))
    keep = [0, 1, 3, 4]
    assert near(value, divergence(Categorical(teacher[:, keep]), Categorical(logits[:, keep])))
    found = gradient(value, logits)
    assert found.isfinite().all() and near(found[:, 2], 0.0)


def test_an_action_that_only_the_teacher_rules_out_is_free_for_forward_kl_and_infinite_for_reverse_kl() -> None:
    teacher = Categorical(torch.tensor([[0.0, 0.0, -INF]], dtype=torch.float64))
    logits = leaf(1, 3)
    forward = forward_kl(teacher, Categorical(logits))
    assert forward.isfinite().all() and gradient(forward, logits).isfinite().all()
    assert reverse_kl(teacher, Categorical(logits)).item() == INF
    jsd = generalized_jsd(teacher, Categorical(logits), 0.5)
    assert jsd.isfinite().all() and gradient(jsd, logits).isfinite().all()


def test_an_action_that_only_the_student_rules_out_is_infinite_for_forward_kl() -> None:
    student = Categorical(torch.tensor([[0.0, 0.0, -INF]], dtype=torch.float64))
    assert forward_kl(Categorical(random_logits(1, 3)), student).item() == INF
    assert reverse_kl(Categorical(random_logits(1, 3)), student).isfinite().all()


def test_logits_in_half_precision_are_normalised_in_float32() -> None:
    """Trap: a log-softmax over a large vocabulary in bfloat16 loses most of what a divergence measures."""
    logits = random_logits(2, 50_000).bfloat16()
    distribution = Categorical(logits)
    assert distribution.logp_na.dtype == torch.float32
    exact = torch.log_softmax(logits.double(), -1)
    assert near(distribution.logp_na.double(), exact, 1e-5)
    assert not near(torch.log_softmax(logits, -1).double(), exact, 1e-2)
    assert Categorical(logits.double()).logp_na.dtype == torch.float64


def test_questions_to_a_distribution() -> None:
    distribution = two(0.25)
    assert near(distribution.entropy(), -0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert distribution.mode().tolist() == [1]
    assert near(distribution.logp(torch.tensor([0])), math.log(0.25))
    assert near(distribution.tempered(2.0).p_na[:, 0], math.sqrt(0.25) / (math.sqrt(0.25) + math.sqrt(0.75)))
    with_impossible = Categorical(torch.tensor([[0.0, -INF, 0.0]], dtype=torch.float64))
    assert near(with_impossible.entropy(), math.log(2))
