"""What both sides of the comparison with sb3_distill are told, and the networks that both begin with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opdbench.rl.conv_policy import ConvPolicy


@dataclass(frozen=True)
class Setting:
    """
    Attributes:
        method: "student-distill" (one update on the whole batch) or "ppd" (`epochs` passes in minibatches).
        teacher, student: of Rusu et al.'s networks.
        copies, horizon: of the environment, and steps of each in a round.
        minibatch: states, for "ppd".
        rounds: on every command.
    """

    method: str
    game: str
    teacher: str
    student: str
    copies: int
    horizon: int
    epochs: int
    minibatch: int
    rounds: int

    def steps(self) -> int:
        """Environment steps on every command."""
        return self.copies * self.horizon * self.rounds


def network(name: str, actions: int, role: str) -> ConvPolicy:
    """The same random weights on both sides, with a head that has opinions."""
    import torch

    from opdbench import seeds
    from opdbench.rl.conv_policy import ConvPolicy

    policy = ConvPolicy.named(name, actions, generator=seeds.generator(0, "benchmark", role))
    with torch.no_grad():
        policy.network.heads[0].weight.mul_(100)
    return policy
