"""A policy over stacks of frames: Mnih's convolutional network, or one of Rusu's smaller ones, with a categorical head.

Stored like a `ControlPolicy`: policy.json (kind "convolutional") and policy.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import linear

from opdbench.distributions import Categorical, Distribution
from opdbench.errors import UserError
from opdbench.policy import Policy
from opdbench.rl import folder
from opdbench.rl.convolutional import KERNELS, RUSU, SIDE, STRIDES, ConvArchitecture, ConvNetwork, draw
from opdbench.rl.folder import FORMAT
from opdbench.rl.policy import actions_in_words

KIND = "convolutional"  # in policy.json
CHUNK = 256  # states at a time where no gradient is kept: as floats, a state is four times its bytes


class ConvPolicy(Policy):
    """One game's policy. States are independent of each other, so time is just another batch dimension.

    Attributes:
        architecture: with a single head.
    """

    n_layers = len(KERNELS) + 2

    def __init__(self, architecture: ConvArchitecture, *, generator: Generator | None = None) -> None:
        """Args: generator: draws the initial weights; None leaves them zero, for loading."""
        super().__init__()
        (self.n_actions,) = architecture.actions
        self.architecture = architecture
        self.n_features = architecture.controller or architecture.hidden
        with torch.device("meta"):  # else it would draw from (and move) the global random state
            network = ConvNetwork(architecture)
        self.network = network.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.zero_()
            if generator is not None:
                draw(self.network, self.network.heads, generator)

    @classmethod
    def named(cls, name: str, n_actions: int, *, generator: Generator | None = None) -> ConvPolicy:
        """One of Rusu's networks ("teacher", "net1", "net2", "net3") for a game with `n_actions`."""
        return cls(replace(RUSU[name], actions=(n_actions,)), generator=generator)

    @classmethod
    def from_tensors(cls, architecture: ConvArchitecture, tensors: Mapping[str, Tensor]) -> ConvPolicy:
        """A policy with these weights of a `ConvNetwork`, computed in float32.

        Raises:
            ValueError: a tensor is missing, unknown, of the wrong shape, or not finite.
        """
        policy = cls(architecture)
        expected = policy.network.state_dict()
        folder.require_shapes(tensors, {name: tuple(tensor.shape) for name, tensor in expected.items()})
        policy.network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return policy

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        batch, horizon = input_bt.shape[:2]
        if torch.is_grad_enabled():
            feature_nh = self.network.features(input_bt.flatten(0, 1))
        else:
            own_n = input_bt.reshape(batch * horizon, *input_bt.shape[2:])
            feature_nh = torch.cat([self.network.features(own_n[start:start + CHUNK])
                                    for start in range(0, max(1, len(own_n)), CHUNK)])
        return feature_nh.view(batch, horizon, self.n_features)

    def reader(self) -> Callable[[Tensor], Distribution]:
        features, project = self.network.reader(), _projection(self.network.heads[0])
        return lambda frames_b: Categorical(project(features(frames_b)))

    def project(self, features_nh: Tensor) -> Tensor:
        return _projection(self.network.heads[0])(features_nh)

    def forward_flops(self, n_states: int, context: float) -> float:
        return 2.0 * n_states * multiplications(self.architecture)

    def save(self, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write policy.json and policy.safetensors, with weights as `dtype` (float32 or float16).

        Raises:
            UserError: the folder cannot be written.
        """
        tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in self.network.state_dict().items()}
        folder.write(path, {"format": FORMAT, "kind": KIND, **asdict(self.architecture)}, tensors)

    @classmethod
    def load(cls, path: Path) -> ConvPolicy:
        """Read what `save` wrote; weights are computed in float32 however they were stored.

        Raises:
            UserError: a file is missing, cut short, or does not fit the other.
        """
        return folder.read(path, lambda description, tensors: cls.from_tensors(_parse(description), tensors))

    def check_fits(self, observation_shape: Sequence[int], n_actions: int, where: str, *, continuous: bool = False
                   ) -> None:
        """Refuse to act in an environment of another shape; `where` names both sides in the message.

        Raises:
            UserError: the observations or actions differ.
        """
        mine = ((self.architecture.frames, SIDE, SIDE), actions_in_words(self.n_actions, False))
        theirs = (tuple(observation_shape), actions_in_words(n_actions, continuous))
        if mine != theirs:
            raise UserError(f"{where}: the policy is for observations {mine[0]} and {mine[1]}, "
                            f"the environment has {theirs[0]} and {theirs[1]}",
                            "pass a policy that was trained on this task, with the same set of actions")


def multiplications(architecture: ConvArchitecture) -> int:
    """Multiply-accumulates of one state's forward pass, with one head."""
    side, total, inputs = SIDE, 0, architecture.frames
    for outputs, kernel, stride in zip(architecture.channels, KERNELS, STRIDES, strict=True):
        side = (side - kernel) // stride + 1
        total += outputs * side * side * inputs * kernel * kernel
        inputs = outputs
    own = [architecture.controller] if architecture.controller else []
    widths = [architecture.flat(), architecture.hidden, *own, architecture.actions[0]]
    return total + sum(prod(pair) for pair in pairwise(widths))


def _projection(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """Logits, in float32 or wider, from features."""
    assert isinstance(head, nn.Linear)
    weight, bias = head.weight, head.bias

    def project(features_nh: Tensor) -> Tensor:
        logits_na = linear(features_nh, weight, bias)
        return logits_na if logits_na.dtype.itemsize >= 4 else logits_na.float()

    return project


def _parse(stored: Mapping[str, Any]) -> ConvArchitecture:
    folder.require_format(stored)
    controller = stored["controller"]
    first, second, third = map(int, stored["channels"])
    architecture = ConvArchitecture((first, second, third), int(stored["hidden"]), tuple(map(int, stored["actions"])),
                                    None if controller is None else int(controller), int(stored["frames"]))
    sizes = [*architecture.channels, architecture.hidden, *architecture.actions, architecture.frames,
             1 if architecture.controller is None else architecture.controller]
    if len(architecture.actions) != 1 or min(sizes) < 1 or max(sizes) > 1 << 14:
        raise ValueError(f"sizes {sizes} are out of range, or it is the network of several games")
    if 4 * multiplications(replace(architecture, channels=(1, 1, third))) > folder.MAX_BYTES:
        raise ValueError(f"sizes {sizes} are out of range")
    return architecture
