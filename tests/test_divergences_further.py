"""The further divergences: plain autograd of each equation, limits, bounds and impossible actions, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from opdbench import divergences as d
from opdbench.distributions import Categorical
from tests.enumerable import leaf, near, random_logits

INF = float("inf")
Divergence = Callable[[Categorical, Categorical], Tensor]


def plain_skew_kl(p: Tensor, q: Tensor, alpha: float) -> Tensor:
    return (p * (p / (alpha * p + (1 - alpha) * q)).log()).sum(-1)


ROW_ALPHAS = torch.full((6,), 0.1, dtype=torch.float64)
# name: (ours, the equation in probabilities, for autograd to differentiate)
EQUATIONS: dict[str, tuple[Divergence, Callable[[Tensor, Tensor], Tensor]]] = {
    "jeffreys": (d.jeffreys, lambda p, q: ((p - q) * (p / q).log()).sum(-1)),
    "skew_kl": (lambda t, s: d.skew_kl(t, s, 0.1), lambda p, q: plain_skew_kl(p, q, 0.1)),
    "skew_kl 0.7": (lambda t, s: d.skew_kl(t, s, 0.7), lambda p, q: plain_skew_kl(p, q, 0.7)),
    "skew_reverse_kl": (lambda t, s: d.skew_reverse_kl(t, s, 0.1), lambda p, q: plain_skew_kl(q, p, 0.1)),
    "skew_reverse_kl 0.7": (lambda t, s: d.skew_reverse_kl(t, s, 0.7), lambda p, q: plain_skew_kl(q, p, 0.7)),
    "skew_kl by row": (lambda t, s: d.skew_kl(t, s, ROW_ALPHAS),
                       lambda p, q: plain_skew_kl(p, q, 0.1)),
    "skew_reverse_kl by row": (lambda t, s: d.skew_reverse_kl(t, s, ROW_ALPHAS),
                               lambda p, q: plain_skew_kl(q, p, 0.1)),
    "total_variation": (d.total_variation, lambda p, q: (p - q).abs().sum(-1) / 2),
    "alpha 0.3": (lambda t, s: d.alpha_divergence(t, s, 0.3),
                  lambda p, q: (1 - (p**0.3 * q**0.7).sum(-1)) / (0.3 * 0.7)),
    "alpha 2": (lambda t, s: d.alpha_divergence(t, s, 2.0), lambda p, q: (1 - (p**2 / q).sum(-1)) / -2),
    "forward_scaled_jsd": (lambda t, s: d.forward_scaled_jsd(t, s, 0.2), lambda p, q: plain_skew_kl(p, q, 0.2)
                           + 4 * plain_skew_kl(q, p, 0.8)),
    "reverse_scaled_jsd": (lambda t, s: d.reverse_scaled_jsd(t, s, 0.8), lambda p, q: 4 * plain_skew_kl(p, q, 0.8)
                           + plain_skew_kl(q, p, 0.2)),
    "universal_logit_distance": (d.universal_logit_distance,
                                 lambda p, q: (p.sort(-1)[0] - q.sort(-1)[0]).abs().sum(-1)),
}
by_name = pytest.mark.parametrize(("ours", "equation"), EQUATIONS.values(), ids=EQUATIONS.keys())


def gradient(value_n: Tensor, logits: Tensor) -> Tensor:
    weights = torch.arange(1.0, len(value_n) + 1, dtype=value_n.dtype)  # a mistake by a factor of one row shows
    return torch.autograd.grad((weights * value_n).sum(), logits, retain_graph=True)[0]


@by_name
def test_values_and_gradients_are_those_of_the_equation(
        ours: Divergence, equation: Callable[[Tensor, Tensor], Tensor]) -> None:
    teacher, logits = Categorical(random_logits(6, 5, seed=1)), leaf(6, 5, seed=2)
    expected_n = equation(teacher.p_na, logits.softmax(-1))
    found_n = ours(teacher, Categorical(logits))
    assert near(found_n, expected_n)
    assert near(gradient(found_n, logits), gradient(expected_n, logits))


@by_name
def test_l9_equal_distributions_give_zero_and_a_zero_gradient(
        ours: Divergence, equation: Callable[[Tensor, Tensor], Tensor]) -> None:
    logits = leaf(6, 5, seed=2)
    value_n = ours(Categorical(logits.detach()), Categorical(logits))
    assert near(value_n, 0.0) and near(gradient(value_n, logits), 0.0)


@by_name
def test_impossible_actions_make_no_nan(ours: Divergence, equation: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Both rule out action 2: what is left is the divergence on the others."""
    mask = torch.tensor([0.0, 0.0, -INF, 0.0, 0.0])
    teacher, logits, keep = random_logits(6, 5, seed=1), leaf(6, 5, seed=2), [0, 1, 3, 4]
    value_n = ours(Categorical(teacher + mask), Categorical(logits + mask))
    assert near(value_n, ours(Categorical(teacher[:, keep]), Categorical(logits[:, keep])))
    found = gradient(value_n, logits)
    assert found.isfinite().all() and near(found[:, 2], 0.0)


