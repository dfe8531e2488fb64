"""Divergences between what the teacher and the student would do in the same state: pure functions of rows.

Every function takes (teacher, student) in this order and returns one value a row, in nats, differentiable in the
student. Names follow distillation usage with p the teacher and q the student:

    forward KL  KL(p || q) = sum_a p (log p - log q)        covers the teacher's modes
    reverse KL  KL(q || p) = sum_a q (log q - log p)        seeks them
    JSD(beta)   beta KL(p || m) + (1 - beta) KL(q || m),   m = beta p + (1 - beta) q

JSD(beta) is Agarwal et al. 2024 (arXiv 2306.13649, section 2, eq. 1). It vanishes at both ends; what does not vanish is
JSD(beta)/beta -> forward KL as beta -> 0, and JSD(beta)/(1 - beta) -> reverse KL as beta -> 1. Several frameworks
switch to the full KLs at exactly 0 and 1, which makes the loss jump by orders of magnitude; here those two are called
by their names, and `generalized_jsd` refuses the ends.

The gradients in the student's logits have closed forms, so value and gradient are made together: one matrix of rows x
actions is kept where automatic differentiation keeps half a dozen, which is most of what a step costs in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from opdbench.distributions import Categorical

# (log p, log q, whether the gradient is wanted) -> the divergence [N], and its gradient in the student's logits [N, A]
ClosedForm = Callable[[Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]


def forward_kl(teacher: Categorical, student: Categorical) -> Tensor:
    """KL(p || q) [N], mean-covering; its gradient equals the cross-entropy's with the teacher as soft label."""
    return _divergence(_forward_kl, teacher, student)


def reverse_kl(teacher: Categorical, student: Categorical) -> Tensor:
    """KL(q || p) [N], mode-seeking."""
    return _divergence(_reverse_kl, teacher, student)


def generalized_jsd(teacher: Categorical, student: Categorical, beta: float) -> Tensor:
    """JSD(beta) [N] for 0 < beta < 1; bounded by the binary entropy of beta, ln 2 at most.

    Raises:
        ValueError: beta is 0 or 1, where this divergence is identically zero (see the module's docstring).
    """
    if not 0 < beta < 1:
        raise ValueError(f"JSD(beta) is zero at beta = {beta}; use forward_kl or reverse_kl")
    return _divergence(partial(_generalized_jsd, beta=beta), teacher, student)


def negative_log_likelihood(student: Categorical, action_n: Tensor) -> Tensor:
    """-log q(a) [N]: the cross-entropy with a hard label."""
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


def _expected_log_ratio(p_na: Tensor, logp_na: Tensor, logq_na: Tensor) -> tuple[Tensor, Tensor]:
    """sum_a p (log p - log q) [N], and its terms [N, A]; a term with p = 0 is 0 whatever the logarithms are."""
    term_na = (logp_na - logq_na).mul_(p_na)
    value_n = term_na.sum(-1)
    if value_n.isnan().any():  # 0 * inf: rare, and masking always would cost as much as all the rest
        value_n = term_na.masked_fill_(p_na == 0, 0.0).sum(-1)
    return value_n, term_na


def _divergence(closed_form: ClosedForm, teacher: Categorical, student: Categorical) -> Tensor:
    if teacher.logits_na.requires_grad and torch.is_grad_enabled():
        raise ValueError("divergences are differentiable in the student only; detach the teacher")
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
