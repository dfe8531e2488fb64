"""Divergences between what the teacher and the student would do in the same state: pure functions of rows.

Every function takes (teacher, student) in this order and returns one value a row, in nats, differentiable in the
student. Names follow distillation usage with p the teacher and q the student:

    forward KL  KL(p || q) = sum_a p (log p - log q)        covers the teacher's modes
    reverse KL  KL(q || p) = sum_a q (log q - log p)        seeks them
    JSD(beta)   beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q

JSD(beta) is Agarwal et al. 2024 (arXiv 2306.13649, section 2, eq. 1). It vanishes at both ends; what does not vanish is
JSD(beta)/beta -> forward KL as beta -> 0, and JSD(beta)/(1 - beta) -> reverse KL as beta -> 1. Several frameworks
switch to the full KLs at exactly 0 and 1, which makes the loss jump by orders of magnitude; here `generalized_jsd`
refuses the ends, and the two rescaled families that do reach them are `forward_scaled_jsd` and `reverse_scaled_jsd`.

    skew KL(alpha)          KL(p || alpha p + (1 - alpha) q)     alpha = 0: forward KL;  at most -log alpha
    skew reverse KL(alpha)  KL(q || (1 - alpha) p + alpha q)     alpha = 0: reverse KL;  at most -log alpha
    Jeffreys                KL(p || q) + KL(q || p)              symmetric, unbounded
    total variation         1/2 sum_a |p - q|                    symmetric, at most 1
    alpha-divergence        (1 - sum_a p^alpha q^(1 - alpha)) / (alpha (1 - alpha))
                                                                 alpha -> 1: forward KL;  alpha -> 0: reverse KL
    logit MSE               mean_a (z_q - z_p)^2                 of logits, not of probabilities
    ULD                     sum_i |sort(p)_i - sort(q)_i|        needs no common vocabulary; at most 2

so that JSD(beta) = beta SKL(beta) + (1 - beta) SRKL(1 - beta).

Between Gaussians the forward KL, the reverse KL and Jeffreys have closed forms; all others are refused by name. Of
actions that an environment clips these are the divergences before the clipping.

Between categoricals the gradients in the student's logits have closed forms, so value and gradient are made together:
one matrix of rows x actions is kept where automatic differentiation keeps half a dozen, which is most of what a step
costs in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from opdbench.distributions import Categorical, Distribution, Gaussian
from opdbench.errors import UserError

# (log p, log q, whether the gradient is wanted) -> the divergence [N], and its gradient in the student's logits [N, A]
ClosedForm = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def forward_kl(teacher: Distribution, student: Distribution) -> Tensor:
    """KL(p || q) [N], mean-covering; its gradient equals the cross-entropy's with the teacher as soft label."""
    if isinstance(teacher, Gaussian) and isinstance(student, Gaussian):
        return _gaussian_kl(_constant(teacher), student)
    return _divergence(_forward_kl, teacher, student)


def reverse_kl(teacher: Distribution, student: Distribution) -> Tensor:
    """KL(q || p) [N], mode-seeking."""
    if isinstance(teacher, Gaussian) and isinstance(student, Gaussian):
        return _gaussian_kl(student, _constant(teacher))
    return _divergence(_reverse_kl, teacher, student)


def generalized_jsd(teacher: Distribution, student: Distribution, beta: float) -> Tensor:
    """JSD(beta) [N] for 0 < beta < 1; bounded by the binary entropy of beta, ln 2 at most.

    Raises:
        ValueError: beta is 0 or 1, where this divergence is identically zero (see the module's docstring).
    """
    if not 0 < beta < 1:
        raise ValueError(f"JSD(beta) is zero at beta = {beta}; use forward_kl or reverse_kl")
    return _divergence(partial(_generalized_jsd, beta=beta), teacher, student)


def forward_scaled_jsd(teacher: Distribution, student: Distribution, beta: float) -> Tensor:
    """JSD(beta) / beta [N] for 0 <= beta < 1: continuous in beta, and the forward KL itself at beta = 0."""
    if not 0 <= beta < 1:
        raise ValueError(f"JSD(beta)/beta needs 0 <= beta < 1, not {beta}")
    return forward_kl(teacher, student) if beta == 0 else generalized_jsd(teacher, student, beta) / beta


def reverse_scaled_jsd(teacher: Distribution, student: Distribution, beta: float) -> Tensor:
    """JSD(beta) / (1 - beta) [N] for 0 < beta <= 1: continuous in beta, and the reverse KL itself at beta = 1."""
    if not 0 < beta <= 1:
        raise ValueError(f"JSD(beta)/(1 - beta) needs 0 < beta <= 1, not {beta}")
    return reverse_kl(teacher, student) if beta == 1 else generalized_jsd(teacher, student, beta) / (1 - beta)