@by_name
def test_what_is_no_number_stays_none(ours: Divergence, equation: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Trap: to mask what is not finite makes a teacher's NaN a loss of zero that nobody sees."""
    teacher = random_logits(6, 5, seed=1)
    teacher[2, 3] = math.nan
    assert ours(Categorical(teacher), Categorical(leaf(6, 5, seed=2))).isnan().tolist() == [
        False, False, True, False, False, False]


@pytest.mark.parametrize("name", ["skew_kl", "skew_reverse_kl", "total_variation", "alpha 0.3"])
def test_bounded_divergences_stay_finite_on_disjoint_supports(name: str) -> None:
    teacher = Categorical(torch.tensor([[0.0, -INF, 0.5]], dtype=torch.float64))
    student = leaf(1, 3)
    value_n = EQUATIONS[name][0](teacher, Categorical(student + torch.tensor([-INF, 0.0, 0.0])))
    assert value_n.isfinite().all() and gradient(value_n, student).isfinite().all()


def test_skewed_kls_are_bounded_by_minus_log_alpha_and_total_variation_by_one() -> None:
    """L7; and the bounds are reached when the two have nothing in common."""
    apart = Categorical(torch.tensor([[0.0, -INF]]).double()), Categorical(torch.tensor([[-INF, 0.0]]).double())
    for divergence in (d.skew_kl, d.skew_reverse_kl):
        assert near(divergence(*apart, 0.1), -math.log(0.1))
    assert near(d.total_variation(*apart), 1.0)
    assert near(d.alpha_divergence(*apart, 0.5), 4.0)
    teacher, student = (Categorical(random_logits(50, 4, seed=seed, scale=20)) for seed in (1, 2))
    assert (d.skew_kl(teacher, student, 0.1) <= -math.log(0.1) + 1e-12).all()
    assert (d.skew_reverse_kl(teacher, student, 0.1) <= -math.log(0.1) + 1e-12).all()


def test_skewed_kls_begin_at_the_kls_exactly_and_vanish_as_alpha_grows() -> None:
    teacher, logits = Categorical(random_logits(6, 5, seed=1)), leaf(6, 5, seed=2)
    student = Categorical(logits)
    for skewed, plain in ((d.skew_kl, d.forward_kl), (d.skew_reverse_kl, d.reverse_kl)):
        assert near(skewed(teacher, student, 0.0), plain(teacher, student))
        assert near(gradient(skewed(teacher, student, 0.0), logits), gradient(plain(teacher, student), logits))
        gap = 1e-4  # (1 - alpha)^2 times half a chi-squared distance
        ratio_n = skewed(teacher, student, 1 - 2 * gap) / skewed(teacher, student, 1 - gap)
        assert near(ratio_n, 4.0, 1e-2)
    for alpha in (-0.1, 1.0, 1.5):
        with pytest.raises(ValueError, match="0 <= alpha < 1"):
            d.skew_kl(teacher, student, alpha)


def test_jsd_is_made_of_two_skewed_kls() -> None:
    teacher, student = (Categorical(random_logits(6, 5, seed=seed)) for seed in (1, 2))
    parts = 0.3 * d.skew_kl(teacher, student, 0.3) + 0.7 * d.skew_reverse_kl(teacher, student, 0.7)
    assert near(d.generalized_jsd(teacher, student, 0.3), parts)


def test_a_detached_mixture_has_another_gradient_than_the_skewed_reverse_kl() -> None:
    """DistiLLM-2's code holds the mixture fixed: equal in value, different in gradient."""
    teacher, logits = Categorical(random_logits(6, 5, seed=1)), leaf(6, 5, seed=2)
    student = Categorical(logits)
    moving = d.skew_reverse_kl(teacher, student, 0.4)
    fixed = d.reverse_kl(d.mixture(teacher, student, 0.6), student)
    assert near(moving, fixed)
    assert not near(gradient(moving, logits), gradient(fixed, logits), 1e-3)


def test_rescaled_jsds_are_continuous_into_the_kls() -> None:
    """L6: no jump at the end, where several frameworks have one of orders of magnitude."""
    teacher, student = (Categorical(random_logits(6, 5, seed=seed)) for seed in (1, 2))
    assert torch.equal(d.forward_scaled_jsd(teacher, student, 0.0), d.forward_kl(teacher, student))
    assert torch.equal(d.reverse_scaled_jsd(teacher, student, 1.0), d.reverse_kl(teacher, student))
    assert near(d.forward_scaled_jsd(teacher, student, 1e-7), d.forward_kl(teacher, student), 1e-5)
    assert near(d.reverse_scaled_jsd(teacher, student, 1 - 1e-7), d.reverse_kl(teacher, student), 1e-5)
    for rescaled, end in ((d.forward_scaled_jsd, 1.0), (d.reverse_scaled_jsd, 0.0)):
        with pytest.raises(ValueError, match="beta"):
            rescaled(teacher, student, end)


def test_the_alpha_divergence_joins_the_kls_and_the_hellinger_distance() -> None:
    teacher, student = (Categorical(random_logits(6, 5, seed=seed)) for seed in (1, 2))
    assert near(d.alpha_divergence(teacher, student, 1 - 1e-6), d.forward_kl(teacher, student), 1e-4)
    assert near(d.alpha_divergence(teacher, student, 1e-6), d.reverse_kl(teacher, student), 1e-4)
    hellinger = 1 - (teacher.p_na * student.p_na).sqrt().sum(-1)
    assert near(d.alpha_divergence(teacher, student, 0.5), 4 * hellinger)
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match="limit"):
            d.alpha_divergence(teacher, student, alpha)


