"""Tiny reasoning tasks on reasoning-gym's generators: sums, sorting and base conversion, with worked solutions.

The problems come from reasoning-gym 0.1.25 (Apache-2.0; Stojanovski et al. 2025, "Reasoning Gym: Reasoning
Environments for Reinforcement Learning with Verifiable Rewards", arXiv:2505.24760). Only the wording is ours: a
question is written in a few characters, and the reference solution shows its intermediate results, so that models of
0.1M to 0.4M parameters can learn the task from scratch.

Two traps of the generators, and what is done about them. Item i of a dataset is seeded with seed + i, so that datasets
with neighbouring seeds are almost the same data: here every split reads its own stretch of one long dataset, far
longer than what it uses. And problems repeat: a prompt that was seen before, in any split, is dropped.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from typing import Any, ClassVar

from opdbench.lm.lessons import Recipe, Role
from opdbench.task import Example, NoteKind, Split
from opdbench.tasks.tiny import TinyTask, written

_STRETCH = 10_000_000  # items reserved for each split in reasoning-gym's endless sequence
# The test split is drawn first, so that it stays the same when more training problems are wanted.
_ORDER: tuple[Split, ...] = ("test", "validation", "train")


class ReasoningTask(TinyTask):
    """A family of problems from reasoning-gym, in our notation."""

    version: ClassVar[int] = 1
    source: ClassVar[str] = "reasoning-gym 0.1.25 (Stojanovski et al. 2025, arXiv:2505.24760); notation is ours"
    license: ClassVar[str] = "Apache-2.0 (generator); the problems are generated on this machine"
    metric: ClassVar[str] = "accuracy"
    generator: ClassVar[str]  # the dataset's name in reasoning-gym
    settings: ClassVar[Mapping[str, Any]]  # its configuration
    sizes: ClassVar[Mapping[Split, int]] = {"train": 10_000, "validation": 200, "test": 500}

    @abstractmethod
    def problem(self, item: Mapping[str, Any]) -> tuple[str, str, str]:
        """(prompt, answer, solution) of one item of reasoning-gym; a solution ends with its answer."""

    def make_splits(self) -> dict[Split, Sequence[Example]]:
        seen: set[str] = set()
        return {split: list(self._draw(split, seen)) for split in _ORDER}

    def _draw(self, split: Split, seen: set[str]) -> Iterator[Example]:
        """The split's problems; `seen` holds the prompts that are taken, and is added to."""
        import reasoning_gym  # takes a second

        seed = (1 + _ORDER.index(split)) * _STRETCH
        items = reasoning_gym.create_dataset(self.generator, seed=seed, size=_STRETCH, **self.settings)
        wanted = self.sizes[split]
        for index in range(_STRETCH):
            if wanted == 0:
                return
            prompt, answer, solution = self.problem(items[index])
            if prompt not in seen:
                seen.add(prompt)
                wanted -= 1
                yield Example(f"{self.name}-{split}-{index}", prompt, answer, solution)
        raise ValueError(f"{self.generator} has fewer distinct problems than {self.sizes}")

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """Exact match of what stands after the last colon (of everything, where there is none); where a solution has
        intermediate results, also whether all of it is right."""
        text = written(completion)
        scores = {"accuracy": float(text.rpartition(":")[2] == example.answer)}
        if example.solution != example.answer:
            scores["worked"] = float(text == example.solution)
        return scores

    def notes(self, example: Example) -> dict[NoteKind, str]:
        """A hint is the first number to write; the cue, how many numbers the prompt has."""
        assert example.solution is not None and isinstance(example.prompt, str)
        return {**super().notes(example), "hint": re.split("[;,:]", example.solution)[0],
                "cues": str(len(re.findall("[0-9]+", example.prompt)))}

    def feedback(self, example: Example, completion: str) -> str | None:
        """How far the attempt agrees with the worked solution."""
        pairs = zip(example.solution or "", written(completion), strict=False)
        right = takewhile(lambda pair: pair[0] == pair[1], pairs)
        return "".join(character for character, _ in right) or None


class ChainSum(ReasoningTask):
    """Add 4 to 8 numbers from 0 to 10, writing the running totals: `4+1+7=` gives `5;12:12`."""

    name: ClassVar[str] = "chain-sum"
    summary: ClassVar[str] = "add 4 to 8 numbers from 0 to 10, writing the running totals"
    protocol: ClassVar[str] = (
        "500 test problems that occur in no other split. An answer is right when the text after the last colon is "
        "exactly the sum. Greedy accuracy is the headline, sampled accuracy (temperature 1, one sample) stands beside.")
    teacher: ClassVar[str | None] = "chain-sum/teacher"
    student: ClassVar[str | None] = "chain-sum/student"
    max_new_tokens: ClassVar[int] = 28  # seven totals and the answer of two digits each, their separators, the end
    training: ClassVar[Mapping[str, Any]] = {"lr": 2e-3, "schedule": "linear", "batch": 32}
    budget: ClassVar[Mapping[str, float]] = {"steps": 700}
    generator: ClassVar[str] = "basic_arithmetic"
    # reasoning-gym draws "one digit" from 0 to 10 inclusive.
    settings: ClassVar[Mapping[str, Any]] = {
        "min_terms": 4, "max_terms": 8, "min_digits": 1, "max_digits": 1, "operators": ["+"],
        "allow_parentheses": False, "allow_negation": False}
    recipes: ClassVar[Mapping[Role, Recipe]] = {
        "teacher": Recipe(hidden=96, layers=3, heads=4, intermediate=256, steps=700, batch=32, lr=6e-3),
        "student": Recipe(hidden=64, layers=2, heads=4, intermediate=176, steps=300, batch=32, lr=6e-3, problems=1000),
        # Its tokens are numbers: digits join, up to all of the two-digit numbers that occur.
        "bpe-teacher": Recipe(hidden=96, layers=3, heads=4, intermediate=256, steps=700, batch=32, lr=6e-3, merges=80),
    }

    def problem(self, item: Mapping[str, Any]) -> tuple[str, str, str]:
        terms = [int(term) for term in item["metadata"]["expression"].split("+")]
        totals = [str(sum(terms[:count])) for count in range(2, len(terms) + 1)]
        return "+".join(map(str, terms)) + "=", item["answer"], ";".join(totals) + ":" + item["answer"]


