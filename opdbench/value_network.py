"""A value network for methods that learn from rewards: V(s), what is still to be earned from a state on."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from opdbench.context import Context
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts

OBSERVATION = "observation"  # [B, T, ...], a column: a loss sees the student's features, and a critic has its own


class Critic(nn.Module):
    """A network of the student's form beside it, with a head of its own that starts at zero, so that V = 0 at first.

    Its features start as the student's: the initial weights are as good a start here as there, and take no draw. Only
    for worlds where an observation is a whole state.
    """

    def __init__(self, student: Policy) -> None:
        super().__init__()
        self.body = deepcopy(student)
        like = next(self.body.parameters())
        self.head = nn.Parameter(torch.zeros(student.n_features, device=like.device, dtype=like.dtype))
        self.bias = nn.Parameter(torch.zeros((), device=like.device, dtype=like.dtype))

    def forward(self, observation_n: Tensor) -> Tensor:
        """Values [N] of observations [N, ...]."""
        one_n = torch.ones(len(observation_n), dtype=torch.int64, device=observation_n.device)
        value_n: Tensor = self.body.features(observation_n[:, None], one_n)[:, 0] @ self.head + self.bias
        return value_n

    @torch.no_grad()
    def of(self, rollouts: Rollouts) -> Tensor:
        """Values [B, T] of the states in which somebody decided, as they are now; 0 elsewhere."""
        mask_bt = rollouts.mask_bt
        value_bt = torch.zeros(mask_bt.shape, dtype=self.head.dtype, device=mask_bt.device)
        value_bt[mask_bt] = self(rollouts.input_bt[mask_bt])
        return value_bt

    def count(self, ctx: Context, n_rows: int, *, passes: int) -> None:
        """Put on the ledger what one look at `n_rows` states and `passes` rounds of training on them take."""
        flops = self.body.forward_flops(n_rows, 1) + passes * self.body.train_flops(n_rows, 1)
        ctx.ledger.add_flops("critic", flops)
