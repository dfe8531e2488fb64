"""Teachers that are made of others, in both worlds: their features side by side, and one projection over all.

A projection stays a function of the features alone, so that what such a teacher said can be stored with the rows,
cut, replayed and projected chunk by chunk, as that of any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from opdbench import references
from opdbench.copies import averaged, frozen
from opdbench.errors import UserError
from opdbench.policy import Policy

P = TypeVar("P", bound=Policy)


def build(named: references.Teacher, student: P, load: Callable[[references.Model | references.Exact], P],
          combine: Callable[[references.Mix | references.Route, list[P]], P]) -> P:
    """The teacher that a reference names.

    Args:
        load: reads or computes one model; `combine` makes one policy of several.
    """
    if isinstance(named, references.Mix | references.Route):
        return combine(named, [build(part, student, load, combine) for part in named.parts])
    if isinstance(named, references.Copy):
        return frozen(student) if named.decay is None else averaged(student, named.decay)
    return load(named)


class Several(Policy):
    """What teachers made of others share.

    Args:
        parts: at least one, over the same actions.
        input_bt: the input of any one state, [1, 1, ...], to learn the widths of the parts' features from.

    Raises:
        UserError: their actions are vectors of real numbers; several Gaussians together are none.
    """

    def __init__(self, parts: Sequence[Policy], input_bt: Tensor) -> None:
        super().__init__()
        if any(part.continuous for part in parts):
            raise UserError("teachers whose actions are vectors of real numbers cannot be made into one: several "
                            "Gaussians together are no Gaussian", "name one of them with --teacher")
        self.parts = nn.ModuleList(parts)
        self.n_actions = min(part.n_actions for part in parts)
        with torch.no_grad():
            one_b = torch.ones(1, dtype=torch.int64, device=input_bt.device)
            probes = [part.features(input_bt, one_b) for part in parts]
        self._forms = [(probe.shape[-1], probe.dtype) for probe in probes]
        self.n_features = sum(width for width, _ in self._forms)

    @property
    def policies(self) -> list[Policy]:
        return [part for part in self.parts if isinstance(part, Policy)]

    def project_part(self, number: int, features_nh: Tensor) -> Tensor:
        """Logits of one part from its own features, which may have been widened to lie beside another's."""
        width, dtype = self._forms[number]
        return self.policies[number].project(features_nh[:, :width].to(dtype))

    def save(self, folder: Path) -> None:
        raise UserError("a teacher made of several is not one model that could be saved", "name one of its models")


class Mixture(Several):
    """p(a | s) = sum over teachers of weight * p_teacher(a | s), exactly.

    Args:
        weights: positive, summing to one.
    """

    def __init__(self, parts: Sequence[Policy], input_bt: Tensor, weights: Sequence[float]) -> None:
        super().__init__(parts, input_bt)
        self.weights = tuple(weights)

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        return torch.cat([part.features(input_bt, length_b) for part in self.policies], -1)

    def project(self, features_nh: Tensor, weights: Sequence[float] | None = None) -> Tensor:
        """Log-probabilities [N, A] of the mixture; or, up to a constant, of one with other positive `weights`."""
        pieces = torch.split(features_nh, [width for width, _ in self._forms], -1)
        return self.mix([self.project_part(number, piece) for number, piece in enumerate(pieces)], weights)

    def mix(self, logits_pna: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
        """The same from every part's logits."""
        total_na: Tensor | None = None
        for logits_na, weight in zip(logits_pna, weights or self.weights, strict=True):
            logp_na = logits_na.log_softmax(-1) + math.log(weight)
            total_na = logp_na if total_na is None else torch.logaddexp(total_na, logp_na)
        assert total_na is not None
        return total_na

    def forward_flops(self, n_states: int, context: float) -> float:
        return sum(part.forward_flops(n_states, context) for part in self.policies)
