"""What a task must say about itself. One file per family in `tasks/`; nothing here knows how a model is trained.

A task gives problems, says how an outcome is graded, and states its protocol. Grading is a pure function of what was
stored, so that a score can always be recomputed from a record's raw outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import gymnasium
    import numpy as np
    from numpy.typing import NDArray
    from stable_baselines3.common.vec_env import VecEnv
    from torch import Tensor

    from opdbench.lm.tokenizer import Tokenizer
    from opdbench.policy import Policy
    from opdbench.rl.search import Model
    from opdbench.rl.simulators import Simulators

Split = Literal["train", "validation", "test"]
Message = dict[str, str]  # {"role": "user", "content": "..."}
Prompt = str | Sequence[Message]
NoteKind = Literal["solution", "answer", "hint", "cues", "success", "failure", "feedback"]
"""What a teacher may be told besides the prompt: a reference solution, the final answer, advice that does not give the
answer away, what could be read off the prompt itself; attempts that were right or wrong, what came of the attempt."""

_INTRODUCTIONS: Mapping[NoteKind, str] = {
    "solution": "Here is a correct solution:", "answer": "The final answer is:", "hint": "A hint:",
    "cues": "What to notice:", "success": "Here is an attempt that was right:",
    "failure": "Here is an attempt that was wrong:", "feedback": "An earlier attempt was answered:"}
_AGAIN = "Now solve the problem yourself, step by step."


class Task(ABC):
    """Common to both worlds. `name@version` identifies it; a change that can move a score raises `version`."""

    name: ClassVar[str]
    version: ClassVar[int]
    domain: ClassVar[Literal["lm", "rl"]]
    summary: ClassVar[str]  # one line for `opdbench list`
    source: ClassVar[str]  # where the problems come from, with a citation
    license: ClassVar[str]
    protocol: ClassVar[str]  # how it is scored, in two or three sentences
    metric: ClassVar[str]  # the primary score's name: "accuracy", "success", "return"
    teacher: ClassVar[str | None]  # default teacher: a shipped name; None when the hardware profile names one
    student: ClassVar[str | None]  # default starting student, likewise
    training: ClassVar[Mapping[str, Any]]  # this task's defaults for `schema.spec.Training`
    budget: ClassVar[Mapping[str, float]]  # default budget, such as {"steps": 100}
    argument: ClassVar[str] = ""  # "NAME": the class stands for many tasks, each used as `name:NAME`; see `named`
    reads_data: ClassVar[bool] = False  # whether `--data` means anything to it
    executes: ClassVar[bool] = False  # whether grading runs programs that models wrote

    class Params(BaseModel):
        """What can be set about a task with `--set`; part of the recipe."""

        model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, data: str | None = None, params: BaseModel | None = None) -> None:
        """
        Args:
            data: folder or hub id to read the data from, for tasks that read any.
            params: an instance of the class's `Params`; defaults when None.
        """
        self.data = data
        self.params: Any = params if params is not None else self.Params()

    @classmethod
    def named(cls, argument: str) -> type[Task]:
        """The class of the task "name:argument", for a class that declares an `argument`; the class learns which from
        its own `name`."""
        own = {"name": f"{cls.name}:{argument}", "argument": ""}
        return type(cls.__name__, (cls,), {**own, "__module__": cls.__module__, "__doc__": cls.__doc__})

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    def games(self) -> Sequence[ControlTask]:
        """The tasks that this one is made of, which one student plays; none of an ordinary task."""
        return ()

    @abstractmethod
    def checksum(self) -> str:
        """sha256 of everything that problems and scores depend on; stored in every record."""

    def scorer(self) -> str | None:
        """The library that grades, with its version or signature, for the record; None when it is opdbench itself."""
        return None


@dataclass(frozen=True)
class Example:
    """One problem of a language task.

    Attributes:
        id: stable across runs and machines.
        prompt: text given to the model as it is, or chat messages that the tokenizer's template renders.
        answer: what the grader compares with.
        solution: a reference completion (the exact text to produce), where the task has one.
        meta: what the grader or the environment needs besides (JSON values).
        continuations: (context, continuation) pairs. Where there are any, nothing is written when scores are taken:
            the model says how probable each continuation is, and `LanguageTask.grade` reads that, as the JSON list
            [[log-probability, whether it is the greedy one], ...].
    """

    id: str
    prompt: Prompt
    answer: str
    solution: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    continuations: Sequence[tuple[str, str]] = ()


class Reply(NamedTuple):
    """An environment's turn inside a rollout: tokens appended to the context, excluded from the loss."""

    tokens: Sequence[int]
    done: bool


class Turns(Protocol):
    """The environment side of a batch of conversations; stateful, made anew for every rollout."""

    def reply(self, index: int, token: int) -> Reply | None:
        """What conversation `index` answers after the model has written `token`; None lets the model go on."""


