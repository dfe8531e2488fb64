"""Read policies that Stable-Baselines3 saved, without running what is in the file.

An SB3 .zip holds policy.pth, which torch reads as bare tensors (`weights_only`), and `data`, a JSON text in which
whatever JSON cannot hold is a base64 pickle. A pickle can run any code when it is read, so those parts are never
decoded: the architecture is taken from the tensors' shapes, and the activation from the plain text.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from opdbench.errors import UserError
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.convolutional import ConvArchitecture
from opdbench.rl.policy import ACTIVATIONS, Architecture, ControlPolicy, Normalization

MAX_MEMBER_BYTES = 256 << 20  # unpacked; far above any perceptron, far below a zip bomb

# Hidden layers and head of what SB3 calls the actor (PPO, A2C) and the Q-network (DQN).
_ACTOR = (re.compile(r"mlp_extractor\.policy_net\.(\d+)\.(weight|bias)"), "action_net")
# The convolutions and the hidden layer of CnnPolicy (Mnih et al.'s network), and its head.
_CONVOLUTIONAL = (("pi_features_extractor", "action_net"), ("features_extractor", "action_net"),
                  ("q_net.features_extractor", "q_net.q_net.0"))
_Q_NETWORK = (re.compile(r"q_net\.q_net\.(\d+)\.(weight|bias)"), None)


def load_sb3(path: Path, *, activation: str | None = None, trust_pickle: bool = False
             ) -> ControlPolicy | ConvPolicy:
    """The policy in an SB3 .zip: the actor of PPO or A2C, over discrete actions or as a Gaussian over vectors of real
    numbers, or DQN's Q-network (whose Q values serve as logits).

    Args:
        path: the .zip file.
        activation: "tanh" or "relu"; None takes it from the file, where it says so in plain text.
        trust_pickle: unpickle policy.pth, which runs any code that it contains. Only needed for a file whose
            weights are not stored as bare tensors; Stable-Baselines3 2 writes none.

    A policy that was trained under VecNormalize needs statistics that the .zip does not hold; its measured score tells.

    Raises:
        UserError: the file is missing, corrupt or too large, needs unpickling, or holds another kind of policy.
    """
    data, tensors = _read_zip(path, trust_pickle)
    activation = "relu" if _extractor(tensors) else activation or _stated_activation(data)
    if activation is None:
        raise UserError(f"{path} does not say in plain text which activation its network has",
                        f"state the one it was trained with: --teacher {path}#tanh or {path}#relu "
                        "(SB3's defaults: tanh for PPO and A2C, relu for DQN)")
    try:
        _check_actions(data)
        return policy_from_tensors(tensors, observation_shape=_observation_shape(data), activation=activation)
    except ValueError as error:
        raise UserError(f"{path} holds a policy that cannot be used: {error}",
                        "pass a PPO, A2C or DQN policy of kind MlpPolicy, or CnnPolicy with discrete actions, without "
                        "state-dependent exploration (gSDE)") from error


def policy_from_tensors(tensors: Mapping[str, Tensor], *, observation_shape: tuple[int, ...] | None, activation: str,
                        normalization: Normalization | None = None) -> ControlPolicy | ConvPolicy:
    """A policy from the state dict of an SB3 policy.

    Args:
        tensors: the state dict.
        observation_shape: None takes a vector of the first layer's width.
        activation: "tanh" or "relu".
        normalization: the statistics of the VecNormalize that the policy was trained under, if any.

    Raises:
        ValueError: the tensors are not those of a perceptron with a categorical or a Gaussian head, of CnnPolicy's
            network over four frames, or Q values.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is not one of {sorted(ACTIVATIONS)}")
    if _extractor(tensors):
        return _conv_policy(tensors)
    if any(name.startswith(("features_extractor.", "q_net.features_extractor.")) for name in tensors):
        raise ValueError("it reads images or dictionaries, not vectors (it has a features extractor with weights)")
    layers = _layers(tensors)
    log_std = tensors.get("log_std")
    if log_std is not None and log_std.shape != layers[-1][1].shape:
        raise ValueError("the deviations of its actions depend on the state (gSDE)")
    hidden = tuple(weight.shape[0] for weight, _ in layers[:-1])
    shape = observation_shape or (layers[0][0].shape[1],)
    architecture = Architecture(shape, layers[-1][0].shape[0], hidden, activation,
                                None if normalization is None else normalization.clip, log_std is not None)
    names = [*(f"layers.{i}" for i in range(len(hidden))), "head"]
    mine = {f"{name}.{kind}": tensor for name, layer in zip(names, layers, strict=True)
            for kind, tensor in zip(("weight", "bias"), layer, strict=True)}
    if normalization is not None:
        mine |= {"observation_mean": normalization.mean, "observation_scale": normalization.scale}
    if log_std is not None:
        mine["log_std"] = log_std
    return ControlPolicy.from_tensors(architecture, mine)