def test_pinsker_total_variation_is_at_most_the_root_of_half_the_kl() -> None:
    teacher, student = (Categorical(random_logits(200, 5, seed=seed, scale=3)) for seed in (1, 2))
    assert (d.total_variation(teacher, student) <= (d.forward_kl(teacher, student) / 2).sqrt() + 1e-12).all()


def test_logit_mse_by_hand_and_centred_it_is_hintons_limit() -> None:
    teacher, logits = random_logits(6, 5, seed=1), leaf(6, 5, seed=2)
    plain = d.logit_mse(Categorical(teacher), Categorical(logits))
    assert near(plain, (teacher - logits).square().mean(-1))
    shifted = d.logit_mse(Categorical(teacher + 3), Categorical(logits), centred=True)
    assert near(shifted, d.logit_mse(Categorical(teacher), Categorical(logits), centred=True))
    hot = 1000.0
    kl = hot**2 * d.forward_kl(Categorical(teacher).tempered(hot), Categorical(logits).tempered(hot))
    assert near(kl, d.logit_mse(Categorical(teacher), Categorical(logits), centred=True) / 2, 1e-2)
    impossible = torch.tensor([0.0, -INF, 0.0, 0.0, 0.0])
    value_n = d.logit_mse(Categorical(teacher + impossible), Categorical(logits + impossible), centred=True)
    assert value_n.isfinite().all() and gradient(value_n, logits).isfinite().all()


def test_uld_sees_shapes_and_not_actions_and_takes_two_vocabularies() -> None:
    logits = random_logits(6, 5, seed=1)
    assert near(d.universal_logit_distance(Categorical(logits), Categorical(logits.flip(-1))), 0.0)
    wider = torch.cat([logits, torch.full((6, 3), -INF)], 1)
    student = Categorical(random_logits(6, 5, seed=2))
    assert near(d.universal_logit_distance(Categorical(wider), student),
                d.universal_logit_distance(Categorical(logits), student))