class LanguageTask(Task):
    """Problems in text. Actions are tokens, the verifier's verdict is the return."""

    domain: ClassVar[Literal["lm", "rl"]] = "lm"
    max_new_tokens: ClassVar[int]  # horizon of a completion in tokens, environment turns included
    samples: ClassVar[int] = 1  # completions of every problem when sampling is scored
    stop_at_eos: ClassVar[bool] = True

    @abstractmethod
    def examples(self, split: Split) -> Sequence[Example]:
        """The problems of a split, in a fixed order; splits share no problem."""

    @abstractmethod
    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """Scores of one completion; the task's `metric` is among the keys. Pure: same text, same scores.

        Names that begin with `sum.` are statistics for figures of the whole test set; see `opdbench.corpus`.
        """

    def turns(self, examples: Sequence[Example], tokenizer: Tokenizer, rngs: Sequence[Random], *,
              evaluating: bool) -> Turns | None:
        """The environment that answers inside rollouts of `examples`, or None when only the model writes.

        Args:
            rngs: one for each example; a conversation that draws from its own alone hears the same in every batch.
        """
        return None

    def notes(self, example: Example) -> dict[NoteKind, str]:
        """What can be told about a problem to a teacher that may know more than the student does."""
        solution: dict[NoteKind, str] = {} if example.solution is None else {"solution": example.solution}
        return {**solution, "answer": example.answer} if example.answer else solution

    def feedback(self, example: Example, completion: str) -> str | None:
        """What is said to an attempt besides its score; None where nothing is."""
        return None

    def pictures(self, example: Example, completion: str) -> Sequence[NDArray[np.uint8]]:
        """What happens in a completion, step by step, as RGB pictures [H, W, 3] of one size, for `opdbench play`; none
        where there is nothing to see but text."""
        return ()

    def marks(self, example: Example) -> bool:
        """Whether a problem is of the kind that only some methods look at (a prompt to refuse)."""
        return False

    def informed(self, example: Example, notes: Mapping[NoteKind, str]) -> Prompt:
        """The prompt of a teacher that is told `notes`, in their order: below the problem, before it is to answer."""
        told = "\n\n".join([*(f"{_INTRODUCTIONS[kind]}\n{text}" for kind, text in notes.items()), _AGAIN])
        if isinstance(example.prompt, str):
            return f"{told}\n\n{example.prompt}"
        *before, last = example.prompt
        return [*before, {**last, "content": f"{last['content']}\n\n{told}"}]


class Guided(NamedTuple):
    """An environment in which another player sees more than a network does.

    Attributes:
        simulators: their states are stacks of pictures with one more row of pixels each, [S, H + 1, W].
        numbers: what the other player sees of such states [N, S, H + 1, W].
    """

    simulators: Simulators
    numbers: Callable[[Tensor], Tensor]


class ControlTask(Task):
    """A gymnasium environment. Actions are its actions, the episode's return is the score."""

    domain: ClassVar[Literal["lm", "rl"]] = "rl"
    metric: ClassVar[str] = "return"
    env_id: ClassVar[str]
    max_episode_steps: ClassVar[int]
    evaluation_episodes: ClassVar[int] = 100
    deterministic: ClassVar[bool] = False  # one start and no chance: episodes differ by what is drawn for actions only
    student_hidden: ClassVar[Sequence[int]]  # widths of the default student network; none: a table, of one-hot states
    student_scale: ClassVar[Sequence[float] | None] = None  # what a fresh network divides each observed number by
    yardstick: ClassVar[tuple[float, float] | None] = None
    """Mean returns of random actions and of a good player: between them scores of several tasks can be compared."""
    parallel_episodes: ClassVar[int | None] = None
    """Evaluation's episodes at a time, where one is expensive to set up or states are large: an episode's draws are
    then its own, and policies read states in batches of one size, so that no score depends on this number."""

    @abstractmethod
    def make(self) -> gymnasium.Env[Any, Any]:
        """One fresh environment, at evaluation's own rules (unclipped rewards, full episodes)."""

    def simulators(self) -> Simulators | None:
        """The task's own way of stepping many copies at once; None for one `make` a copy."""
        return None

    def training_env(self, n: int, seed: int) -> VecEnv | None:
        """What Stable-Baselines3 trains a teacher in, where that differs from `n` times `make`."""
        return None

    def guided(self) -> Guided:
        """What a teacher is taught in, for a task whose `teacher_recipe` is to imitate one that sees more."""
        raise NotImplementedError(f"{self.id} has no guide")

    def further(self, score: float) -> dict[str, float]:
        """Further scores of an episode with this return; their means stand beside its mean."""
        return {}

    def student_network(self) -> str | None:
        """The convolutional network that a fresh student is (a name in opdbench.rl.convolutional), for a task whose
        states are stacks of frames; None for a perceptron of `student_hidden`, or a table."""
        return None

    def controller(self) -> int:
        """Width of the hidden layer that each of several `games` has for itself in a fresh student; 0 for none."""
        return 0

    def exact_teacher(self) -> Policy | None:
        """A teacher that follows from the task's own rules, for `--teacher exact`; None where nobody can compute one.
        The task's checksum covers it."""
        return None

    def visible(self) -> gymnasium.Env[Any, Any]:
        """An environment like `make`'s whose `render` gives an RGB picture, uint8 [H, W, 3], for `opdbench play`. What
        `make` gives will do where it can be drawn; where nothing is drawn, `play` says so."""
        return self.make()

    def model(self) -> Model | None:
        """The task's rules, for methods that plan; None where there are none to plan with."""
        return None
