"""Policies over several games: a student with a body that all share and a head for each, and a teacher for each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import pad

from opdbench.errors import UserError
from opdbench.policy import Policy
from opdbench.rl import folder
from opdbench.rl.conv_policy import CHUNK, multiplications
from opdbench.rl.convolutional import KERNELS, SIDE, ConvArchitecture, ConvNetwork, draw
from opdbench.rl.folder import FORMAT
from opdbench.rl.games import Form

KIND = "games"  # in policy.json


class ByGame(Policy):
    """A policy over marked states (`opdbench.rl.games`).

    Features are those of the state's game, filled up with zeros to `n_features` - 1, and last the number of the game:
    so logits are a function of features alone. An action that a game does not have comes last and has the logit -inf.
    """

    form: Form

    @abstractmethod
    def features_in(self, marked_n: Tensor, game: int) -> Tensor:
        """Features [N, at most `n_features` - 1] of states of one game."""

    @abstractmethod
    def logits_in(self, features_nh: Tensor, game: int) -> Tensor:
        """Logits [N, actions of the game] of one game's features, without their number."""

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        marked_n = input_bt.flatten(0, 1)
        game_n = self.form.game_of(marked_n)

        def one_game(row_k: Tensor, game: int) -> Tensor:
            parts = [self.features_in(marked_n[rows], game) for rows in torch.split(row_k, _at_once(len(row_k)))]
            feature_kh = pad(torch.cat(parts), (0, self.n_features - 1 - parts[0].shape[-1]))
            return torch.cat([feature_kh, feature_kh.new_full((len(feature_kh), 1), game)], 1)

        return _by_game(game_n, one_game).view(*input_bt.shape[:2], self.n_features)

    def project(self, features_nh: Tensor) -> Tensor:
        def one_game(row_k: Tensor, game: int) -> Tensor:
            logits_ka = self.logits_in(features_nh[row_k, :-1], game)
            return pad(logits_ka, (0, self.n_actions - logits_ka.shape[-1]), value=-torch.inf)

        return _by_game(features_nh[:, -1].long(), one_game)


def _at_once(n: int) -> int:
    """States that are read together: all, where a gradient is kept."""
    return max(1, n) if torch.is_grad_enabled() else CHUNK


