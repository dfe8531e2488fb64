"""The convolutional part of a teacher while Stable-Baselines3 trains it: any of Rusu's sizes, not only Mnih's.

Its parameters have the names of SB3's own `NatureCNN`, so that `opdbench.rl.sb3` reads both.
"""

from __future__ import annotations

from itertools import pairwise

import gymnasium
import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from opdbench.rl.convolutional import KERNELS, RUSU, STRIDES


class RusuExtractor(BaseFeaturesExtractor):
    """One of `RUSU` without its head.

    Args:
        network: its name.
        bfloat16: compute in bfloat16 (weights, their updates and what follows stay float32). On a CPU that has the
            instructions, an update takes half to a third of the time.
    """

    def __init__(self, observation_space: gymnasium.Space[Tensor], network: str, bfloat16: bool) -> None:
        architecture = RUSU[network]
        super().__init__(observation_space, architecture.hidden)
        self.precision = torch.bfloat16 if bfloat16 else torch.float32
        sizes = pairwise((architecture.frames, *architecture.channels))
        layers = [layer for (inputs, outputs), kernel, stride in zip(sizes, KERNELS, STRIDES, strict=True)
                  for layer in (nn.Conv2d(inputs, outputs, kernel, stride), nn.ReLU())]
        self.cnn = nn.Sequential(*layers, nn.Flatten())
        self.linear = nn.Sequential(nn.Linear(architecture.flat(), architecture.hidden), nn.ReLU())

    def forward(self, frames_n: Tensor) -> Tensor:
        with torch.autocast("cpu", self.precision, enabled=self.precision is torch.bfloat16):
            feature_nh: Tensor = self.linear(self.cnn(frames_n))
        return feature_nh.float()
