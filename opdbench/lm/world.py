"""A language task, a student and a teacher, bound together for the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from random import Random
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from opdbench import seeds
from opdbench.actors import Actor, Student
from opdbench.errors import UserError
from opdbench.lm.generate import Completion, generate, last_decision, to_rollouts
from opdbench.lm.policy import LanguagePolicy
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts, Source
from opdbench.task import Example, LanguageTask, Split
from opdbench.world import Outcome


class LanguageWorld:
    """Prompts are resets, prefixes states, tokens actions, and the task's grader pays the reward on the last one.

    Args:
        student: its tokenizer renders the prompts.
        teacher: None for methods that need none. Both models are cut to the vocabulary that they share.
        seed: decides the order of the training problems, epoch by epoch.
        generation_batch: sequences written at once.
        teacher_batch: sequences that the teacher scores at once.

    Raises:
        UserError: the two tokenizers do not give the same ids the same meaning.
    """

    domain: Literal["lm", "rl"] = "lm"

    def __init__(self, task: LanguageTask, student: LanguagePolicy, teacher: LanguagePolicy | None, *, seed: int,
                 generation_batch: int = 64, teacher_batch: int = 16) -> None:
        self.task, self.student, self.teacher = task, student, teacher
        self.tokenizer = student.tokenizer
        self.eos_ids = student.tokenizer.eos_ids if task.stop_at_eos else frozenset()
        self.seed, self.generation_batch, self.teacher_batch = seed, generation_batch, teacher_batch
        self._cursor = 0
        if teacher is not None:
            _share_vocabulary(student, teacher)
            self.eos_ids |= teacher.tokenizer.eos_ids if task.stop_at_eos else frozenset()

    @cached_property
    def _problems(self) -> Sequence[Example]:
        problems = self.task.examples("train")
        if not problems:
            raise UserError(f"{self.task.id} has no training problems", "pass data that has a train split")
        return problems

    def rollout(self, actor: Actor, *, n: int, horizon: int, generator: Generator, repeat: int = 1) -> Rollouts:
        """See `opdbench.world.World`; `group` numbers the prompts drawn since the run began."""
        if n % repeat:
            raise ValueError(f"{n} trajectories cannot share prompts in groups of {repeat}")
        first = self._cursor
        drawn = self._next(n // repeat)
        indices = [index for index in drawn for _ in range(repeat)]
        examples = [self._problems[index] for index in indices]
        prompts = [self._render(example, horizon) for example in examples]
        completions: list[Completion] = []
        for part in _slices(n, self.generation_batch):
            rng = Random(int(torch.randint(1 << 62, (), generator=generator, device=generator.device)))
            completions += self._write(actor, self.student, self.teacher, examples[part], prompts[part], horizon,
                                       generator, rng, evaluating=False)
        group = torch.arange(n) // repeat + first
        return self._rollouts(indices, group, prompts, completions)

    def demonstrations(self, *, n: int, generator: Generator) -> Rollouts:
        """See `opdbench.world.World`. An environment's part of a solution is not a decision, so it is no row."""
        first = self._cursor
        indices = self._next(n)
        examples = [self._problems[index] for index in indices]
        rng = Random(int(torch.randint(1 << 62, (), generator=generator, device=generator.device)))
        turns = self.task.turns(examples, self.tokenizer, rng, evaluating=False)
        completions = []
        for index, example in enumerate(examples):
            tokens = self.tokenizer.encode(self._solution(example))
            sources, ended = [int(Source.DATA)] * len(tokens), False
            if turns is not None:
                sources, ended = _decisions(tokens, turns, index)
            if self.task.stop_at_eos and not ended:
                tokens, sources, ended = [*tokens, self.tokenizer.eos_id], [*sources, int(Source.DATA)], True
            completions.append(Completion(tokens, sources, [float("nan")] * len(tokens), ended))
        prompts = [self._render(example, len(completion.tokens))
                   for example, completion in zip(examples, completions, strict=True)]
        return self._rollouts(indices, torch.arange(n) + first, prompts, completions)

    def separable(self, rollouts: Rollouts) -> Rollouts:
        """Whole trajectories: a state is a prefix."""
        return rollouts

    @torch.no_grad()
    def teacher_features(self, rollouts: Rollouts) -> Tensor:
        """See `opdbench.world.World`; on the teacher's device, and undefined but finite beyond each length."""
        assert self.teacher is not None, "this world has no teacher"
        device, features = self.teacher.device, None
        for part in _slices(rollouts.n_trajectories, self.teacher_batch):
            length_b = rollouts.length_b[part].to(device)
            horizon = int(length_b.max())
            part_bth = self.teacher.features(rollouts.input_bt[part, :horizon].to(device), length_b)
            if features is None:
                features = part_bth.new_zeros(*rollouts.input_bt.shape, part_bth.shape[-1])
            features[part, :horizon] = part_bth
        assert features is not None, "there is nothing to score"
        return features

    def evaluate(self, policy: Policy, *, split: Split, mode: Literal["greedy", "sampled"], n: int | None,
                 seed: int) -> list[Outcome]:
        """See `opdbench.world.World`. Sampled means temperature 1 and the whole distribution."""
        assert isinstance(policy, LanguagePolicy)
        examples = list(self.task.examples(split))[:n]
        horizon = self.task.max_new_tokens
        prompts = [self._render(example, horizon) for example in examples]
        actor = Student(temperature=0.0 if mode == "greedy" else 1.0)
        generator = seeds.generator(seed, "evaluate", split, mode, device=policy.device.type)
        by_length = sorted(range(len(examples)), key=lambda index: len(prompts[index]))
        outcomes: dict[int, Outcome] = {}
        for part in _slices(len(examples), self.generation_batch):
            indices = by_length[part]
            rng = seeds.rng(seed, "turns", split, mode, part.start)
            completions = self._write(actor, policy, None, [examples[index] for index in indices],
                                      [prompts[index] for index in indices], horizon, generator, rng, evaluating=True)
            outcomes |= {index: self._outcome(examples[index], completion, mode)
                         for index, completion in zip(indices, completions, strict=True)}
        return [outcomes[index] for index in range(len(examples))]

    def state_dict(self) -> dict[str, Any]:
        return {"cursor": self._cursor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._cursor = int(state["cursor"])

    def completion_text(self, completion: Completion) -> str:
        """What the grader reads: everything after the prompt, environment turns included, the end token left out."""
        tokens = completion.tokens
        closed = bool(tokens) and tokens[-1] in self.eos_ids and completion.sources[-1] != Source.NOBODY
        return self.tokenizer.decode(tokens[:-1] if closed else tokens)

    def _next(self, n: int) -> list[int]:
        """Indices of the next `n` problems: one seeded permutation after the other, each problem once an epoch."""
        size = len(self._problems)
        indices: list[int] = []
        while len(indices) < n:
            epoch, start = divmod(self._cursor, size)
            order = list(range(size))
            seeds.rng(self.seed, "prompts", epoch).shuffle(order)
            taken = order[start:start + n - len(indices)]
            indices += taken
            self._cursor += len(taken)
        return indices

    def _render(self, example: Example, horizon: int) -> list[int]:
        prompt = self.tokenizer.render(example.prompt)
        models = [self.student] if self.teacher is None else [self.student, self.teacher]
        room = min(model.context_length for model in models)
        if len(prompt) + horizon > room:
            raise UserError(f"problem {example.id} of {self.task.id} has a prompt of {len(prompt)} tokens, which with "
                            f"{horizon} new ones exceeds the models' context of {room}",
                            "lower max_new_tokens, or pass models with a longer context")
        return prompt

    def _solution(self, example: Example) -> str:
        if example.solution is None:
            raise UserError(f"{self.task.id} has no reference solutions to imitate",
                            "choose a method that learns from the teacher's or its own completions")
        return example.solution

    def _write(self, actor: Actor, student: LanguagePolicy, teacher: LanguagePolicy | None,
               examples: Sequence[Example], prompts: Sequence[list[int]], horizon: int, generator: Generator,
               rng: Random, *, evaluating: bool) -> list[Completion]:
        turns = self.task.turns(examples, self.tokenizer, rng, evaluating=evaluating)
        return generate(actor, student, teacher, prompts, max_new_tokens=horizon, eos_ids=self.eos_ids,
                        generator=generator, turns=turns)

    def _rollouts(self, indices: Sequence[int], group_b: Tensor, prompts: Sequence[list[int]],
                  completions: Sequence[Completion]) -> Rollouts:
        rollouts = to_rollouts(prompts, completions)
        grades = [self.task.grade(self._problems[index], self.completion_text(completion))
                  for index, completion in zip(indices, completions, strict=True)]
        score_b = torch.tensor([grade[self.task.metric] for grade in grades], dtype=torch.float32)
        rollouts = replace(rollouts, reward_bt=last_decision(rollouts.source_bt) * score_b[:, None])
        columns = {"example": torch.tensor(list(indices)), "group": group_b}
        return rollouts.with_columns(per_trajectory=columns).to(self.student.device)

    def _outcome(self, example: Example, completion: Completion, mode: str) -> Outcome:
        text = self.completion_text(completion)
        grades = self.task.grade(example, text)
        extra = {name: value for name, value in grades.items() if name != self.task.metric}
        return Outcome(example.id, mode, grades[self.task.metric], len(completion.tokens), not completion.ended, text,
                       extra)


def _share_vocabulary(student: LanguagePolicy, teacher: LanguagePolicy) -> None:
    difference = student.tokenizer.difference(teacher.tokenizer)
    if difference is not None:
        raise UserError(f"the student's and the teacher's tokenizers do not match: {difference}",
                        "choose two models of one family; methods for different tokenizers are not there yet")
    shared = min(student.n_actions, teacher.n_actions)
    for model in (student, teacher):
        model.limit_vocabulary(shared)


def _decisions(tokens: Sequence[int], turns: Any, index: int) -> tuple[list[int], bool]:
    """Who wrote each token of a solution, heard from the environment itself; and whether it ended the episode."""
    sources: list[int] = []
    while len(sources) < len(tokens):
        reply = turns.reply(index, tokens[len(sources)])
        sources.append(int(Source.DATA))
        if reply is not None:
            answer = list(reply.tokens)
            if list(tokens[len(sources):len(sources) + len(answer)]) != answer:
                raise ValueError("a reference solution contradicts its environment's replies")
            sources += [int(Source.NOBODY)] * len(answer)
            if reply.done:
                return sources, True
    return sources, False


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