def _by_game(game_n: Tensor, values: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`values(rows, game)` of every game's rows, put back into their order."""
    games = torch.unique(game_n).tolist() or [0]
    rows = [(game_n == game).nonzero()[:, 0] for game in games]
    joined = torch.cat([values(row_k, game) for row_k, game in zip(rows, games, strict=True)])
    return torch.empty_like(joined).index_copy_(0, torch.cat(rows), joined)


class OneGame(Policy):
    """A policy of several games in one of them, over marked states: with the actions that this game has."""

    def __init__(self, policy: ByGame, game: int) -> None:
        super().__init__()
        self.policy, self.n_actions, self.n_features = policy, policy.form.actions[game], policy.n_features

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        return self.policy.features(input_bt, length_b)

    def project(self, features_nh: Tensor) -> Tensor:
        return self.policy.project(features_nh)[:, :self.n_actions]

    def forward_flops(self, n_states: int, context: float) -> float:
        return self.policy.forward_flops(n_states, context)

    def save(self, path: Path) -> None:
        self.policy.save(path)


class TeacherOfEach(ByGame):
    """Every game has its own teacher."""

    def __init__(self, parts: Sequence[Policy], form: Form) -> None:
        """Args: parts: one a game, over the game's own states."""
        super().__init__()
        self.parts, self.form, self.n_actions = nn.ModuleList(parts), form, max(form.actions)
        self.n_features = 1 + max(part.n_features for part in parts)

    def features_in(self, marked_n: Tensor, game: int) -> Tensor:
        own_n1 = self.form.own(marked_n, game)[:, None]
        feature_nh: Tensor = self._part(game).features(own_n1, own_n1.new_ones(len(own_n1), dtype=torch.int64))[:, 0]
        return feature_nh

    def logits_in(self, features_nh: Tensor, game: int) -> Tensor:
        part = self._part(game)
        return part.project(features_nh[:, :part.n_features])

    def forward_flops(self, n_states: int, context: float) -> float:
        """On average over the games, as if each were played as often."""
        return sum(self._part(game).forward_flops(n_states, context) for game in range(len(self.parts))
                   ) / len(self.parts)

    def save(self, path: Path) -> None:
        raise UserError("a teacher for each of several games is not one model that could be saved",
                        "name one of its models")

    def _part(self, game: int) -> Policy:
        part = self.parts[game]
        assert isinstance(part, Policy)
        return part


@dataclass(frozen=True)
class VectorArchitecture:
    """What all games share: hidden layers over a state that is filled up to the longest. Then a layer and a head each.

    Attributes:
        inputs: numbers of the longest state.
        hidden: widths of the shared layers.
        actions: number of outputs of each game's head.
        controller: width of the further hidden layer that each game has for itself; None: the head follows at once.
    """

    inputs: int
    hidden: tuple[int, ...]
    actions: tuple[int, ...]
    controller: int | None

    def multiplications(self) -> int:
        """Multiply-accumulates of one state's forward pass, with the largest head."""
        own = [self.controller] if self.controller else []
        return sum(prod(pair) for pair in pairwise([self.inputs, *self.hidden, *own, max(self.actions)]))


class VectorNetwork(nn.Module):
    """`ConvNetwork` for states that are vectors.

    Attributes:
        scale: [games, inputs], what each game's numbers are multiplied by first.
    """

    scale: Tensor

    def __init__(self, architecture: VectorArchitecture) -> None:
        super().__init__()
        sizes = list(pairwise((architecture.inputs, *architecture.hidden)))
        width = architecture.controller or architecture.hidden[-1]
        self.layers = nn.ModuleList(nn.Linear(*size) for size in sizes)
        self.controllers = nn.ModuleList(nn.Linear(architecture.hidden[-1], width) for _ in architecture.actions
                                         if architecture.controller)
        self.heads = nn.ModuleList(nn.Linear(width, actions) for actions in architecture.actions)
        self.register_buffer("scale", torch.ones(len(architecture.actions), architecture.inputs))

    def features(self, state_nd: Tensor, game: int = 0) -> Tensor:
        """What a game's head reads [N, H]."""
        x = state_nd.to(self.scale.dtype) * self.scale[game]
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return torch.tanh(self.controllers[game](x)) if len(self.controllers) else x


Architecture = VectorArchitecture | ConvArchitecture


class GamesPolicy(ByGame):
    """One student of several games (Rusu et al. 2016, appendix B): a body that they share, and for each a layer of its
    own ("controller") and a head. Stored like a `ControlPolicy`.

    Where states are vectors of different lengths the body reads them filled up with zeros: it is shared from its first
    layer on, as the paper's is. It is not told which game it sees; controllers and heads are the game's own.
    """

    def __init__(self, form: Form, architecture: Architecture, *, generator: Generator | None = None) -> None:
        """Args: generator: draws the initial weights; None leaves them zero, for loading."""
        super().__init__()
        self.form, self.architecture = form, architecture
        self.n_actions = max(form.actions)
        widths = [architecture.hidden] if isinstance(architecture, ConvArchitecture) else architecture.hidden
        self.n_features = 1 + (architecture.controller or widths[-1])
        convolutions = len(KERNELS) if isinstance(architecture, ConvArchitecture) else 0
        self.n_layers = convolutions + len(widths) + bool(architecture.controller) + 1
        with torch.device("meta"):  # else it would draw from (and move) the global random state
            network = (ConvNetwork(architecture) if isinstance(architecture, ConvArchitecture)
                       else VectorNetwork(architecture))
        self.network = network.to_empty(device="cpu")
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.zero_()
            for scale in self.network.buffers():
                scale.fill_(1.0)
            if generator is not None:
                draw(self.network, self.network.heads, generator)

    def features_in(self, marked_n: Tensor, game: int) -> Tensor:
        feature_nh: Tensor = self.network.features(self.form.common(marked_n), game)
        return feature_nh

    def logits_in(self, features_nh: Tensor, game: int) -> Tensor:
        logits_na: Tensor = self.network.heads[game](features_nh)
        return logits_na

    def forward_flops(self, n_states: int, context: float) -> float:
        own = (multiplications(self.architecture) if isinstance(self.architecture, ConvArchitecture)
               else self.architecture.multiplications())
        return 2.0 * n_states * own

    def check_fits(self, form: Form, where: str) -> None:
        """Raise a UserError where other games are played."""
        if self.form != form:
            raise UserError(f"{where}: the policy is for games with states {self.form.shapes} and {self.form.actions} "
                            f"actions, and these have {form.shapes} and {form.actions}",
                            "pass a student that was trained on games of the same kind, in the same order")

    def save(self, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write policy.json and policy.safetensors, with weights as `dtype` (float32 or float16).

        Raises:
            UserError: the folder cannot be written.
        """
        tensors = {name: tensor.detach().to("cpu", dtype) for name, tensor in self.network.state_dict().items()}
        folder.write(path, {"format": FORMAT, "kind": KIND, "form": asdict(self.form),
                            "network": asdict(self.architecture)}, tensors)

    @classmethod
    def load(cls, path: Path) -> GamesPolicy:
        """Read what `save` wrote; weights are computed in float32 however they were stored.

        Raises:
            UserError: a file is missing, cut short, or does not fit the other.
        """
        def build(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> GamesPolicy:
            policy = cls(*_parse(description))
            expected = {name: tuple(tensor.shape) for name, tensor in policy.network.state_dict().items()}
            folder.require_shapes(tensors, expected)
            policy.network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
            return policy

        return folder.read(path, build)


def _parse(stored: Mapping[str, Any]) -> tuple[Form, Architecture]:
    folder.require_format(stored)
    given, network = stored["form"], stored["network"]
    form = Form(tuple(tuple(map(int, shape)) for shape in given["shapes"]), _whole(given["actions"]),
                int(given["stack"]))
    controller = None if network["controller"] is None else int(network["controller"])
    architecture: Architecture
    if form.stack:
        first, second, third = _whole(network["channels"])
        architecture = ConvArchitecture((first, second, third), int(network["hidden"]), form.actions, controller,
                                        int(network["frames"]))
        if {*form.shapes} != {(architecture.frames, SIDE, SIDE)}:
            raise ValueError(f"states {form.shapes} are not the stacks that its network reads")
        count = multiplications(replace(architecture, channels=(1, 1, third)))
        sizes = [first, second, third, architecture.hidden, architecture.frames]
    else:
        architecture = VectorArchitecture(form.width, _whole(network["hidden"]), form.actions, controller)
        count, sizes = architecture.multiplications(), [architecture.inputs, *architecture.hidden]
    sizes += [*form.actions, 1 if controller is None else controller, *(size for one in form.shapes for size in one)]
    if (min(sizes) < 1 or max(sizes) > 1 << 14 or not 0 < len(form.actions) == len(form.shapes)
            or 4 * count * len(form.actions) > folder.MAX_BYTES):
        raise ValueError(f"sizes {sizes[:20]} are out of range")
    return form, architecture


def _whole(values: Sequence[Any]) -> tuple[int, ...]:
    return tuple(map(int, values))
