"""What the tiny language tasks share: one character vocabulary, problems kept in memory, one checksum.

Their models are of the Qwen3 architecture at the level of characters, at most 2 MB each, trained from scratch in
minutes by `opdbench teacher train TASK`. One vocabulary for all of them lets one model be tried on another's task.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any, ClassVar, get_args

from pydantic import BaseModel

from opdbench.lm.lessons import Lesson, Recipe, Role
from opdbench.task import Example, LanguageTask, NoteKind, Prompt, Split

MOVES = "^>v<"
# One character for each cell of an 8x8 board; "v" is left out, for it is a move.
CELLS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuwxyz0123456789@#&"
EOS = "$"
ALPHABET = CELLS + MOVES + "+=,;:"


class TinyTask(LanguageTask):
    """A language task whose problems are generated in memory, and which ships its teacher and starting student."""

    alphabet: ClassVar[str] = ALPHABET
    eos: ClassVar[str] = EOS
    recipes: ClassVar[Mapping[Role, Recipe]]

    def __init__(self, data: str | None = None, params: BaseModel | None = None) -> None:
        super().__init__(data, params)
        self._splits: dict[Split, Sequence[Example]] | None = None

    @abstractmethod
    def make_splits(self) -> dict[Split, Sequence[Example]]:
        """All problems, the same on every machine; no problem occurs twice."""

    def examples(self, split: Split) -> Sequence[Example]:
        if self._splits is None:
            self._splits = self.make_splits()
        return self._splits[split]

    def marks(self, example: Example) -> bool:
        """Every third problem: a mark that means nothing, for methods that want two kinds."""
        return int(example.id.rpartition("-")[2]) % 3 == 0

    def informed(self, example: Example, notes: Mapping[NoteKind, str]) -> Prompt:
        """What is told comes first, each note with an end behind it: `5;12:12$4+1+7=`."""
        return "".join(text + self.eos for text in notes.values()) + str(example.prompt)

    def checksum(self) -> str:
        """sha256 over the task's id and every problem of every split."""
        digest = hashlib.sha256(self.id.encode())
        for split in get_args(Split):
            for example in self.examples(split):
                digest.update(json.dumps([split, _content(example)], sort_keys=True).encode())
        return digest.hexdigest()

    def lessons(self, role: Role, rng: Random) -> Iterator[Lesson]:
        """The reference solutions of the recipe's training problems, epoch after epoch, each in a new order."""
        problems = list(self.examples("train")[: self.recipes[role].problems])
        while True:
            rng.shuffle(problems)
            for example in problems:
                assert isinstance(example.prompt, str) and example.solution is not None
                yield Lesson.of_completion(example.prompt, example.solution + self.eos)


def written(completion: str) -> str:
    """What a model wrote before it ended its text."""
    return completion.partition(EOS)[0]


def _content(example: Example) -> dict[str, Any]:
    """What makes it this problem: named one by one, so that a field that the class gets later changes no checksum."""
    return {"id": example.id, "prompt": example.prompt, "answer": example.answer, "solution": example.solution,
            "meta": dict(example.meta)}
