"""Distributions over actions, one a row. Methods compare `rows.teacher` with `rows.student`; only these know how.

A continuous policy would add a class beside `Categorical` with the same few questions and closed forms in
`divergences`; methods that only ask those questions then run on it unchanged.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


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
