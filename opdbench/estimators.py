"""Estimates of the reverse KL from sampled actions alone, and what differentiating each one really does.

For an action a sampled from the student q, with log-ratio d = log q(a) - log p(a) to the teacher p (Schulman 2020,
"Approximating KL divergence"):

    k1 = d                 k2 = d^2 / 2                 k3 = exp(-d) - 1 + d

|    | as an estimate of KL(q || p) | mean gradient, the sample held fixed                                    |
|----|------------------------------|-------------------------------------------------------------------------|
| k1 | unbiased, may be negative    | zero: E_q[grad log q] = 0, and nothing of the teacher is left           |
| k2 | biased (second order in d)   | that of the reverse KL(q || p): E_q[d grad log q]                       |
| k3 | unbiased, never negative     | that of the *forward* KL(p || q): E_q[(1 - p/q) grad log q] = -E_p[grad log q] |

So: log k1 or k3, and differentiate k2, or use -d as the advantage of a policy gradient, which is the same thing. All of
it holds on policy only; for samples of another distribution each row needs its importance weight.
"""

from __future__ import annotations

from torch import Tensor


def k1(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """log q(a) - log p(a), of any shape. To be logged; as a loss it teaches nothing."""
    return student_logp - teacher_logp


def k2(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """Half the squared log-ratio. Biased as an estimate; as a loss on policy its gradient is the reverse KL's."""
    return (student_logp - teacher_logp).square() / 2


def k3(student_logp: Tensor, teacher_logp: Tensor) -> Tensor:
    """p/q - 1 - log(p/q). Of low variance as an estimate; as a loss on policy its gradient is the *forward* KL's."""
    log_ratio = teacher_logp - student_logp
    return log_ratio.expm1() - log_ratio
