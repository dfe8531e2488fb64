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
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from opdbench.distributions import Categorical, xlogy


def forward_kl(teacher: Categorical, student: Categorical) -> Tensor:
    """KL(p || q) [N], mean-covering; its gradient equals the cross-entropy's with the teacher as soft label."""
    return _kl(teacher.logp_na, student.logp_na)


def reverse_kl(teacher: Categorical, student: Categorical) -> Tensor:
    """KL(q || p) [N], mode-seeking."""
    return _kl(student.logp_na, teacher.logp_na)


def generalized_jsd(teacher: Categorical, student: Categorical, beta: float) -> Tensor:
    """JSD(beta) [N] for 0 < beta < 1; bounded by the binary entropy of beta, ln 2 at most.

    Raises:
        ValueError: beta is 0 or 1, where this divergence is identically zero (see the module's docstring).
    """
    if not 0 < beta < 1:
        raise ValueError(f"JSD(beta) is zero at beta = {beta}; use forward_kl or reverse_kl")
    logm_na = torch.logaddexp(teacher.logp_na + math.log(beta), student.logp_na + math.log1p(-beta))
    return beta * _kl(teacher.logp_na, logm_na) + (1 - beta) * _kl(student.logp_na, logm_na)


def negative_log_likelihood(student: Categorical, action_n: Tensor) -> Tensor:
    """-log q(a) [N]: the cross-entropy with a hard label."""
    return -student.logp(action_n)


def _kl(logp_na: Tensor, logq_na: Tensor) -> Tensor:
    p_na = logp_na.exp()
    return xlogy(p_na, logp_na - logq_na).sum(-1)
