"""Seeds: every random draw has a purpose, and its seed is derived from the run's seed and that purpose.

A draw that depends only on (seed, purpose, step) needs no saved generator state: a run that resumes at step k draws
what it would have drawn. Methods that share a purpose share its randomness (common random numbers), so that two methods
at one seed see the same prompts in the same order.
"""

from __future__ import annotations

import hashlib
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Generator


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for `purpose`, from the run's seed; equal on every machine and Python version."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(seed: int, *purpose: str | int) -> Random:
    return Random(derive(seed, *purpose))


def generator(seed: int, *purpose: str | int, device: str = "cpu") -> Generator:
    import torch

    return torch.Generator(device).manual_seed(derive(seed, *purpose))
