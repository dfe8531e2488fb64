"""Gaussians over vectors of real numbers: densities, entropies, draws and divergences, against torch and integrals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from opdbench import divergences as d
from opdbench.actors import COIN, Decision, Handover, Mixture, Student, Teacher, uniform_table
from opdbench.distributions import Categorical, Gaussian
from opdbench.errors import UserError
from opdbench.rollouts import Source
from opdbench.support import Comparison
from tests.enumerable import generator, near


def gaussian(n: int, dimensions: int, seed: int, *, leaf: bool = False) -> Gaussian:
    mean_nd, log_std_nd = (torch.randn(n, dimensions, dtype=torch.float64, generator=generator(seed + offset))
                           for offset in (0, 100))
    return Gaussian(mean_nd.requires_grad_(leaf), (0.5 * log_std_nd).requires_grad_(leaf))


def normal(of: Gaussian) -> Normal:
    return Normal(of.mean_nd, of.log_std_nd.exp())


def test_densities_entropies_and_modes_are_torchs() -> None:
    here = gaussian(7, 3, 1)
    action_nd = torch.randn(7, 3, dtype=torch.float64, generator=generator(2))
    assert near(here.logp(action_nd), normal(here).log_prob(action_nd).sum(-1), 1e-12)
    assert near(here.entropy(), normal(here).entropy().sum(-1), 1e-12)
    assert torch.equal(here.mode(), here.mean_nd)
    assert here.first(2).mean_nd.shape == (2, 3) and Gaussian(torch.zeros(1, 1).half(), torch.zeros(1, 1).half()
                                                              ).logp(torch.zeros(1, 1)).dtype == torch.float32


@pytest.mark.parametrize("seed", range(5))
def test_both_kls_are_torchs_in_value_and_gradient(seed: int) -> None:
    teacher, student = gaussian(6, 3, seed), gaussian(6, 3, seed + 50, leaf=True)
    p, q = normal(teacher), normal(student)
    for ours, theirs in ((d.forward_kl, kl_divergence(p, q)), (d.reverse_kl, kl_divergence(q, p)),
                         (d.jeffreys, kl_divergence(p, q) + kl_divergence(q, p))):
        leaves = (student.mean_nd, student.log_std_nd)
        found_n, expected_n = ours(teacher, student), theirs.sum(-1)
        assert near(found_n, expected_n, 1e-10)
        for mine, other in zip(torch.autograd.grad(found_n.sum(), leaves),
                               torch.autograd.grad(expected_n.sum(), leaves, retain_graph=True), strict=True):
            assert near(mine, other, 1e-10)


@pytest.mark.parametrize(("m", "s", "n", "t"), [(0.3, 0.7, -0.4, 1.6), (0.0, 2.0, 0.1, 0.5), (1.0, 1.0, 1.0, 1.0)])
def test_kls_entropy_and_likelihood_are_integrals(m: float, s: float, n: float, t: float) -> None:
    def log_density(x: float, mean: float, std: float) -> float:
        return -0.5 * ((x - mean) / std) ** 2 - math.log(std * math.sqrt(2 * math.pi))

    def expectation(value: Callable[[float], float], mean: float, std: float) -> float:
        return float(quad(lambda x: math.exp(log_density(x, mean, std)) * value(x), mean - 12 * std, mean + 12 * std,
                          epsabs=1e-12)[0])

    teacher, student = (Gaussian(*torch.tensor([[[mean]], [[math.log(std)]]], dtype=torch.float64))
                        for mean, std in ((m, s), (n, t)))
    forward = expectation(lambda x: log_density(x, m, s) - log_density(x, n, t), m, s)
    reverse = expectation(lambda x: log_density(x, n, t) - log_density(x, m, s), n, t)
    assert d.forward_kl(teacher, student).item() == pytest.approx(forward, abs=1e-9)
    assert d.reverse_kl(teacher, student).item() == pytest.approx(reverse, abs=1e-9)
    assert teacher.entropy().item() == pytest.approx(expectation(lambda x: -log_density(x, m, s), m, s), abs=1e-9)
    action = torch.tensor([[0.2]], dtype=torch.float64)
    assert d.negative_log_likelihood(student, action).item() == pytest.approx(-log_density(0.2, n, t), abs=1e-12)


def test_gradients_are_those_of_finite_differences() -> None:
    teacher, action_nd = gaussian(3, 2, 1), torch.randn(3, 2, dtype=torch.float64, generator=generator(3))
    leaf = gaussian(3, 2, 2, leaf=True)
    values: list[Callable[[Gaussian], Tensor]] = [
        lambda student: d.forward_kl(teacher, student), lambda student: d.reverse_kl(teacher, student),
        lambda student: student.logp(action_nd), lambda student: student.entropy(),
        lambda student: d.forward_kl(teacher.tempered(2.5), student.tempered(2.5))]
    for value in values:
        def of(mean_nd: Tensor, log_std_nd: Tensor, value: Callable[[Gaussian], Tensor] = value) -> Tensor:
            return value(Gaussian(mean_nd, log_std_nd))

        assert torch.autograd.gradcheck(of, (leaf.mean_nd, leaf.log_std_nd))


def test_a_student_that_equals_its_teacher_has_no_distance_and_no_gradient() -> None:
    teacher = gaussian(5, 3, 1)
    student = Gaussian(teacher.mean_nd.clone().requires_grad_(), teacher.log_std_nd.clone().requires_grad_())
    for divergence in (d.forward_kl, d.reverse_kl, d.jeffreys):
        value_n = divergence(teacher, student)
        assert torch.equal(value_n, torch.zeros(5, dtype=torch.float64))
        for gradient in torch.autograd.grad(value_n.sum(), (student.mean_nd, student.log_std_nd)):
            assert not gradient.any()
    with pytest.raises(ValueError, match="detach the teacher"):
        d.reverse_kl(student, student)


def test_the_temperature_is_that_of_the_density() -> None:
    """p^(1/T), normalised: differences of log-densities are divided by T, as those of logits are."""
    here, (a, b) = gaussian(4, 2, 1), torch.randn(2, 4, 2, dtype=torch.float64, generator=generator(4))
    tempered = here.tempered(2.5)
    assert near(tempered.logp(a) - tempered.logp(b), (here.logp(a) - here.logp(b)) / 2.5, 1e-10)
    assert here.tempered(1) is here
    pair = Comparison(temperature=2.5).pair(here, here)
    assert isinstance(pair.student, Gaussian) and near(pair.student.log_std_nd, tempered.log_std_nd)


@pytest.mark.parametrize(("name", "use"), [
    ("generalized_jsd", lambda p, q: d.generalized_jsd(p, q, 0.5)),
    ("generalized_jsd", lambda p, q: d.forward_scaled_jsd(p, q, 0.5)),
    ("skew_kl", lambda p, q: d.skew_kl(p, q, 0.1)), ("skew_reverse_kl", lambda p, q: d.skew_reverse_kl(p, q, 0.1)),
    ("total_variation", d.total_variation), ("alpha_divergence", lambda p, q: d.alpha_divergence(p, q, 0.5)),
    ("finitely many", d.logit_mse), ("finitely many", d.universal_logit_distance),
    ("finitely many", lambda p, q: d.mixture(p, q, 0.5)),
    ("finitely many", lambda p, q: Comparison("student", 4).pair(p, q)),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_has_no_closed_form_is_refused_with_what_has(name: str, use: Callable[[Gaussian, Gaussian], object]
                                                          ) -> None:
    with pytest.raises(UserError, match=name) as caught:
        use(gaussian(2, 1, 1), gaussian(2, 1, 2))
    assert "reverse" in f"{caught.value.problem} {caught.value.fix}"


# -------------------------------------------------------------------------------------------------------------- drawing


N = 20_000


def logits(seed: int) -> Gaussian:
    here = gaussian(1, 2, seed)
    return Gaussian(here.mean_nd.expand(N, 2), here.log_std_nd.expand(N, 2))


def table(seed: int = 1) -> Tensor:
    return uniform_table(N, 1, generator(seed), 2)[0]


def test_a_table_of_more_numbers_keeps_its_places() -> None:
    assert torch.equal(uniform_table(5, 3, generator(1)), uniform_table(5, 3, generator(1), 1))
    wide = uniform_table(5, 7, generator(1), 3)
    assert wide.shape == (7, 5, 5) and torch.equal(wide[:3], uniform_table(5, 3, generator(1), 3))
    assert torch.equal(wide[:, :, 2], torch.arange(7.0).double()[:, None].expand(7, 5))


def test_draws_have_their_gaussians_moments_and_are_uncorrelated() -> None:
    here = logits(1)
    decision = Student().act(here, None, table())
    assert decision.action_b.shape == (N, 2) and decision.action_b.dtype == torch.float32
    score = (decision.action_b - here.mean_nd) / here.log_std_nd.exp()
    assert score.mean(0).abs().max() < 4 / N**0.5 and (score.var(0) - 1).abs().max() < 4 * (2 / N) ** 0.5
    assert abs(float((score[:, 0] * score[:, 1]).mean())) < 4 / N**0.5
    assert near(decision.logp_b.double(), here.logp(decision.action_b), 1e-5)
    assert (decision.source_b == Source.STUDENT).all()
    assert Gaussian(torch.zeros(1, 1), torch.zeros(1, 1)).draw(1.0, torch.zeros(1, 1).double())[0].isfinite().all()


def test_greedy_is_the_mean_and_a_temperature_widens() -> None:
    here = logits(1)
    greedy = Teacher(0.0).act(None, here, table())
    assert torch.equal(greedy.action_b, here.mean_nd.float()) and not greedy.logp_b.any()
    warm, plain = (Student(temperature).act(here, None, table()).action_b - here.mean_nd for temperature in (4.0, 1.0))
    assert near(warm, 2 * plain, 1e-5)
    broken = Gaussian(torch.tensor([[0.0, math.nan]]), torch.zeros(1, 2))
    assert broken.draw(0.0, torch.rand(1, 2).double())[1].isnan().all()


def test_a_mixture_has_the_density_of_both() -> None:
    student, teacher = logits(1), logits(2)
    decision = Mixture(0.3).act(student, teacher, table())
    by_teacher = decision.source_b == Source.TEACHER
    assert torch.equal(by_teacher, table()[:, COIN] < 0.3)
    expected = 0.3 * teacher.logp(decision.action_b).exp() + 0.7 * student.logp(decision.action_b).exp()
    assert near(decision.logp_b.double().exp(), expected, 1e-5)
    alone = Teacher().act(None, teacher, table())
    assert torch.equal(decision.action_b[by_teacher], alone.action_b[by_teacher])
    for mixture, other in ((Mixture(1.0), alone), (Mixture(0.0), Student().act(student, None, table()))):
        assert all(torch.equal(a, b) for a, b in zip(mixture.act(student, teacher, table()), other, strict=True))


def test_a_handover_changes_hands() -> None:
    numbers = uniform_table(4, 2, generator(1), 2)
    short = [Gaussian(of.mean_nd[:4], of.log_std_nd[:4]) for of in (logits(1), logits(2))]
    decisions: list[Decision] = [Handover(1).act(*short, numbers[step]) for step in range(2)]
    assert [decision.source_b.unique().tolist() for decision in decisions] == [[Source.TEACHER], [Source.STUDENT]]
    assert torch.equal(decisions[0].action_b, Teacher().act(None, short[1], numbers[0]).action_b)
    with pytest.raises(UserError, match="top_p"):
        Student(top_p=0.9).act(short[0], None, numbers[0])
    assert not hasattr(Categorical(torch.zeros(1, 2)), "mean_nd")