def _extractor(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The prefix of the layers that read frames, and of the head."""
    return next((names for names in _CONVOLUTIONAL
                 if f"{names[0]}.cnn.0.weight" in tensors and f"{names[1]}.weight" in tensors), None)


def _conv_policy(tensors: Mapping[str, Tensor]) -> ConvPolicy:
    found = _extractor(tensors)
    assert found is not None
    extractor, head = found
    if any(re.fullmatch(r"mlp_extractor\.policy_net\..*|q_net\.q_net\.[1-9].*", name) for name in tensors):
        raise ValueError("it has further hidden layers behind those of CnnPolicy")
    theirs = {"convolutions.0": f"{extractor}.cnn.0", "convolutions.1": f"{extractor}.cnn.2",
              "convolutions.2": f"{extractor}.cnn.4", "hidden": f"{extractor}.linear.0", "heads.0": head}
    mine = {}
    for name, other in theirs.items():
        for kind in ("weight", "bias"):
            if f"{other}.{kind}" not in tensors:
                raise ValueError(f"it has no {other}.{kind}, which CnnPolicy's network has")
            mine[f"{name}.{kind}"] = tensors[f"{other}.{kind}"]
    first, second, third = (len(mine[f"convolutions.{number}.bias"]) for number in range(3))
    architecture = ConvArchitecture((first, second, third), len(mine["hidden.bias"]), (len(mine["heads.0.bias"]),),
                                    frames=mine["convolutions.0.weight"].shape[1])
    return ConvPolicy.from_tensors(architecture, mine)


def _layers(tensors: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(weight, bias) of every linear layer, first to last."""
    pattern, head = _ACTOR if "action_net.weight" in tensors else _Q_NETWORK
    numbers = sorted({int(match[1]) for name in tensors if (match := pattern.fullmatch(name))})
    prefix = "mlp_extractor.policy_net" if head else "q_net.q_net"
    names = [f"{prefix}.{number}" for number in numbers] + ([head] if head else [])
    if not names:
        raise ValueError(f"it has neither an actor nor a Q-network, only {sorted(tensors)[:4]} and so on")
    layers = [(tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")) for name in names]
    width = None
    for name, (weight, bias) in zip(names, layers, strict=True):
        if weight is None or bias is None or weight.dim() != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"{name} is not a linear layer with a bias")
        if width is not None and weight.shape[1] != width:
            raise ValueError(f"{name} reads {weight.shape[1]} features where the layer before it makes {width}")
        width = weight.shape[0]
    return layers  # type: ignore[return-value]


def _read_zip(path: Path, trust_pickle: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with zipfile.ZipFile(path) as archive:
            data = json.loads(_member(archive, path, "data"))
            weights = _member(archive, path, "policy.pth")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}", "check the path of the policy") from error
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UserError(f"{path} is not a readable Stable-Baselines3 .zip: {error}",
                        "copy or save the file again") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} is not a Stable-Baselines3 .zip: its `data` is not a JSON object")
    return data, _read_tensors(path, weights, trust_pickle)


def _member(archive: zipfile.ZipFile, path: Path, name: str) -> bytes:
    try:
        stated = archive.getinfo(name).file_size
    except KeyError as error:
        raise UserError(f"{path} is not a Stable-Baselines3 .zip: it has no {name}") from error
    with archive.open(name) as member:
        # What the directory states may be a lie, so no more than the limit is unpacked either way.
        content = member.read(MAX_MEMBER_BYTES + 1) if stated <= MAX_MEMBER_BYTES else None
    if content is None or len(content) > MAX_MEMBER_BYTES:
        raise UserError(f"{name} in {path} unpacks to more than {MAX_MEMBER_BYTES >> 20} MiB, "
                        "which no control policy does")
    return content


def _read_tensors(path: Path, weights: bytes, trust_pickle: bool) -> dict[str, Tensor]:
    try:
        tensors = torch.load(io.BytesIO(weights), map_location="cpu", weights_only=not trust_pickle)
    except UnpicklingError as error:
        raise UserError(f"policy.pth in {path} holds more than tensors, and reading it could run code that it contains",
                        "if you trust the file, allow it with --trust-pickle") from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise UserError(f"policy.pth in {path} cannot be read: {error}", "copy or save the file again") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"policy.pth in {path} is not a dictionary of tensors",
                        "save the model again with `model.save`")
    return tensors


def _observation_shape(data: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The `_shape` that SB3 writes in plain text beside the pickled observation space."""
    space = data.get("observation_space")
    shape = space.get("_shape") if isinstance(space, dict) else None
    if isinstance(shape, list) and shape and all(isinstance(size, int) and size > 0 for size in shape):
        return tuple(shape)
    return None


def _check_actions(data: Mapping[str, Any]) -> None:
    space = data.get("action_space")
    kind = str(space.get(":type:", "")) if isinstance(space, dict) else ""
    if kind and not kind.endswith((".Discrete'>", ".Box'>")):
        raise ValueError(f"its actions are of {kind.strip('<>')}")


def _stated_activation(data: Mapping[str, Any]) -> str | None:
    """The activation by the plain text alone: the one in `policy_kwargs`, else the algorithm's default."""
    keywords = data.get("policy_kwargs")
    keywords = keywords if isinstance(keywords, dict) else {}
    stated = keywords.get("activation_fn")
    if isinstance(stated, str):
        kind = stated.removesuffix("'>").rpartition(".")[2]  # from "<class 'torch.nn.modules.activation.Tanh'>"
        return kind.lower()
    policy = data.get("policy_class")
    module = policy.get("__module__") if isinstance(policy, dict) else None
    # Where SB3's own classes are used and nothing else is stated, their defaults hold.
    return {"stable_baselines3.common.policies": "tanh", "stable_baselines3.dqn.policies": "relu"}.get(str(module))