def jeffreys(teacher: Distribution, student: Distribution) -> Tensor:
    """KL(p || q) + KL(q || p) [N]; infinite where either rules out what the other does."""
    if isinstance(teacher, Gaussian) and isinstance(student, Gaussian):
        return forward_kl(teacher, student) + reverse_kl(teacher, student)
    return _divergence(_jeffreys, teacher, student)


def skew_kl(teacher: Distribution, student: Distribution, alpha: float | Tensor) -> Tensor:
    """KL(p || alpha p + (1 - alpha) q) [N] for 0 <= alpha < 1 (Ko et al. 2024, arXiv 2402.03898, eq. 3).

    Bounded by -log alpha; at alpha = 0 it is the forward KL, and as alpha -> 1 it vanishes like (1 - alpha)^2.
    """
    return _divergence(partial(_skew_kl, alpha=_skew(alpha)), teacher, student)


def skew_reverse_kl(teacher: Distribution, student: Distribution, alpha: float | Tensor) -> Tensor:
    """KL(q || (1 - alpha) p + alpha q) [N] for 0 <= alpha < 1 (Ko et al. 2024, eq. 4).

    Bounded by -log alpha; at alpha = 0 it is the reverse KL. The mixture moves with the student: holding it fixed, as
    `reverse_kl(mixture(...), student)` does and DistiLLM-2's code too, has another gradient.
    """
    return _divergence(partial(_skew_reverse_kl, alpha=_skew(alpha)), teacher, student)


def mixture(teacher: Distribution, student: Distribution, teacher_share: float | Tensor) -> Categorical:
    """`teacher_share` p + (1 - `teacher_share`) q, a constant: no gradient flows through it. Shares may differ by row
    ([N])."""
    return Categorical(_log_mixture(teacher.logp_na, student.logp_na.detach(), teacher_share))


def total_variation(teacher: Distribution, student: Distribution) -> Tensor:
    """1/2 sum_a |p - q| [N], between 0 and 1. Where p = q for an action, its subgradient is taken as 0."""
    return _divergence(_total_variation, teacher, student)


def alpha_divergence(teacher: Distribution, student: Distribution, alpha: float) -> Tensor:
    """(1 - sum_a p^alpha q^(1 - alpha)) / (alpha (1 - alpha)) [N] (Amari's family; Minka 2005, eq. 6).

    alpha -> 1 is the forward KL, alpha -> 0 the reverse KL, and alpha = 1/2 four times the squared Hellinger distance.

    Raises:
        ValueError: alpha is 0 or 1, whose limits have names of their own.
    """
    if alpha in (0, 1):
        raise ValueError(f"the alpha-divergence at alpha = {alpha} is a limit; use reverse_kl (0) or forward_kl (1)")
    return _divergence(partial(_alpha_divergence, alpha=alpha), teacher, student)


def logit_mse(teacher: Distribution, student: Distribution, *, centred: bool = False) -> Tensor:
    """mean_a (z_q - z_p)^2 [N] of raw logits (Kim et al. 2021, arXiv 2105.08919, eq. 4).

    Not a divergence of distributions: adding a constant to one side's logits changes it, unless `centred` removes each
    side's mean. Half of it, centred, is what temperature^2 KL tends to as the temperature grows (Hinton et al. 2015).
    An action that both sides rule out (logit -inf) counts as equal.
    """
    p_na, q_na = (side.logits_na if side.logits_na.dtype == torch.float64 else side.logits_na.float()
                  for side in (teacher, student))
    impossible_na = (p_na == -math.inf) & (q_na == -math.inf)
    gap_na = (q_na.masked_fill(impossible_na, 0.0) - p_na.masked_fill(impossible_na, 0.0))
    if centred:
        n_possible_n1 = (~impossible_na).sum(-1, keepdim=True)
        gap_na = (gap_na - gap_na.sum(-1, keepdim=True) / n_possible_n1).masked_fill(impossible_na, 0.0)
    return gap_na.square().mean(-1)


def universal_logit_distance(teacher: Distribution, student: Distribution) -> Tensor:
    """sum_i |sort(p)_i - sort(q)_i| [N], both sorted downwards (ULD: Boizard et al. 2024, arXiv 2402.12030, eq. 5).

    It compares the shapes of two distributions and not their actions, so vocabularies may differ, in size too: the
    smaller is filled up with zeros. It is zero for any two that are permutations of each other, whatever they say.
    """
    return sorted_distance(teacher.p_na, student.p_na)


