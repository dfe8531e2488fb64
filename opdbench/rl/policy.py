"""A control policy: a perceptron over observation vectors, which chooses among actions or draws vectors of numbers.

Stored as two files that can be read without running anything: policy.json (architecture) and policy.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Generator, Tensor, nn

from opdbench.distributions import Categorical, Distribution, Gaussian
from opdbench.errors import UserError
from opdbench.policy import Policy
from opdbench.rl import folder
from opdbench.rl.folder import COPY_AGAIN, DESCRIPTION, FORMAT, MAX_BYTES, WEIGHTS

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu}


@dataclass(frozen=True)
class Normalization:
    """Fixed statistics that an observation is normalised with: clamp((x - mean) * scale, -clip, clip).

    Attributes:
        mean, scale: float32, of the observation's shape.
    """

    mean: Tensor
    scale: Tensor
    clip: float

    @classmethod
    def from_moments(cls, mean: Any, variance: Any, epsilon: float, *, clip: float) -> Normalization:
        """From a running mean and variance, such as Stable-Baselines3's VecNormalize keeps."""
        scale = 1 / (torch.as_tensor(variance, dtype=torch.float64) + epsilon).sqrt()
        return cls(torch.as_tensor(mean).float(), scale.float(), clip)


@dataclass(frozen=True)
class Architecture:
    """What policy.json says.

    Attributes:
        observation_shape: shape of one observation; it is flattened.
        n_actions: number of discrete actions; or of the numbers that an action is, when `continuous`.
        hidden: widths of the hidden layers; the last one is the number of features H.
        activation: "tanh" or "relu", after every hidden layer.
        observation_clip: bound on normalised observations, or None when observations are used as they are.
        continuous: the head gives the means of a Gaussian, whose deviations are the same in every state.
    """

    observation_shape: tuple[int, ...]
    n_actions: int
    hidden: tuple[int, ...]
    activation: str = "tanh"
    observation_clip: float | None = None
    continuous: bool = False

    def layer_sizes(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of every linear layer, the head included."""
        return list(pairwise((prod(self.observation_shape), *self.hidden, self.n_actions)))

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor that policy.safetensors must hold."""
        *hidden, head = self.layer_sizes()
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (inputs, outputs) in [*((f"layers.{i}", size) for i, size in enumerate(hidden)), ("head", head)]:
            shapes |= {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}
        if self.observation_clip is not None:
            shapes |= {"observation_mean": self.observation_shape, "observation_scale": self.observation_shape}
        if self.continuous:
            shapes["log_std"] = (self.n_actions,)
        return shapes

    def description(self) -> dict[str, Any]:
        """What policy.json says."""
        values = asdict(self)
        if not self.continuous:
            del values["continuous"]  # the files of before there were any others
        return {"format": FORMAT, **values}


class ControlPolicy(Policy):
    """Perceptron policy; states are independent of each other, so time is just another batch dimension.

    Attributes:
        log_std: [D], log-deviations of a continuous policy's actions, 0 at first.
    """

    observation_mean: Tensor
    observation_scale: Tensor

    def __init__(self, architecture: Architecture, *, generator: Generator | None = None) -> None:
        """Args: generator: draws the initial weights; None leaves them zero, for loading."""
        super().__init__()
        self.architecture = architecture
        self.n_actions, self.continuous = architecture.n_actions, architecture.continuous
        self.n_features = architecture.layer_sizes()[-1][0]
        *hidden, head = architecture.layer_sizes()
        self.layers = nn.ModuleList(_linear(*size, gain=sqrt(2), generator=generator) for size in hidden)
        # A small head starts near the uniform policy (PPO's usual initialisation).
        self.head = _linear(*head, gain=0.01, generator=generator)
        if architecture.observation_clip is not None:
            self.register_buffer("observation_mean", torch.zeros(architecture.observation_shape))
            self.register_buffer("observation_scale", torch.ones(architecture.observation_shape))
        if self.continuous:
            self.log_std = nn.Parameter(torch.zeros(self.n_actions))

    @classmethod
    def from_tensors(cls, architecture: Architecture, tensors: Mapping[str, Tensor]) -> ControlPolicy:
        """A policy with these weights, computed in float32.

        Raises:
            ValueError: a tensor is missing, unknown, of the wrong shape, or not finite.
        """
        folder.require_shapes(tensors, architecture.tensor_shapes())
        policy = cls(architecture)
        policy.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        return policy

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        x = input_bt.to(self.head.weight.dtype)
        if self.architecture.observation_clip is not None:
            clip = self.architecture.observation_clip
            x = ((x - self.observation_mean) * self.observation_scale).clamp(-clip, clip)
        x = x.flatten(2)
        activate = ACTIVATIONS[self.architecture.activation]
        for layer in self.layers:
            x = activate(layer(x))
        return x

    @property
    def n_layers(self) -> int:
        return len(self.architecture.layer_sizes())

    def project(self, features_nh: Tensor) -> Tensor:
        """Logits [N, A]; of a continuous policy the means [N, D]."""
        logits_na: Tensor = self.head(features_nh)
        return logits_na if logits_na.dtype.itemsize >= 4 else logits_na.float()

    def distribution(self, features_nh: Tensor) -> Distribution:
        output_na = self.project(features_nh)
        if not self.continuous:
            return Categorical(output_na)
        # Not `expand`: a view of a weight asks for gradients even where they are switched off.
        return Gaussian(output_na, self.log_std.repeat(len(output_na), 1))

    def forward_flops(self, n_states: int, context: float) -> float:
        return 2.0 * n_states * sum(inputs * outputs for inputs, outputs in self.architecture.layer_sizes())

    def save(self, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write policy.json and policy.safetensors.

        Args:
            path: the folder, made when it does not exist.
            dtype: of the stored weights (float32 or float16); statistics of observations stay float32.

        Raises:
            UserError: the folder cannot be written.
        """
        tensors = {name: tensor.detach().to("cpu", torch.float32 if name.startswith("observation_") else dtype)
                   for name, tensor in self.state_dict().items()}
        folder.write(path, self.architecture.description(), tensors)

    @classmethod
    def load(cls, path: Path) -> ControlPolicy:
        """Read what `save` wrote; weights are computed in float32 however they were stored.

        Raises:
            UserError: a file is missing, cut short, or does not fit the other.
        """
        architecture = _read_architecture(path)
        try:
            return cls.from_tensors(architecture, folder.weights(path))
        except FileNotFoundError as error:
            raise UserError(f"{path} has a policy.json but no policy.safetensors", COPY_AGAIN) from error
        except (SafetensorError, ValueError, OSError) as error:
            raise UserError(f"{path / WEIGHTS} cannot be read: {error}", COPY_AGAIN) from error

    def check_fits(self, observation_shape: Sequence[int], n_actions: int, where: str, *, continuous: bool = False
                   ) -> None:
        """Refuse to act in an environment of another shape; `where` names both sides in the message.

        Raises:
            UserError: the observations or actions differ.
        """
        mine = (tuple(self.architecture.observation_shape), actions_in_words(self.n_actions, self.continuous))
        theirs = (tuple(observation_shape), actions_in_words(n_actions, continuous))
        if mine != theirs:
            raise UserError(f"{where}: the policy is for observations {mine[0]} and {mine[1]}, "
                            f"the environment has {theirs[0]} and {theirs[1]}",
                            "pass a policy that was trained on this task")


def actions_in_words(n: int, continuous: bool) -> str:
    return f"actions that are vectors of {n} real numbers" if continuous else f"{n} actions"


def _linear(inputs: int, outputs: int, *, gain: float, generator: Generator | None) -> nn.Linear:
    # skip_init: nn.Linear would otherwise draw from (and move) the global random state.
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        layer.bias.zero_()
        if generator is None:
            layer.weight.zero_()
        else:
            nn.init.orthogonal_(layer.weight, gain, generator=generator)
    return layer


def _read_architecture(place: Path) -> Architecture:
    path = place / DESCRIPTION
    try:
        stored = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{place} is not a policy folder: it has no policy.json",
                        "pass a folder with policy.json and policy.safetensors, or a Stable-Baselines3 .zip") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}", COPY_AGAIN) from error
    try:
        return _parse_architecture(stored)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not describe a policy: {error!r}", COPY_AGAIN) from error


def _parse_architecture(stored: Mapping[str, Any]) -> Architecture:
    folder.require_format(stored)
    if stored["activation"] not in ACTIVATIONS:
        raise ValueError(f"activation {stored['activation']!r} is not one of {sorted(ACTIVATIONS)}")
    clip = stored["observation_clip"]
    architecture = Architecture(tuple(map(int, stored["observation_shape"])), int(stored["n_actions"]),
                                tuple(map(int, stored["hidden"])), stored["activation"],
                                None if clip is None else float(clip), bool(stored.get("continuous", False)))
    sizes = [*architecture.observation_shape, *architecture.hidden, architecture.n_actions]
    if min(sizes) < 1 or 4 * sum(inputs * outputs for inputs, outputs in architecture.layer_sizes()) > MAX_BYTES:
        raise ValueError(f"sizes {sizes} are out of range")
    return architecture
