"""Policy-gradient losses, one value a row: pure functions of log-probabilities and advantages.

`logp_n` is differentiable; everything else is a constant and is detached here, so that no method can differentiate an
advantage by mistake. With samples of the current student all of these have the same gradient, -E[A grad log q]; they
differ in what they do when the student has moved away from the distribution that was sampled from.
"""

from __future__ import annotations

from torch import Tensor

from opdbench.estimators import k3


def reinforce(logp_n: Tensor, advantage_n: Tensor) -> Tensor:
    """-A log q(a) [N] (Williams 1992): right only for samples of the current student."""
    return -advantage_n.detach() * logp_n


def importance_sampled(logp_n: Tensor, behaviour_logp_n: Tensor, advantage_n: Tensor) -> Tensor:
    """-A q(a) / mu(a) [N], for actions sampled from mu: unbiased for one action, with unbounded variance."""
    return -advantage_n.detach() * (logp_n - behaviour_logp_n.detach()).exp()


def ppo_clip(logp_n: Tensor, behaviour_logp_n: Tensor, advantage_n: Tensor, low: float, high: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) [N] with rho = q / mu (Schulman et al. 2017, eq. 7).

    A row has no gradient once rho has gone past the limit in the direction that its advantage pushes it.
    """
    advantage_n = advantage_n.detach()
    ratio_n = (logp_n - behaviour_logp_n.detach()).exp()
    return -(ratio_n * advantage_n).minimum(ratio_n.clamp(1 - low, 1 + high) * advantage_n)


def grpo(logp_n: Tensor, behaviour_logp_n: Tensor, advantage_n: Tensor, *, low: float, high: float,
         reference_logp_n: Tensor | None = None, kl_coefficient: float = 0.0) -> Tensor:
    """`ppo_clip` plus `kl_coefficient` times k3 to a reference policy [N] (Shao et al. 2024, eqs. 3 and 4).

    The advantages are `advantages.group_normalised`. k3 is differentiated as the paper has it, so the penalty's
    gradient is that of the forward KL(reference || q), see `opdbench.estimators`.
    """
    surrogate_n = ppo_clip(logp_n, behaviour_logp_n, advantage_n, low, high)
    if reference_logp_n is None or kl_coefficient == 0:
        return surrogate_n
    return surrogate_n + kl_coefficient * k3(logp_n, reference_logp_n.detach())
