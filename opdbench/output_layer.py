"""The output layer of a language model: logits of features, with a gradient that can be summed without a second copy.

Over 150,000 tokens the gradient of this one matrix is most of what a chunk of rows still costs: automatic
differentiation makes a new one for each chunk and adds it to the last. Where the caller wants nothing but `.grad`, as
the training loop does, each chunk's share is added by the matrix product itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

_in_place: ContextVar[bool] = ContextVar("in_place", default=False)


@contextmanager
def summed_in_place() -> Iterator[None]:
    """Inside, `project` adds the weight's gradient to `weight.grad` itself and hands none to automatic differentiation.

    For `backward` only: `torch.autograd.grad` would not be told of it.
    """
    token = _in_place.set(True)
    try:
        yield
    finally:
        _in_place.reset(token)


def project(features_nh: Tensor, weight_ah: Tensor, n_actions: int) -> Tensor:
    """Logits [N, n_actions] of features [N, H] under the first `n_actions` rows of the weight [A, H]."""
    if not (_in_place.get() and torch.is_grad_enabled() and weight_ah.requires_grad and weight_ah.is_leaf):
        return linear(features_nh, weight_ah[:n_actions])
    logits_na: Tensor = _Project.apply(features_nh, weight_ah, n_actions)  # type: ignore[no-untyped-call]
    return logits_na


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features_nh: Tensor, weight_ah: Tensor, n_actions: int) -> Tensor:
        ctx.save_for_backward(features_nh, weight_ah)
        ctx.n_actions = n_actions
        return linear(features_nh, weight_ah[:n_actions])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_na: Tensor) -> tuple[Tensor | None, None, None]:
        features_nh, weight_ah = ctx.saved_tensors
        if weight_ah.grad is None:
            weight_ah.grad = torch.zeros_like(weight_ah)
        weight_ah.grad[:ctx.n_actions].addmm_(gradient_na.T, features_nh)
        return gradient_na @ weight_ah[:ctx.n_actions] if ctx.needs_input_grad[0] else None, None, None
