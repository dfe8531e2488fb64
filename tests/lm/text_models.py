"""Language models over different tokenizers, small enough that every completion and its probability can be listed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from opdbench.conformance.enumerable import prefix_index
from opdbench.lm.bridge import BridgedWorld
from opdbench.lm.generate import Completion, to_rollouts
from opdbench.lm.policy import LanguagePolicy
from opdbench.lm.tokenizer import Tokenizer
from opdbench.lm.world import LanguageWorld
from opdbench.rollouts import Rollouts, Source
from opdbench.task import Example, LanguageTask, Split

PAD, EOS = 0, 1
LONGEST = 5  # tokens that a model can read: one of prompt, and a completion


def tokenizer(*tokens: str) -> Tokenizer:
    """Byte pairs: single characters first, then joined ones, whose halves must be there; a later one joins later."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *tokens])}
    merges = [(token[:-1], token[-1]) for token in tokens if len(token) > 1]
    backend = Backend(models.BPE(vocabulary, merges))
    backend.decoder = decoders.Fuse()
    fast: Any = PreTrainedTokenizerFast
    return Tokenizer(fast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>",
                          clean_up_tokenization_spaces=False), frozenset([EOS]))


class TableModel(LanguagePolicy):
    """Logits of its own after every sequence of tokens, in float64."""

    context_length = LONGEST

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__()
        self.tokenizer, self.n_actions = tokenizer, tokenizer.n_tokens
        n_prefixes = sum(self.n_actions**length for length in range(LONGEST + 1))
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(n_prefixes, self.n_actions, generator=generator, dtype=torch.float64))

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        return self.table[prefix_index(input_bt, length_b, self.n_actions)]

    def project(self, features_nh: Tensor) -> Tensor:
        return features_nh

    def forward_flops(self, n_states: int, context: float) -> float:
        return float(n_states)

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Written:
        return Written(self, [list(prompt) for prompt in prompts])

    def describe(self) -> str:
        return "a table"

    def save(self, folder: Path) -> None:
        raise NotImplementedError("a table has no folder")

    def place(self, tokens: Sequence[int]) -> int:
        """The row of the table that says what follows `tokens`."""
        length_1 = torch.tensor([len(tokens)])
        return int(prefix_index(torch.tensor([list(tokens)]), length_1, self.n_actions)[0, -1])

    def p(self, tokens: Sequence[int]) -> Tensor:
        """The distribution after `tokens` [A]."""
        return self.table[self.place(tokens)].softmax(-1)

    def spells(self, token: int) -> str:
        """A token's text; special ones in angle brackets."""
        return str(self.tokenizer.inner.convert_ids_to_tokens(token))


class Written:
    """Sequences being written; see `Decoding`."""

    def __init__(self, model: TableModel, sequences: list[list[int]]) -> None:
        self._model, self._sequences = model, sequences
        self.step(torch.tensor([], dtype=torch.int64))

    def step(self, token_b: Tensor) -> Tensor:
        for sequence, token in zip(self._sequences, token_b.tolist(), strict=False):
            sequence.append(token)
        self.logits_ba = torch.stack([self._model.table[self._model.place(tokens)] for tokens in self._sequences])
        return self.logits_ba

    def keep(self, index_b: Tensor) -> None:
        self._sequences = [self._sequences[index] for index in index_b.tolist()]
        self.logits_ba = self.logits_ba[index_b]


class Letters(LanguageTask):
    """Go on after an "a"; every letter earns."""

    name, version, summary, source, license, protocol = "letters", 1, "", "here", "none", ""
    metric, teacher, student, training, budget = "letters", None, None, {}, {}
    max_new_tokens: ClassVar[int] = 3

    def checksum(self) -> str:
        return "0"

    def examples(self, split: Split) -> Sequence[Example]:
        return [Example("0", "a", answer="", solution="ab")]

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        return {"letters": len(completion) / 10}


def bridged(student: Sequence[str], teacher: Sequence[str], **settings: Any) -> BridgedWorld:
    """A world of two tables over these tokens."""
    return BridgedWorld(Letters(), TableModel(tokenizer(*student), 1), TableModel(tokenizer(*teacher), 2), seed=0,
                        **settings)


def rollouts_of(world: LanguageWorld, completions: Sequence[Sequence[int]]) -> Rollouts:
    """Completions of the one prompt, as the student would have written them."""
    written = [Completion(list(tokens), [int(Source.STUDENT)] * len(tokens), [0.0] * len(tokens), EOS in tokens)
               for tokens in completions]
    zeros_b = torch.zeros(len(written), dtype=torch.int64)
    return to_rollouts([prompt(world)] * len(written), written).with_columns(
        per_trajectory={"example": zeros_b, "group": zeros_b})


def prompt(world: LanguageWorld) -> list[int]:
    return world.tokenizer.encode("a")


def completions(world: BridgedWorld, length: int = 3) -> list[list[int]]:
    """All that a student can write within `length` tokens, none of them padding."""
    ordinary = range(EOS + 1, world.student.n_actions)
    closed = [[*tokens, EOS] for size in range(length) for tokens in product(ordinary, repeat=size)]
    return [*closed, *map(list, product(ordinary, repeat=length))]


def weights(world: BridgedWorld, texts: Sequence[Sequence[int]]) -> Tensor:
    """The student's probability of each completion, a constant [B]."""
    student = world.student
    assert isinstance(student, TableModel)
    return torch.stack([torch.stack([student.p([*prompt(world), *tokens[:place]])[token]
                                     for place, token in enumerate(tokens)]).prod() for tokens in texts]).detach()

