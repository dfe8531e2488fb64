"""Tabular policies: one row of logits a state, for worlds whose observation says which state it is in, one-hot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from opdbench.errors import UserError
from opdbench.policy import Policy
from opdbench.rl import folder
from opdbench.rl.folder import COPY_AGAIN, WEIGHTS
from opdbench.rl.policy import actions_in_words

KIND = "table"  # in policy.json


class TablePolicy(Policy):
    """softmax over a row of a table. A state's features are its one-hot observation, the table is the last layer: so a
    linear function of the features is a table too.

    Attributes:
        table: [S, A] logits, all zero at first: the uniform policy.
    """

    value_s: Tensor | None
    n_layers = 1

    def __init__(self, logits_sa: Tensor, value_s: Tensor | None = None) -> None:
        """
        Args:
            logits_sa: [S, A], the rows.
            value_s: [S], the expected return of the policy from every state, for a teacher that knows it.
        """
        super().__init__()
        self.n_features, self.n_actions = logits_sa.shape
        self.table = nn.Parameter(logits_sa.clone())
        self.register_buffer("value_s", None if value_s is None else value_s.clone())

    @classmethod
    def uniform(cls, n_states: int, n_actions: int) -> TablePolicy:
        """The student that has learnt nothing."""
        return cls(torch.zeros(n_states, n_actions))

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        return input_bt.to(self.table.dtype)

    def project(self, features_nh: Tensor) -> Tensor:
        return features_nh @ self.table

    def state_values(self, features_nh: Tensor) -> Tensor:
        return super().state_values(features_nh) if self.value_s is None else features_nh @ self.value_s

    def check_fits(self, observation_shape: Sequence[int], n_actions: int, where: str, *, continuous: bool = False
                   ) -> None:
        """Raise a UserError where there are other states or actions."""
        if continuous or (len(self.table), self.n_actions) != (*observation_shape, n_actions):
            raise UserError(f"{where}: the policy is a table of {len(self.table)} states and {self.n_actions} actions, "
                            f"the environment has observations {tuple(observation_shape)} and "
                            f"{actions_in_words(n_actions, continuous)}",
                            "pass a policy that was trained on this task")

    def forward_flops(self, n_states: int, context: float) -> float:
        return 2.0 * n_states * self.table.numel()

    def save(self, path: Path) -> None:
        tensors = {"table": self.table.detach().cpu()}
        if self.value_s is not None:
            tensors["value"] = self.value_s.cpu()
        folder.write(path, {"kind": KIND, "shape": list(self.table.shape)}, tensors, indent=None)

    @classmethod
    def load(cls, path: Path) -> TablePolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the weights are missing, cut short, or not those of a table.
        """
        try:
            tensors = folder.weights(path)
            table, value_s = tensors["table"], tensors.get("value")
            if table.dim() != 2 or not table.isfinite().all() or (value_s is not None and len(value_s) != len(table)):
                raise ValueError(f"a table of shape {tuple(table.shape)} with values that are not finite or do not fit")
        except (KeyError, TypeError, ValueError, SafetensorError, OSError) as error:
            raise UserError(f"{path / WEIGHTS} cannot be read: {error}", COPY_AGAIN) from error
        return cls(table, value_s)
