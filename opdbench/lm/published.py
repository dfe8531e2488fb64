"""What tasks share whose problems are a published data set."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, get_args

from pydantic import BaseModel, Field, PositiveInt

from opdbench.task import Example, LanguageTask, Split


class PublishedTask(LanguageTask):
    """Problems that are read, once, from a folder given with --data or from the hub. Models are the user's."""

    teacher: ClassVar[str | None] = None  # named by the hardware profile, as is the student
    student: ClassVar[str | None] = None
    reads_data: ClassVar[bool] = True

    class Params(LanguageTask.Params):
        max_new_tokens: PositiveInt = Field(512, description="longest completion in tokens, when scores are taken")

    def __init__(self, data: str | None = None, params: BaseModel | None = None) -> None:
        super().__init__(data, params)
        self.max_new_tokens: int = self.params.max_new_tokens  # type: ignore[misc]  # the class's own is for training
        self._splits: dict[Split, Sequence[Example]] = {}

    @abstractmethod
    def read(self, split: Split) -> Mapping[Split, Sequence[Example]]:
        """The problems of a split in the published order, and other splits that are read with it.

        Raises:
            UserError: no data at hand, or files that are not the published ones.
        """

    def examples(self, split: Split) -> Sequence[Example]:
        """The problems of a split; read once.

        Raises:
            UserError: as `read`.
        """
        if split not in self._splits:
            self._splits |= self.read(split)
        return self._splits[split]

    def checksum(self) -> str:
        """sha256 of the task's name, version and problems."""
        digest = hashlib.sha256(self.id.encode())
        for split in get_args(Split):
            for example in self.examples(split):
                fields = (split, example.id, example.prompt, example.answer, example.solution, dict(example.meta))
                digest.update(json.dumps(fields, sort_keys=True).encode())
        return digest.hexdigest()


class SampledTask(PublishedTask):
    """One with so few problems that each is answered several times when sampling is scored."""

    class Params(PublishedTask.Params):
        samples: PositiveInt = Field(4, description="completions of every problem when sampling is scored")

    def __init__(self, data: str | None = None, params: BaseModel | None = None) -> None:
        super().__init__(data, params)
        self.samples: int = self.params.samples  # type: ignore[misc]
