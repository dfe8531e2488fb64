"""Bit-for-bit comparison of states, and of the global random state that nobody may touch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def differences(first: Any, second: Any, path: str = "") -> Iterator[str]:
    """Dotted paths at which two trees of dicts, lists, tensors and plain values differ by so much as a bit."""
    if isinstance(first, Mapping) and isinstance(second, Mapping) and first.keys() == second.keys():
        for key in first:
            yield from differences(first[key], second[key], f"{path}.{key}" if path else str(key))
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple) and len(first) == len(second):
        for index, (one, other) in enumerate(zip(first, second, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif isinstance(first, Tensor) and isinstance(second, Tensor):
        if not same_bits(first, second):
            yield path
    elif type(first) is not type(second) or first != second:
        yield path


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Equal dtype, shape and values, where NaN equals NaN."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def random_state() -> list[Any]:
    """The state of the global generators of Python, numpy and torch, comparable with `differences`."""
    numpy_state = [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]
    return [random.getstate(), numpy_state, torch.get_rng_state()]


@contextmanager
def other_random_state() -> Iterator[None]:
    """Seed the global generators differently inside, and put them back afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(20_110)
    np.random.seed(20_110)
    torch.manual_seed(20_110)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