class NumberSorting(ReasoningTask):
    """Sort 3 to 6 numbers below 100, upwards (`<`) or downwards (`>`): `34,7,88<` gives `7,34,88`."""

    name: ClassVar[str] = "number-sorting"
    summary: ClassVar[str] = "sort 3 to 6 numbers below 100, upwards or downwards"
    protocol: ClassVar[str] = (
        "500 test problems that occur in no other split. An answer is right when it is exactly the sorted list. Greedy "
        "accuracy is the headline, sampled accuracy (temperature 1, one sample) stands beside.")
    teacher: ClassVar[str | None] = "number-sorting/teacher"
    student: ClassVar[str | None] = "number-sorting/student"
    max_new_tokens: ClassVar[int] = 18  # six numbers of two digits, five commas, the end
    training: ClassVar[Mapping[str, Any]] = {"lr": 2e-3, "schedule": "linear", "batch": 32}
    budget: ClassVar[Mapping[str, float]] = {"steps": 700}
    generator: ClassVar[str] = "number_sorting"
    settings: ClassVar[Mapping[str, Any]] = {
        "min_numbers": 3, "max_numbers": 6, "min_decimals": 0, "max_decimals": 0, "min_value": 0, "max_value": 99}
    recipes: ClassVar[Mapping[Role, Recipe]] = {
        "teacher": Recipe(hidden=96, layers=3, heads=4, intermediate=256, steps=1000, batch=32, lr=6e-3),
        "student": Recipe(hidden=64, layers=2, heads=4, intermediate=176, steps=250, batch=32, lr=6e-3, problems=1000),
    }

    def problem(self, item: Mapping[str, Any]) -> tuple[str, str, str]:
        direction = {"ascending": "<", "descending": ">"}[item["metadata"]["direction"]]
        numbers = ",".join(str(int(float(number))) for number in item["metadata"]["original_numbers"])
        answer = ",".join(str(int(float(number))) for number in item["metadata"]["sorted_numbers"])
        return numbers + direction, answer, answer


class BaseConversion(ReasoningTask):
    """Convert a number between bases 2 to 9 by way of ten: `2,1011>5=` gives `1;2;5;11;2r1;0r2:21`.

    The solution is what is done by hand: Horner's scheme up to the value in base ten, then division by the target
    base with remainders, which are the answer's digits from the last to the first.
    """

    name: ClassVar[str] = "base-conversion"
    summary: ClassVar[str] = "convert a number below 128 between bases 2 to 9, by way of base ten"
    protocol: ClassVar[str] = (
        "500 test problems that occur in no other split. An answer is right when the text after the last colon is "
        "exactly the number in the target base. Greedy accuracy is the headline, sampled accuracy (temperature 1, one "
        "sample) stands beside.")
    teacher: ClassVar[str | None] = "base-conversion/teacher"
    student: ClassVar[str | None] = "base-conversion/student"
    max_new_tokens: ClassVar[int] = 64
    training: ClassVar[Mapping[str, Any]] = {"lr": 2e-3, "schedule": "linear", "batch": 32}
    budget: ClassVar[Mapping[str, float]] = {"steps": 700}
    generator: ClassVar[str] = "base_conversion"
    settings: ClassVar[Mapping[str, Any]] = {"min_base": 2, "max_base": 9, "min_value": 10, "max_value": 127}
    sizes: ClassVar[Mapping[Split, int]] = {"train": 5_000, "validation": 200, "test": 500}  # of 6,608
    recipes: ClassVar[Mapping[Role, Recipe]] = {
        "teacher": Recipe(hidden=96, layers=3, heads=4, intermediate=256, steps=1300, batch=32, lr=6e-3),
        "student": Recipe(hidden=64, layers=2, heads=4, intermediate=176, steps=700, batch=32, lr=6e-3, problems=5000),
    }

    def problem(self, item: Mapping[str, Any]) -> tuple[str, str, str]:
        facts, answer = item["metadata"], item["answer"]
        digits, source, target = facts["source_repr"], facts["source_base"], facts["target_base"]
        totals = [str(int(digits[:count], source)) for count in range(1, len(digits) + 1)]
        divisions = []
        value = facts["decimal_value"]
        while value:
            divisions.append(f"{value // target}r{value % target}")
            value //= target
        return f"{source},{digits}>{target}=", answer, ";".join(totals + divisions) + ":" + answer