def sorted_distance(p_na: Tensor, q_na: Tensor) -> Tensor:
    """sum_i |sort(p)_i - sort(q)_i| [N] of any probabilities, whatever they sum to: of parts of distributions too."""
    size = max(p_na.shape[-1], q_na.shape[-1])
    p_na, q_na = (pad(side.sort(-1, descending=True).values, (0, size - side.shape[-1])) for side in (p_na, q_na))
    return (p_na.detach() - q_na).abs().sum(-1)


def negative_log_likelihood(student: Distribution, action_n: Tensor) -> Tensor:
    """-log q(a) [N]: the cross-entropy with a hard label. Of a Gaussian a log-density, which has no bound: where labels
    are met exactly, its deviation goes on shrinking."""
    return -student.logp(action_n)


def _forward_kl(logp_na: Tensor, logq_na: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The gradient is q - p."""
    p_na = logp_na.exp()
    value_n, _ = _expected_log_ratio(p_na, logp_na, logq_na)
    return value_n, logq_na.exp().sub_(p_na) if with_gradient else None


def _reverse_kl(logp_na: Tensor, logq_na: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The gradient is q (log q - log p - KL)."""
    q_na = logq_na.exp()
    value_n, term_na = _expected_log_ratio(q_na, logq_na, logp_na)
    return value_n, term_na.addcmul_(q_na, value_n[:, None], value=-1) if with_gradient else None


def _generalized_jsd(logp_na: Tensor, logq_na: Tensor, with_gradient: bool, *, beta: float
                     ) -> tuple[Tensor, Tensor | None]:
    """The gradient is (1 - beta) q (log q - log m - KL(q || m)): what m moves cancels between the two terms."""
    logm_na = torch.logaddexp(logp_na + math.log(beta), logq_na + math.log1p(-beta))
    teacher_n, _ = _forward_kl(logp_na, logm_na, False)
    student_n, gradient_na = _reverse_kl(logm_na, logq_na, with_gradient)
    return beta * teacher_n + (1 - beta) * student_n, gradient_na.mul_(1 - beta) if gradient_na is not None else None


def _jeffreys(logp_na: Tensor, logq_na: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    forward_n, forward_na = _forward_kl(logp_na, logq_na, with_gradient)
    reverse_n, reverse_na = _reverse_kl(logp_na, logq_na, with_gradient)
    return forward_n + reverse_n, None if forward_na is None or reverse_na is None else forward_na.add_(reverse_na)


def _skew_kl(logp_na: Tensor, logq_na: Tensor, with_gradient: bool, *, alpha: float | Tensor
             ) -> tuple[Tensor, Tensor | None]:
    """The gradient is q E_p[w] - p w, where w = (1 - alpha) q / m is the student's share of the mixture."""
    logm_na = _log_mixture(logp_na, logq_na, alpha)
    value_n, _ = _forward_kl(logp_na, logm_na, False)
    if not with_gradient:
        return value_n, None
    share_na = _share(logq_na, logm_na, 1 - alpha)
    moved_na = share_na.mul_(logp_na.exp())
    return value_n, logq_na.exp().mul_(moved_na.sum(-1, keepdim=True)).sub_(moved_na)


def _skew_reverse_kl(logp_na: Tensor, logq_na: Tensor, with_gradient: bool, *, alpha: float | Tensor
                     ) -> tuple[Tensor, Tensor | None]:
    """The gradient is q (f - E_q[f]), where f = log q - log m - w and w = alpha q / m."""
    logm_na = _log_mixture(logp_na, logq_na, 1 - alpha)
    value_n, gradient_na = _reverse_kl(logm_na, logq_na, with_gradient)
    if gradient_na is None:
        return value_n, None
    q_na = logq_na.exp()
    share_na = _share(logq_na, logm_na, alpha).mul_(q_na)
    return value_n, gradient_na.sub_(share_na).addcmul_(q_na, share_na.sum(-1, keepdim=True))


def _total_variation(logp_na: Tensor, logq_na: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """The gradient is q (s - E_q[s]) / 2, where s is the sign of q - p."""
    q_na = logq_na.exp()
    gap_na = q_na - logp_na.exp()
    value_n = gap_na.abs().sum(-1) / 2
    if not with_gradient:
        return value_n, None
    signed_na = gap_na.sign_().mul_(q_na)
    return value_n, signed_na.addcmul_(q_na, signed_na.sum(-1, keepdim=True), value=-1).div_(2)


def _alpha_divergence(logp_na: Tensor, logq_na: Tensor, with_gradient: bool, *, alpha: float
                      ) -> tuple[Tensor, Tensor | None]:
    """The gradient is (q sum_a t - t) / alpha, where t = p^alpha q^(1 - alpha)."""
    log_term_na = alpha * logp_na + (1 - alpha) * logq_na
    neither_na = (logp_na == -math.inf) & (logq_na == -math.inf)  # inf - inf where alpha is outside of 0 to 1
    term_na = log_term_na.masked_fill_(neither_na, -math.inf).exp_()
    total_n1 = term_na.sum(-1, keepdim=True)
    value_n = (1 - total_n1[:, 0]) / (alpha * (1 - alpha))
    return value_n, (logq_na.exp() * total_n1).sub_(term_na).div_(alpha) if with_gradient else None


def _skew(alpha: float | Tensor) -> float | Tensor:
    """alpha as a number, or one a row as a column [N, 1].

    Raises:
        ValueError: it is not in [0, 1), at whose end a skewed KL is identically zero.
    """
    shares = torch.as_tensor(alpha)
    if not bool(((shares >= 0) & (shares < 1)).all()):
        raise ValueError(f"a skewed KL needs 0 <= alpha < 1, not {alpha}")
    return alpha[:, None] if isinstance(alpha, Tensor) and alpha.dim() == 1 else alpha


def _log_mixture(logp_na: Tensor, logq_na: Tensor, teacher_share: float | Tensor) -> Tensor:
    """log(s p + (1 - s) q), exactly one of the two at s = 0 and s = 1."""
    share = torch.as_tensor(teacher_share, dtype=logp_na.dtype, device=logp_na.device)
    share_n1 = share[:, None] if share.dim() == 1 else share
    return torch.logaddexp(logp_na + share_n1.log(), logq_na + torch.log1p(-share_n1))


def _share(logq_na: Tensor, logm_na: Tensor, weight: float | Tensor) -> Tensor:
    """weight q / m, the part of the mixture that q makes up: between 0 and 1, and 0 where q is."""
    return (logq_na - logm_na).exp_().mul_(weight).nan_to_num_(nan=0.0)  # -inf less -inf: nothing of nothing


def _expected_log_ratio(p_na: Tensor, logp_na: Tensor, logq_na: Tensor) -> tuple[Tensor, Tensor]:
    """sum_a p (log p - log q) [N], and its terms [N, A]; a term with p = 0 is 0 whatever the logarithms are."""
    term_na = (logp_na - logq_na).mul_(p_na)
    value_n = term_na.sum(-1)
    if value_n.isnan().any():  # 0 * inf: rare, and masking always would cost as much as all the rest
        value_n = term_na.masked_fill_(p_na == 0, 0.0).sum(-1)
    return value_n, term_na


def _gaussian_kl(one: Gaussian, other: Gaussian) -> Tensor:
    """KL(one || other) [N] = sum_d log(s' / s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2, of means m and deviations s.

    With the ratio of the variances less 1 as one term, it stays exact where the two are nearly equal.
    """
    ratio_nd = one.log_std_nd - other.log_std_nd
    gap_nd = (one.mean_nd - other.mean_nd) * (-other.log_std_nd).exp()
    return (0.5 * torch.expm1(2 * ratio_nd) - ratio_nd + 0.5 * gap_nd.square()).sum(-1)


def _constant(teacher: Gaussian) -> Gaussian:
    if (teacher.mean_nd.requires_grad or teacher.log_std_nd.requires_grad) and torch.is_grad_enabled():
        raise ValueError(_STUDENT_ONLY)
    return teacher


_STUDENT_ONLY = "divergences are differentiable in the student only; detach the teacher"


def _divergence(closed_form: ClosedForm, teacher: Distribution, student: Distribution) -> Tensor:
    if isinstance(teacher, Gaussian) or isinstance(student, Gaussian):
        name = getattr(closed_form, "func", closed_form).__name__.strip("_")
        raise UserError(f"the divergence {name} has no closed form between Gaussians, and the actions here are vectors "
                        "of real numbers; forward_kl, reverse_kl and jeffreys have one",
                        "let the method compare by one of them, such as --set divergence=reverse_kl, or choose a task "
                        "with discrete actions")
    if teacher.logits_na.requires_grad and torch.is_grad_enabled():
        raise ValueError(_STUDENT_ONLY)
    value_n: Tensor = _ClosedForm.apply(  # type: ignore[no-untyped-call]
        student.logits_na, student.logp_na.detach(), teacher.logp_na, closed_form)
    return value_n


class _ClosedForm(torch.autograd.Function):
    """A divergence with its gradient in the student's logits, computed in one go."""

    @staticmethod
    def forward(ctx: Any, logits_na: Tensor, logq_na: Tensor, logp_na: Tensor, closed_form: ClosedForm) -> Tensor:
        value_n, gradient_na = closed_form(logp_na, logq_na, ctx.needs_input_grad[0])
        ctx.save_for_backward(gradient_na)
        return value_n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_n: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient_na,) = ctx.saved_tensors
        return gradient_na * gradient_n[:, None], None, None, None
