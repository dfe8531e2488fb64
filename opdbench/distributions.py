"""Distributions over actions, one a row. Methods compare `rows.teacher` with `rows.student`; only these know how.

Finitely many actions have a `Categorical`, vectors of real numbers a `Gaussian`. Both answer the same few questions and
have closed forms in `divergences`; methods that only ask those questions run on either unchanged.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NoReturn

import torch
from torch import Tensor

from opdbench.errors import UserError


class Categorical:
    """N distributions over A actions, held as logits and normalised once, in float32 or wider.

    Upcasting matters: a log-softmax over 150,000 entries in bfloat16 loses most of what a divergence measures.
    """

    def __init__(self, logits_na: Tensor) -> None:
        self.logits_na = logits_na

    @cached_property
    def logp_na(self) -> Tensor:
        """Log-probabilities [N, A]."""
        logits_na = self.logits_na
        return torch.log_softmax(logits_na if logits_na.dtype == torch.float64 else logits_na.float(), dim=-1)

    @property
    def p_na(self) -> Tensor:
        """Probabilities [N, A]."""
        return self.logp_na.exp()

    def logp(self, action_n: Tensor) -> Tensor:
        """Log-probability [N] of one action a row."""
        return self.logp_na.gather(-1, action_n[:, None])[:, 0]

    def mode(self) -> Tensor:
        """The most likely action [N]."""
        return self.logits_na.argmax(-1)

    def entropy(self) -> Tensor:
        """Entropy [N] in nats."""
        # An impossible action counts 0 * lowest = 0, and not 0 * -inf; a clamp is far cheaper than a mask.
        return -(self.p_na * self.logp_na.clamp(min=torch.finfo(self.logp_na.dtype).min)).sum(-1)

    def tempered(self, temperature: float) -> Categorical:
        """softmax(logits / temperature); the temperature *in the loss*, which is never the sampling temperature."""
        return self if temperature == 1 else Categorical(self.logits_na / temperature)

    def detach(self) -> Categorical:
        return Categorical(self.logits_na.detach())

    def first(self, n: int) -> Categorical:
        """The first n distributions, cut from the graph; what has been normalised is not normalised again."""
        part = Categorical(self.logits_na[:n].detach())
        if "logp_na" in self.__dict__:
            part.__dict__["logp_na"] = self.logp_na[:n].detach()
        return part


class Gaussian:
    """N normal distributions over vectors of D real numbers, independent in each, in float32 or wider.

    An environment that bounds its actions clips them itself; what is known here, density and divergence alike, is of
    the Gaussian before that.

    Attributes:
        mean_nd, log_std_nd: [N, D], of every number.
    """

    def __init__(self, mean_nd: Tensor, log_std_nd: Tensor) -> None:
        self.mean_nd, self.log_std_nd = (value if value.dtype == torch.float64 else value.float()
                                         for value in (mean_nd, log_std_nd))

    def logp(self, action_nd: Tensor) -> Tensor:
        """Log-density [N] of one action a row."""
        score_nd = (action_nd - self.mean_nd) * (-self.log_std_nd).exp()
        return (-0.5 * score_nd.square() - self.log_std_nd - 0.5 * math.log(2 * math.pi)).sum(-1)

    def mode(self) -> Tensor:
        """The most likely action [N, D]: the mean."""
        return self.mean_nd

    def entropy(self) -> Tensor:
        """Differential entropy [N] in nats; below 0 for a narrow one."""
        return (self.log_std_nd + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)

    def tempered(self, temperature: float) -> Gaussian:
        """The normalised density to the power of 1 / temperature: the variance times the temperature."""
        return self if temperature == 1 else Gaussian(self.mean_nd, self.log_std_nd + 0.5 * math.log(temperature))

    def draw(self, temperature: float, uniform_nd: Tensor) -> tuple[Tensor, Tensor]:
        """One action a row by inversion: the quantile at its uniform numbers; at temperature 0 the mean.

        Args:
            uniform_nd: float64 [N, D], in [0, 1).

        Returns:
            (action_nd, logp_n): both float32; the log-density, of the tempered Gaussian, is that of the action as it is
            rounded to float32 (0 when greedy), and NaN where the parameters are.
        """
        if temperature == 0:
            return self.mean_nd.float(), torch.where(self.mean_nd.isnan().any(-1), math.nan, 0.0).float()
        from_n = self.tempered(temperature)
        score_nd = torch.special.ndtri(uniform_nd.clamp(min=2.0**-54))  # 0, once in 2^53, has no finite quantile
        action_nd = (from_n.mean_nd + from_n.log_std_nd.exp() * score_nd.to(from_n.mean_nd.dtype)).float()
        return action_nd, from_n.logp(action_nd).float()

    def detach(self) -> Gaussian:
        return Gaussian(self.mean_nd.detach(), self.log_std_nd.detach())

    def first(self, n: int) -> Gaussian:
        """The first n distributions, cut from the graph."""
        return Gaussian(self.mean_nd[:n].detach(), self.log_std_nd[:n].detach())

    def cpu(self) -> Gaussian:
        return Gaussian(self.mean_nd.cpu(), self.log_std_nd.cpu())

    @property
    def logits_na(self) -> Tensor:
        """What only finitely many actions have. Raises a UserError."""
        self._refuse("logits")

    @property
    def logp_na(self) -> Tensor:
        """What only finitely many actions have. Raises a UserError."""
        self._refuse("a log-probability each")

    @property
    def p_na(self) -> Tensor:
        """What only finitely many actions have. Raises a UserError."""
        self._refuse("a probability each")

    def _refuse(self, what: str) -> NoReturn:
        raise UserError(f"the actions here are vectors of real numbers, and this method, with these settings, looks at "
                        f"finitely many that have {what}",
                        "choose a task with discrete actions, or compare by the forward or the reverse KL over all of "
                        "a distribution (support=full), which Gaussians have")


Distribution = Categorical | Gaussian
