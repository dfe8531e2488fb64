"""Tasks with one mistake each, and the check that must find it."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import gymnasium

from opdbench.conformance.enumerable import EnumerableTask
from opdbench.conformance.tabular import TabularEnv, TabularTask
from opdbench.lm.tokenizer import Tokenizer
from opdbench.task import Example, Split, Task, Turns
from opdbench.tasks.text_maze import TextMaze


class GoodLanguage(EnumerableTask):
    name = "good-language"


class GoodControl(TabularTask):
    name = "good-control"


class NoProtocol(GoodLanguage):
    protocol = ""


class NoVersion(GoodLanguage):
    version = 0


class WrongDefaults(GoodLanguage):
    training: ClassVar[dict[str, Any]] = {"learning_rate": 0.1}


class NoBudget(GoodLanguage):
    budget: ClassVar[dict[str, float]] = {}


class OldConstructor(GoodLanguage):
    def __init__(self) -> None:
        super().__init__()


class Leaking(GoodLanguage):
    prompts: ClassVar[dict[Split, Sequence[str]]] = {
        "train": ("a", "b", "ab", "ba"), "validation": ("aa",), "test": ("ab",)}


class Unstable(GoodLanguage):
    def examples(self, split: Split) -> Sequence[Example]:
        return [replace(example, answer=str(random.random())) for example in super().examples(split)]


class SameIds(GoodLanguage):
    def examples(self, split: Split) -> Sequence[Example]:
        return [Example("problem", example.prompt, example.answer) for example in super().examples(split)]


class Random(GoodLanguage):
    def checksum(self) -> str:
        return f"{random.getrandbits(256):064x}"


class Fragile(GoodLanguage):
    def grade(self, example: Example, completion: str) -> dict[str, float]:
        return {"accuracy": float(completion.split()[-1] == example.answer)}


class NotANumber(GoodLanguage):
    def grade(self, example: Example, completion: str) -> dict[str, float]:
        return {"accuracy": float("nan") if "nan" in completion else float(completion == example.answer)}


class Slow(GoodLanguage):
    def grade(self, example: Example, completion: str) -> dict[str, float]:
        time.sleep(1.1 * (len(completion) > 4000))  # as a regular expression that goes back and forth would take
        return super().grade(example, completion)


class Mutating(GoodLanguage):
    def grade(self, example: Example, completion: str) -> dict[str, float]:
        example.meta["seen"] = True  # type: ignore[index]
        return super().grade(example, completion)


class OtherMetric(GoodLanguage):
    metric = "success"


class WrongSolutions(GoodLanguage):
    def grade(self, example: Example, completion: str) -> dict[str, float]:
        return {"accuracy": float(completion == "a")}


class RewardsSilence(GoodLanguage):
    def grade(self, example: Example, completion: str) -> dict[str, float]:
        return {"accuracy": float(completion in ("", example.answer))}


class NothingShipped(GoodLanguage):
    teacher = "good-language/teacher"


class OneWindForAll(TextMaze):
    def turns(self, examples: Sequence[Example], tokenizer: Tokenizer, rngs: Sequence[random.Random], *,
              evaluating: bool) -> Turns:
        return super().turns(examples, tokenizer, [rngs[0]] * len(rngs), evaluating=evaluating)


class Endless(GoodControl):
    max_episode_steps = 5


class Unseeded(GoodControl):
    def make(self) -> gymnasium.Env[Any, Any]:
        class Env(TabularEnv):
            def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
                observation, reward, *rest = super().step(action)
                return observation, reward + random.random(), *rest  # type: ignore[return-value]

        return gymnasium.wrappers.TimeLimit(Env(self.tables), 6)


class OneEpisode(GoodControl):
    def make(self) -> gymnasium.Env[Any, Any]:
        class Env(TabularEnv):
            def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
                return super().reset(seed=1)

        return gymnasium.wrappers.TimeLimit(Env(self.tables), 6)


class LeftOver(GoodControl):
    """Its observation counts the episodes that the environment has seen."""

    def make(self) -> gymnasium.Env[Any, Any]:
        class Env(TabularEnv):
            episodes = 0

            def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
                observation, info = super().reset(**keywords)
                self.episodes += 1
                return observation / self.episodes, info

        return gymnasium.wrappers.TimeLimit(Env(self.tables), 6)


class SeveralActions(GoodControl):
    def make(self) -> gymnasium.Env[Any, Any]:
        environment = TabularEnv(self.tables)
        environment.action_space = gymnasium.spaces.MultiDiscrete([2, 2])  # type: ignore[assignment]
        return environment


class NotDeterministic(GoodControl):
    deterministic = True


class Mistake(NamedTuple):
    task: type[Task]
    check: str
    """Beginning of the name of the check that must fail."""
    message: str
    """Part of what it must say."""


MISTAKES = (
    Mistake(NoProtocol, "class attributes", "`protocol` must be set"),
    Mistake(NoVersion, "class attributes", "`version` must be 1 or more"),
    Mistake(WrongDefaults, "defaults", "learning_rate"),
    Mistake(NoBudget, "defaults", "where training stops"),
    Mistake(OldConstructor, "can be made", "unexpected keyword argument"),
    Mistake(Leaking, "splits share no problem", "train-2 and test-0 are the same"),
    Mistake(Unstable, "problems and ids are stable", "split train is not the same"),
    Mistake(SameIds, "problems and ids are stable", "the same id"),
    Mistake(Random, "checksum", "not the same for two instances"),
    Mistake(Fragile, "grading", "IndexError"),
    Mistake(NotANumber, "grading", "'nan'"),
    Mistake(Slow, "grading", "s for "),
    Mistake(Mutating, "grading", "changes the problem"),
    Mistake(OtherMetric, "grading", "named 'success'"),
    Mistake(WrongSolutions, "reference solutions", "score less than those of others"),
    Mistake(RewardsSilence, "reference solutions", "an empty completion scores 1.0"),
    Mistake(OneWindForAll, "environment turns", "depends on the batch"),
    Mistake(NothingShipped, "shipped models", "for good-language/teacher"),
    Mistake(Endless, "episodes end", "goes on beyond max_episode_steps = 5"),
    Mistake(Unseeded, "episodes repeat", "equal seeds and equal actions differ"),
    Mistake(OneEpisode, "episodes repeat", "no influence"),
    Mistake(LeftOver, "a new episode", "something is left over"),
    Mistake(SeveralActions, "spaces", "only Discrete"),
    Mistake(NotDeterministic, "episodes repeat", "the seed changes its episodes"),
)
