"""What a small language model is taught before any distillation: lessons (data) and recipes (hyperparameters).

A task that ships its own teacher and starting student says here, as plain data, how both were made;
`opdbench.lm.train_teacher` does it. Nothing in this module imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import ClassVar, Literal, Protocol

Role = Literal["teacher", "student", "bpe-teacher"]
"""`bpe-teacher` is a second teacher whose tokens are not characters, to distil across tokenizers."""

SKIP = "\0"  # stands in `Lesson.targets` where nothing is asked


@dataclass(frozen=True)
class Lesson:
    """One supervised sequence of characters: having read text[: i + 1], the model should write targets[i].

    Keeping the two apart, instead of shifting one string, lets a lesson follow a walk with mistakes in it while it
    asks for the best move everywhere (the labels of DAgger).
    """

    text: str
    targets: str

    def __post_init__(self) -> None:
        if len(self.text) != len(self.targets):
            raise ValueError(f"a lesson needs one target a character: {len(self.text)} != {len(self.targets)}")

    @classmethod
    def of_completion(cls, prompt: str, completion: str) -> Lesson:
        """Ordinary supervision: read the prompt, write the completion."""
        return cls((prompt + completion)[:-1], SKIP * (len(prompt) - 1) + completion)

    def halves(self) -> tuple[str, str]:
        """The prompt and the completion of ordinary supervision.

        Raises:
            ValueError: what is asked is not how the text goes on, so that it cannot be cut into longer tokens.
        """
        completion = self.targets.lstrip(SKIP)
        prompt = self.text[:len(self.targets) - len(completion) + 1]
        if Lesson.of_completion(prompt, completion) != self:
            raise ValueError("this lesson asks for something else than the text that follows")
        return prompt, completion


@dataclass(frozen=True)
class Recipe:
    """How a model of the Qwen3 architecture is made from scratch: its shape, and AdamW with warm-up and linear decay.

    Attributes:
        hidden, layers, heads, intermediate: the architecture; heads are not grouped, and embeddings are tied.
        steps, batch, lr: updates, lessons per update, peak learning rate.
        warmup: the first part of `steps`, in which the learning rate rises from 0.
        problems: the lessons are about the first so many training problems; None means all of them.
        weight_decay: AdamW's, on matrices only.
        merges: pairs of tokens that are joined into one (byte-pair encoding, learned on lessons); 0: characters.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    steps: int
    batch: int
    lr: float
    warmup: float = 0.05
    problems: int | None = None
    weight_decay: float = 0.01
    merges: int = 0


class Teachable(Protocol):
    """What a language task adds so that `opdbench teacher train TASK` can make its models."""

    name: ClassVar[str]
    alphabet: ClassVar[str]  # every character its texts are made of, the end of text excepted
    eos: ClassVar[str]  # the character that ends a completion
    recipes: ClassVar[Mapping[Role, Recipe]]

    def lessons(self, role: Role, rng: Random) -> Iterator[Lesson]:
        """An endless stream of lessons; equal generators give equal streams."""
