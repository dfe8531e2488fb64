"""The one shape that students and teachers share: features of a state, and a projection of features to logits.

Splitting a policy there is what keeps every method exact and small in memory: the loop computes features for a
micro-batch once, and runs projection, loss and backward over chunks of rows. For a language model the projection is
the output layer over the vocabulary; for a control policy it is the last linear layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from opdbench.distributions import Categorical, Distribution
from opdbench.errors import UserError

if TYPE_CHECKING:
    from opdbench.copies import Average


class Policy(nn.Module, ABC):
    """A student or a teacher.

    Attributes:
        n_actions: size of the action set; where actions are vectors of real numbers, how many numbers.
        continuous: whether they are; then `distribution` gives Gaussians.
        n_features: H, for methods that put a head of their own on features; control policies say it.
        average: what moves it after every step, when it is a teacher that follows the student (opdbench.copies).
    """

    n_actions: int
    continuous: bool = False
    n_features: int
    average: Average | None = None

    @abstractmethod
    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        """Features [B, T, H] of the states in `Rollouts.input_bt`; right padding beyond `length_b` does not affect
        the valid steps, and what is returned there is undefined (but finite)."""

    def hidden(self, input_bt: Tensor, length_b: Tensor) -> tuple[Tensor, Tensor]:
        """The features, and what every layer gives out [B, T, L, H]: the features alone, where no more is known."""
        features_bth = self.features(input_bt, length_b)
        return features_bth, features_bth[:, :, None]

    @abstractmethod
    def project(self, features_nh: Tensor) -> Tensor:
        """Logits [N, A] (float32 or wider) of features [N, H]; or what else `distribution` is parametrised by."""

    def distribution(self, features_nh: Tensor) -> Distribution:
        """What the policy would do in states with these features [N, H]."""
        return Categorical(self.project(features_nh))

    def reader(self) -> Callable[[Tensor], Distribution]:
        """What the policy would do in single states [B, *observation], as a function; for control tasks, where few
        states are read again and again. It sees updates of the weights, as long as they keep their place."""
        def read(observation_b: Tensor) -> Distribution:
            length_b = torch.ones(len(observation_b), dtype=torch.int64, device=observation_b.device)
            return self.distribution(self.features(observation_b[:, None], length_b)[:, 0])

        return read

    def state_values(self, features_nh: Tensor) -> Tensor:
        """The expected return [N] of the policy itself from states with these features, where it knows it.

        Raises:
            UserError: it does not.
        """
        raise UserError("this teacher knows no values of states, which the method asks for",
                        "choose a task with an exact teacher, and --teacher exact")

    @abstractmethod
    def forward_flops(self, n_states: int, context: float) -> float:
        """Analytic FLOPs of one forward pass over `n_states` states with a mean context of `context` inputs each
        (2 x multiply-accumulates; a backward pass counts twice this)."""

    def train_flops(self, n_states: int, context: float) -> float:
        """Of a forward and a backward pass. What is computed twice to save memory is not counted: it is no part of
        what is computed, only of how."""
        return 3 * self.forward_flops(n_states, context)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write weights as safetensors and configuration as JSON, so that `--student FOLDER` can read them back."""

    def n_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())
