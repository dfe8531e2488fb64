"""A method's own estimate of V(s): regression on sampled returns, apart from the student and from the loop's optimizer.

Used by baselines/dpd.py and baselines/alphazero.py. A value network that the loop trains is `opdbench.value_network`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import skip_init


class Critic:
    """A perceptron with its own Adam, made when it first learns. Before that it says 0 everywhere.

    Args:
        hidden: units of its one hidden layer; 0 for a linear function, which over one-hot states is a table.
        lr: learning rate.
        bounded: values lie between -1 and 1.
    """

    def __init__(self, *, hidden: int, lr: float, bounded: bool = False) -> None:
        self._hidden, self._lr, self._bounded = hidden, lr, bounded
        self._net: nn.Sequential | None = None
        self._optimizer: torch.optim.Adam | None = None

    @torch.no_grad()
    def values(self, state_n: Tensor) -> Tensor:
        """V [N] of states [N, ...]."""
        if self._net is None:
            return torch.zeros(len(state_n), device=state_n.device)
        return self._forward(self._net, state_n)

    def fit(self, state_n: Tensor, return_n: Tensor, *, generator: Generator, steps: int = 1, batch: int | None = None
            ) -> None:
        """Steps of regression on returns [N] of states [N, ...], on all of them or on `batch` drawn ones each."""
        if self._net is None or self._optimizer is None:
            net, optimizer = self._make(state_n.flatten(1).shape[1], state_n)
            if self._hidden:
                self._draw(net, generator)
        else:
            net, optimizer = self._net, self._optimizer
        return_n = return_n.float()
        for _ in range(steps):
            chosen_n = slice(None) if batch is None else torch.randint(len(state_n), (batch,), generator=generator)
            optimizer.zero_grad()
            with torch.enable_grad():
                error_n = self._forward(net, state_n[chosen_n]) - return_n[chosen_n]
                error_n.square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        if self._net is None or self._optimizer is None:
            return {}
        moments = {str(key): dict(value) for key, value in self._optimizer.state_dict()["state"].items()}
        return {"weights": dict(self._net.state_dict()), "moments": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._net = self._optimizer = None
        if not state:
            return
        net, optimizer = self._make(state["weights"]["0.weight"].shape[1], state["weights"]["0.weight"])
        net.load_state_dict(state["weights"])
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": {int(key): value for key, value in state["moments"].items()},
                                   "param_groups": groups})

    def _forward(self, net: nn.Sequential, state_n: Tensor) -> Tensor:
        value_n: Tensor = net(state_n.flatten(1).float())[:, 0]
        return value_n.tanh() if self._bounded else value_n

    def _make(self, n_inputs: int, like: Tensor) -> tuple[nn.Sequential, torch.optim.Adam]:
        sizes = [(n_inputs, self._hidden), (self._hidden, 1)] if self._hidden else [(n_inputs, 1)]
        # skip_init: nn.Linear would draw from (and move) the global random state.
        layers: list[nn.Module] = [
            skip_init(nn.Linear, *size, device=like.device) for size in sizes]  # type: ignore[no-untyped-call]
        self._net = nn.Sequential(layers[0], nn.ReLU(), layers[1]) if self._hidden else nn.Sequential(*layers)
        for parameter in self._net.parameters():
            nn.init.zeros_(parameter)  # the last layer stays so: a value of 0 before anything is learnt
        self._optimizer = torch.optim.Adam(self._net.parameters(), lr=self._lr)
        return self._net, self._optimizer

    def _draw(self, net: nn.Sequential, generator: Generator) -> None:
        """The hidden layer's first weights."""
        first = net[0].weight
        assert isinstance(first, Tensor)
        with torch.no_grad():
            first.copy_(torch.randn(first.shape, generator=generator) * (2 / first.shape[1]) ** 0.5)
