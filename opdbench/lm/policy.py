"""What a language model must offer besides `Policy`: incremental decoding, and what belongs to its folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from opdbench.policy import Policy

if TYPE_CHECKING:
    from opdbench.lm.tokenizer import Tokenizer
    from opdbench.task import Example


class Decoding(Protocol):
    """A batch of sequences being written token by token; holds the key-value cache."""

    logits_ba: Tensor
    """float32 or wider [B, A], for the token that follows everything read so far."""

    def step(self, token_b: Tensor) -> Tensor:
        """Read one token a sequence, int64 [B]; returns the new `logits_ba`."""

    def keep(self, index_b: Tensor) -> None:
        """Go on with the sequences at `index_b` only, in that order."""


class Speaker(Protocol):
    """Who is asked about a batch of problems: for features of what was written, or to write."""

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        """See `Policy.features`."""

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Decoding:
        """See `LanguagePolicy.start`."""


class LanguagePolicy(Policy):
    """A causal language model with its tokenizer. Dropout is off, always: sampling and scoring must agree.

    Attributes:
        tokenizer: reads and writes its text.
        context_length: the longest sequence it was made for, in tokens.
        n_actions: size of the output vocabulary that is used (`limit_vocabulary` may lower it).
        checkpointing: whether a gradient recomputes the layers' activations instead of keeping them.
    """

    tokenizer: Tokenizer
    context_length: int
    checkpointing: bool = False

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Decoding:
        """Read `prompts` (at least one token each) and make room for `capacity` more tokens a sequence."""

    @abstractmethod
    def describe(self) -> str:
        """One line: architecture, size, and which implementation runs it and why."""

    def on(self, examples: Sequence[Example]) -> Speaker:
        """Who answers for these problems, one a sequence: itself, unless several share the work (lm/teachers.py)."""
        return self

    def members(self) -> list[LanguagePolicy]:
        """The single models that it is made of."""
        return [self]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def limit_vocabulary(self, n_tokens: int) -> None:
        """Use the first `n_tokens` ids only; the rest is padding that two models of one tokenizer need not share."""
        if not 0 < n_tokens <= self.n_actions:
            raise ValueError(f"cannot limit a vocabulary of {self.n_actions} to {n_tokens}")
        self.n_actions = n_tokens


def pad_right(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids int64 [B, T], zero beyond each length, and the lengths int64 [B]."""
    lengths = [len(sequence) for sequence in sequences]
    if min(lengths) == 0:
        raise ValueError("every sequence needs at least one token")
    longest = max(lengths)
    padded = [[*sequence, *[0] * (longest - len(sequence))] for sequence in sequences]
    return torch.tensor(padded, device=device), torch.tensor(lengths, device=device)


def widen(logits: Tensor) -> Tensor:
    """Logits in float32 or wider: softmax and divergences over a large vocabulary need it."""
    return logits if logits.dtype == torch.float64 else logits.float()
