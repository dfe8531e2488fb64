"""A language small enough to enumerate: three tokens, three steps, tables in float64.

Every completion of every prompt can be listed (`completions`), so that any expectation over rollouts has an exact
value, and an estimator can be held against it. It implements `opdbench.world.World`, so the real loop runs on it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor, nn

from opdbench import seeds
from opdbench.actors import Actor, Student, uniform_table
from opdbench.lm.generate import Completion, below, completion_of, last_decision, to_rollouts
from opdbench.lm.policy import pad_right
from opdbench.oracle import Oracle
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts, Source
from opdbench.task import Example, LanguageTask, NoteKind, Prompt, Split
from opdbench.world import Outcome

END, A, B = range(3)
TEXT = "$ab"  # token ids are positions in it
HORIZON = 3
LONGEST_INPUT = 4  # two tokens of prompt, and all of a completion but its last token


class PrefixPolicy(Policy):
    """A table: every prefix has its own features, and one linear layer makes logits of them. A prefix longer than the
    language has (below another prompt) shares those of some other prefix.

    With as many features as actions and `tabular=True`, features are the logits: every state is independent.
    """

    def __init__(self, generator: Generator, *, scale: float, n_features: int = 5, tabular: bool = False) -> None:
        """
        Args:
            generator: draws the table, and the linear layer.
            scale: standard deviation of the logits, about: 0 is the uniform policy, 2 a confident one.
            n_features: H.
            tabular: leave the linear layer out; `n_features` is then the number of tokens.
        """
        super().__init__()
        self.n_actions = len(TEXT)
        n_features = self.n_features = self.n_actions if tabular else n_features
        n_prefixes = sum(self.n_actions**length for length in range(LONGEST_INPUT + 1))
        self.table = nn.Parameter(_normal((n_prefixes, n_features), generator))
        self.head = None if tabular else nn.Parameter(_normal((self.n_actions, n_features), generator))
        with torch.no_grad():
            self.table.mul_(scale if tabular else scale / n_features**0.5)

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        return self.table[prefix_index(input_bt, length_b, self.n_actions) % len(self.table)]

    def project(self, features_nh: Tensor) -> Tensor:
        return features_nh if self.head is None else features_nh @ self.head.T

    def forward_flops(self, n_states: int, context: float) -> float:
        return 0.0 if self.head is None else 2.0 * n_states * self.head.numel()

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")


def prefix_index(input_bt: Tensor, length_b: Tensor, n_tokens: int) -> Tensor:
    """The number of every prefix in bijective base `n_tokens`, int64 [B, T]; 0 (the empty prefix) beyond `length_b`."""
    index_b = torch.zeros_like(length_b)
    columns = []
    for step in range(input_bt.shape[1]):
        index_b = torch.where(step < length_b, index_b * n_tokens + input_bt[:, step] + 1, 0)
        columns.append(index_b)
    return torch.stack(columns, 1)


class EnumerableTask(LanguageTask):
    """Write `a` after a prompt that ends in a, and `ba` after one that ends in b.

    Args:
        echo: an environment answers every `b` with an `a`, so that there are tokens that nobody chose.
    """

    name: ClassVar[str] = "enumerable"
    version: ClassVar[int] = 1
    summary: ClassVar[str] = "a language of three tokens and three steps"
    source: ClassVar[str] = "opdbench.conformance"
    license: ClassVar[str] = "Apache-2.0"
    protocol: ClassVar[str] = "Accuracy is the share of completions that are exactly the answer and its end."
    metric: ClassVar[str] = "accuracy"
    teacher: ClassVar[str | None] = None
    student: ClassVar[str | None] = None
    training: ClassVar[dict[str, Any]] = {"lr": 0.05, "batch": 8}
    budget: ClassVar[dict[str, float]] = {"steps": 10}
    max_new_tokens: ClassVar[int] = HORIZON
    prompts: ClassVar[dict[Split, Sequence[str]]] = {
        "train": ("a", "b", "ab", "ba"), "validation": ("aa",), "test": ("bb",)}

    def __init__(self, data: str | None = None, params: Any = None, *, echo: bool = False) -> None:
        super().__init__(data, params)
        self.echo = echo

    def examples(self, split: Split) -> Sequence[Example]:
        return [Example(f"{split}-{index}", prompt, answer, solution=answer)
                for index, prompt in enumerate(self.prompts[split])
                for answer in ["a" if prompt[-1] == "a" else "ba"]]

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        return {"accuracy": float(completion.removesuffix(TEXT[END]) == example.answer)}

    def notes(self, example: Example) -> dict[NoteKind, str]:
        return {**super().notes(example), "hint": "b", "cues": str(example.prompt)[-1]}

    def feedback(self, example: Example, completion: str) -> str | None:
        return completion[:1]

    def marks(self, example: Example) -> bool:
        return str(example.prompt)[-1] == "a"

    def informed(self, example: Example, notes: Mapping[NoteKind, str]) -> Prompt:
        return "".join(notes.values()) + str(example.prompt)

    def checksum(self) -> str:
        return hashlib.sha256(f"{self.id} {self.prompts}".encode()).hexdigest()


class EnumerableWorld:
    """`EnumerableTask` with two tables, behind the protocol that the loop sees."""

    domain: Literal["lm", "rl"] = "lm"
    bridge: None = None
    oracle: None = None

    def __init__(self, student: Policy, teacher: Policy | None, *, seed: int = 0, echo: bool = False) -> None:
        self.task = EnumerableTask(echo=echo)
        self.student, self.teacher, self.seed = student, teacher, seed
        self._cursor = 0

    def rollout(self, actor: Actor, *, n: int, horizon: int, generator: Generator, repeat: int = 1,
                problems: Sequence[int] | None = None) -> Rollouts:
        """See `World.rollout`; `group` numbers the prompts drawn since the run began."""
        if n % repeat:
            raise ValueError(f"{n} trajectories cannot share prompts in groups of {repeat}")
        group_b = torch.arange(n) // repeat + self._cursor
        drawn = self._next(n // repeat) if problems is None else problems
        index_b = [index for index in drawn for _ in range(repeat)]
        examples = self.task.examples("train")
        prompts = [encode(str(examples[index].prompt)) for index in index_b]
        completions = self._write(actor, self.student, self.teacher, prompts,
                                  uniform_table(n, horizon, generator))
        return self._rollouts(index_b, group_b, prompts, completions)

    def demonstrations(self, *, n: int, generator: Generator) -> Rollouts:
        group_b = torch.arange(n) + self._cursor
        index_b = self._next(n)
        examples = self.task.examples("train")
        prompts = [encode(str(examples[index].prompt)) for index in index_b]
        completions = []
        for index in index_b:
            tokens = [*encode(examples[index].answer), END]
            echoed = [self.task.echo and before == B for before in [None, *tokens[:-1]]]
            sources = [int(Source.NOBODY if echo else Source.DATA) for echo in echoed]
            completions.append(Completion(tokens, sources, [float("nan")] * len(tokens), ended=True))
        return self._rollouts(index_b, group_b, prompts, completions)

    def separable(self, rollouts: Rollouts) -> Rollouts:
        return rollouts

    def teacher_features(self, rollouts: Rollouts) -> Tensor:
        assert self.teacher is not None, "this world has no teacher"
        return self.features(self.teacher, rollouts)

    @property
    def prompts(self) -> EnumerableWorld:
        """See `opdbench.world.Prompts`."""
        return self

    def problems(self, rollouts: Rollouts) -> list[Example]:
        examples = self.task.examples("train")
        return [examples[index] for index in rollouts.columns["example"].tolist()]

    def written(self, rollouts: Rollouts) -> list[str]:
        return [decode(completion_of(rollouts, index)[0].tokens).removesuffix(TEXT[END])
                for index in range(rollouts.n_trajectories)]

    def below(self, rollouts: Rollouts, prompts: Sequence[Prompt], *, thinking: bool = False) -> Rollouts:
        return below(rollouts, [encode(str(prompt)) for prompt in prompts])

    @torch.no_grad()
    def features(self, policy: Policy, rollouts: Rollouts) -> Tensor:
        return policy.features(rollouts.input_bt, rollouts.length_b)

    @torch.no_grad()
    def evaluate(self, policy: Policy | Oracle, *, split: Split, mode: Literal["greedy", "sampled"], n: int | None,
                 seed: int) -> list[Outcome]:
        assert isinstance(policy, Policy)
        examples = self.task.examples(split)[:n]
        actor = Student(temperature=0.0 if mode == "greedy" else 1.0)
        uniform_tbd = uniform_table(len(examples), HORIZON, seeds.generator(seed, "evaluate", split, mode))
        completions = self._write(actor, policy, None, [encode(str(example.prompt)) for example in examples],
                                  uniform_tbd)
        texts = [decode(completion.tokens) for completion in completions]
        return [Outcome(example.id, mode, self._score(example, text, completion), len(completion.tokens),
                        not completion.ended, text, {})
                for example, text, completion in zip(examples, texts, completions, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self._cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._cursor = int(state["cursor"])

    @torch.no_grad()
    def completions(self, *, horizon: int = HORIZON) -> Rollouts:
        """Every completion of every training prompt, once each, as if the student had written it.

        Weight them with exp(`trajectory_logp`) for expectations; `behaviour_logp_bt` is the student's, in float64.
        """
        examples = self.task.examples("train")
        found = [(index, tokens, sources) for index in range(len(examples))
                 for tokens, sources in self._continuations([], [], horizon)]
        prompts = [encode(str(examples[index].prompt)) for index, _, _ in found]
        completions = [Completion(tokens, sources, [float("nan")] * len(tokens), tokens[-1] == END)
                       for _, tokens, sources in found]
        index_b = [index for index, _, _ in found]
        rollouts = self._rollouts(index_b, torch.tensor(index_b), prompts, completions)
        return replace(rollouts, behaviour_logp_bt=step_logp(self.student, rollouts))

    def _continuations(self, tokens: list[int], sources: list[int], horizon: int
                       ) -> Iterator[tuple[list[int], list[int]]]:
        if len(tokens) >= horizon or END in tokens:
            yield tokens, sources
        elif self.task.echo and tokens[-1:] == [B]:
            yield from self._continuations([*tokens, A], [*sources, int(Source.NOBODY)], horizon)
        else:
            for token in range(len(TEXT)):
                yield from self._continuations([*tokens, token], [*sources, int(Source.STUDENT)], horizon)

    def _next(self, n: int) -> list[int]:
        size = len(self.task.examples("train"))
        order = [index for epoch in range(self._cursor // size, (self._cursor + n) // size + 1)
                 for index in seeds.rng(self.seed, "prompts", epoch).sample(range(size), size)]
        start = self._cursor % size
        self._cursor += n
        return order[start:start + n]

    def _write(self, actor: Actor, student: Policy, teacher: Policy | None, prompts: Sequence[list[int]],
               uniform_tbd: Tensor) -> list[Completion]:
        horizon = len(uniform_tbd)
        written = [Completion([], [], [], ended=False) for _ in prompts]
        alive = list(range(len(prompts)))
        while alive:
            prefixes = [[*prompts[row], *written[row].tokens] for row in alive]
            decision = actor.act(_next_logits(student, prefixes) if actor.uses_student else None,
                                 _next_logits(teacher, prefixes) if actor.uses_teacher and teacher else None,
                                 uniform_tbd[[len(written[row].tokens) for row in alive], alive])
            choices = zip(*(part.tolist() for part in decision), strict=True)
            for row, (token, logp, source) in zip(alive, choices, strict=True):
                written[row] = self._append(written[row], token, logp, source, horizon)
            alive = [row for row in alive if not written[row].ended and len(written[row].tokens) < horizon]
        return written

    def _append(self, so_far: Completion, token: int, logp: float, source: int, horizon: int) -> Completion:
        tokens, sources, logps = [*so_far.tokens, token], [*so_far.sources, source], [*so_far.logps, logp]
        if self.task.echo and token == B and len(tokens) < horizon:
            tokens, sources, logps = [*tokens, A], [*sources, int(Source.NOBODY)], [*logps, float("nan")]
        return Completion(tokens, sources, logps, ended=token == END)

    def _rollouts(self, index_b: Sequence[int], group_b: Tensor, prompts: Sequence[list[int]],
                  completions: Sequence[Completion]) -> Rollouts:
        rollouts = to_rollouts(prompts, completions)
        examples = self.task.examples("train")
        score_b = torch.tensor([self._score(examples[index], decode(completion.tokens), completion)
                                for index, completion in zip(index_b, completions, strict=True)])
        rollouts = replace(rollouts, reward_bt=last_decision(rollouts.source_bt) * score_b[:, None])
        return rollouts.with_columns(per_trajectory={"example": torch.tensor(list(index_b)), "group": group_b})

    def _score(self, example: Example, text: str, completion: Completion) -> float:
        return self.task.grade(example, text)[self.task.metric] if completion.ended else 0.0


def encode(text: str) -> list[int]:
    return [TEXT.index(character) for character in text]


def decode(tokens: Sequence[int]) -> str:
    return "".join(TEXT[token] for token in tokens)


def step_logp(policy: Policy, rollouts: Rollouts) -> Tensor:
    """Log-probability [B, T] of every decision under `policy`, zero where nobody decided; differentiable."""
    logits_bta = policy.project(policy.features(rollouts.input_bt, rollouts.length_b))
    action_bt = rollouts.action_bt.where(rollouts.mask_bt, 0)
    logp_bt = logits_bta.log_softmax(-1).gather(-1, action_bt[..., None])[..., 0]
    return logp_bt.where(rollouts.mask_bt, 0.0)


def trajectory_logp(policy: Policy, rollouts: Rollouts) -> Tensor:
    """Log-probability [B] of every trajectory under `policy`, given its prompt; differentiable."""
    return step_logp(policy, rollouts).sum(1)


def _next_logits(policy: Policy, prefixes: Sequence[Sequence[int]]) -> Tensor:
    input_bt, length_b = pad_right(prefixes, torch.device("cpu"))
    features_bth = policy.features(input_bt, length_b)
    return policy.project(features_bth[torch.arange(len(prefixes)), length_b - 1])


def _normal(shape: tuple[int, int], generator: Generator) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).normal_(generator=generator)
