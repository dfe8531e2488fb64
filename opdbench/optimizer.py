"""AdamW as the loop uses it: fused, with a schedule, and with float32 masters when the student is bfloat16."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from opdbench.schema.spec import Training


class Optimizer:
    """AdamW over the student's parameters.

    A bfloat16 weight of size 1 cannot move by less than 0.004, and a learning rate of 1e-5 asks for less: such weights
    get a float32 copy, which is what AdamW updates and what the weights are rounded from after every step.
    Fused: one dispatch instead of a dozen a parameter, which counts for small models on a CPU.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], training: Training) -> None:
        self.parameters = list(parameters)
        self._training = training
        self._masters = [_master(parameter) for parameter in self.parameters]
        self._adamw = torch.optim.AdamW(self._masters, lr=training.lr, weight_decay=training.weight_decay,
                                        betas=(training.adam_beta1, training.adam_beta2), fused=True)

    def clip(self) -> float:
        """Scale gradients down to the largest norm that is allowed, and return the norm that they had."""
        limit = self._training.grad_clip
        return float(nn.utils.clip_grad_norm_(self.parameters, limit if limit is not None else math.inf))

    def step(self, step: int, progress: float) -> None:
        """One update at the learning rate of `step`, after `progress` of the budget; gradients are dropped."""
        for group in self._adamw.param_groups:
            group["lr"] = learning_rate(self._training, step, progress)
        for master, parameter in self._pairs():
            master.grad = None if parameter.grad is None else parameter.grad.float()
        self._adamw.step()
        with torch.no_grad():
            for master, parameter in self._pairs():
                parameter.copy_(master)
        self.zero_grad()

    def zero_grad(self) -> None:
        for parameter in (*self.parameters, *self._masters):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self._adamw.state_dict(), "masters": [master.detach() for master, _ in self._pairs()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._adamw.load_state_dict(state["adamw"])
        with torch.no_grad():
            for (master, _), saved in zip(self._pairs(), state["masters"], strict=True):
                master.copy_(saved)

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """(float32 copy, parameter) of those that have one."""
        return [(master, parameter) for master, parameter in zip(self._masters, self.parameters, strict=True)
                if master is not parameter]


def learning_rate(training: Training, step: int, progress: float) -> float:
    """The learning rate at a step: warm-up, then the schedule over the share of the budget that is spent."""
    warm = min(1.0, (step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
    decay = {"constant": 1.0, "linear": 1 - progress, "cosine": 0.5 * (1 + math.cos(math.pi * progress))}
    return training.lr * warm * decay[training.schedule]


def _master(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().float()) if parameter.dtype == torch.bfloat16 else parameter
