"""Convolutional networks over stacks of game frames: Mnih's, and the smaller and shared ones of Rusu et al. 2016."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

SIDE = 84  # pixels of a frame's side
KERNELS, STRIDES = (8, 4, 3), (4, 2, 1)


@dataclass(frozen=True)
class ConvArchitecture:
    """Three convolutions (8x8 by 4, 4x4 by 2, 3x3 by 1), one hidden layer that all games share, one head a game.

    Attributes:
        channels: of the convolutions.
        hidden: width of the shared layer.
        actions: number of outputs of each game's head.
        controller: width of a further hidden layer that each game has for itself; None: the head follows at once.
        frames: in a stack.
    """

    channels: tuple[int, int, int]
    hidden: int
    actions: tuple[int, ...]
    controller: int | None = None
    frames: int = 4

    def flat(self) -> int:
        """Numbers that the last convolution makes."""
        side = SIDE
        for kernel, stride in zip(KERNELS, STRIDES, strict=True):
            side = (side - kernel) // stride + 1
        return self.channels[-1] * side * side


# Rusu et al. 2016 (arXiv 1511.06295), table 1 and appendix B: with 18 actions; with the minimal sets of Freeway, Pong
# and Q*bert; with those of BeamRider, Breakout, Enduro, Freeway, Ms. Pac-Man, Pong, Q*bert, Seaquest, River Raid and
# Space Invaders.
RUSU = {
    "teacher": ConvArchitecture((32, 64, 64), 512, (18,)),
    "net1": ConvArchitecture((16, 32, 32), 256, (18,)),
    "net2": ConvArchitecture((16, 16, 16), 128, (18,)),
    "net3": ConvArchitecture((16, 16, 16), 64, (18,)),
    "multi-3": ConvArchitecture((32, 64, 64), 512, (3, 3, 6), controller=128),
    "multi-10": ConvArchitecture((64, 64, 64), 1500, (9, 4, 9, 3, 9, 3, 6, 18, 18, 6), controller=128),
}


class ConvNetwork(nn.Module):
    """Logits (or Q values) of one of its games from stacks of frames.

    Attributes:
        in_bfloat16: compute up to the shared layer in bfloat16. Pixels are bytes, which it holds exactly; weights,
            their updates, heads and logits stay as wide as the weights are. On a CPU that has the instructions, an
            update takes half of the time.
    """

    in_bfloat16 = False

    def __init__(self, architecture: ConvArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        sizes = pairwise((architecture.frames, *architecture.channels))
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, kernel, stride)
            for (inputs, outputs), kernel, stride in zip(sizes, KERNELS, STRIDES, strict=True))
        self.hidden = nn.Linear(architecture.flat(), architecture.hidden)
        width = architecture.controller or architecture.hidden
        self.controllers = nn.ModuleList(nn.Linear(architecture.hidden, width) for _ in architecture.actions
                                         if architecture.controller)
        self.heads = nn.ModuleList(nn.Linear(width, actions) for actions in architecture.actions)

    def features(self, frames_n: Tensor, game: int = 0) -> Tensor:
        """What a game's head reads [N, H], from frames [N, frames, 84, 84], uint8."""
        return self.reader(game)(frames_n)

    def reader(self, game: int = 0) -> Callable[[Tensor], Tensor]:
        """`features` as a function of frames alone. Where few states are read at a time, looking up modules and weights
        in every one of them, and calling them as modules, would take as long as a convolution."""
        own = self.hidden.weight.dtype
        dtype = torch.bfloat16 if self.in_bfloat16 else own
        first = self.convolutions[0]  # its weights are divided by 255 in place of the pixels, which are more
        layers = [((layer.weight / 255 if layer is first else layer.weight).to(dtype),
                   None if layer.bias is None else layer.bias.to(dtype), layer.stride)
                  for layer in self.convolutions if isinstance(layer, nn.Conv2d)]
        weight, bias = self.hidden.weight.to(dtype), self.hidden.bias.to(dtype)
        controller = self.controllers[game] if self.architecture.controller else None

        def features(frames_n: Tensor) -> Tensor:
            x = frames_n.to(dtype)
            for kernel, offset, stride in layers:
                x = torch.conv2d(x, kernel, offset, stride).relu_()
            x = linear(x.flatten(1), weight, bias).relu_().to(own)
            return x if controller is None else torch.relu(controller(x))

        return features

    def forward(self, frames_n: Tensor, game: int = 0) -> Tensor:
        """Logits [N, A] of one game."""
        logits_na: Tensor = self.heads[game](self.features(frames_n, game))
        return logits_na


def draw(network: nn.Module, heads: Iterable[nn.Module], generator: Generator) -> None:
    """Orthogonal weights, and small heads that start near the uniform policy (PPO's usual initialisation)."""
    small = set(heads)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, 0.01 if layer in small else sqrt(2), generator=generator)
