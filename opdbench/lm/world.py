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
from opdbench.actors import Actor, Student, Teacher, uniform_table
from opdbench.errors import UserError
from opdbench.lm.generate import Completion, below, completion_of, generate, last_decision, to_rollouts
from opdbench.lm.likelihood import judge
from opdbench.lm.policy import LanguagePolicy, Speaker
from opdbench.lm.remote import RemoteTeacher
from opdbench.oracle import Oracle
from opdbench.pieces import Bridge
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts, Source
from opdbench.task import Example, LanguageTask, Prompt, Split, Turns
from opdbench.world import Outcome

Thinking = Literal["off", "on", "both"]


class LanguageWorld:
    """Prompts are resets, prefixes states, tokens actions, and the task's grader pays the reward on the last one.

    Args:
        student: its tokenizer renders the prompts.
        teacher: None for methods that need none. Both models are cut to the vocabulary that they share.
        seed: decides the order of the training problems, epoch by epoch.
        generation_batch: sequences written at once.
        teacher_batch: sequences that the teacher scores at once.
        thinking: whether chat prompts leave room for it: never, always, or in training for every other prompt.

    Raises:
        UserError: the two tokenizers do not give the same ids the same meaning.
    """

    domain: Literal["lm", "rl"] = "lm"
    bridge: Bridge | None = None
    oracle: RemoteTeacher | None = None  # instead of a teacher, when that is asked and not run

    def __init__(self, task: LanguageTask, student: LanguagePolicy, teacher: LanguagePolicy | None, *, seed: int,
                 generation_batch: int = 64, teacher_batch: int = 16,
                 thinking: Thinking = "off") -> None:
        self.task, self.student, self.teacher = task, student, teacher
        self._models = [student] if teacher is None else [student, teacher]
        self.tokenizer = student.tokenizer
        self.eos_ids = student.tokenizer.eos_ids if task.stop_at_eos else frozenset()
        self.seed, self.generation_batch, self.teacher_batch = seed, generation_batch, teacher_batch
        self.thinking = thinking
        self._cursor = 0
        if teacher is not None:
            _share_vocabulary(student, teacher)
            for member in teacher.members() if task.stop_at_eos else ():
                self.eos_ids |= member.tokenizer.eos_ids

    @cached_property
    def _problems(self) -> Sequence[Example]:
        problems = self.task.examples("train")
        if not problems:
            raise UserError(f"{self.task.id} has no training problems", "pass data that has a train split")
        return problems

    def rollout(self, actor: Actor, *, n: int, horizon: int, generator: Generator, repeat: int = 1,
                problems: Sequence[int] | None = None) -> Rollouts:
        """See `opdbench.world.World`; `group` numbers the prompts drawn since the run began."""
        if n % repeat:
            raise ValueError(f"{n} trajectories cannot share prompts in groups of {repeat}")
        first = self._cursor
        drawn = self._next(n // repeat) if problems is None else list(problems)
        indices = [index for index in drawn for _ in range(repeat)]
        examples = [self._problems[index] for index in indices]
        prompts = [self._render(example, horizon, thinking=self._thinks(first + number // repeat))
                   for number, example in enumerate(examples)]
        rngs, uniform_tbd = _rngs(n, generator), uniform_table(n, horizon, generator)
        completions: list[Completion] = []
        for part in _slices(n, self.generation_batch):
            turns = self.task.turns(examples[part], self.tokenizer, rngs[part], evaluating=False)
            teacher = self.teacher.on(examples[part]) if self.teacher is not None and actor.uses_teacher else None
            completions += self._write(actor, self.student, teacher, self.oracle, prompts[part],
                                       uniform_tbd[:, part], turns)
        group = torch.arange(n) // repeat + first
        return self._rollouts(indices, group, prompts, completions)

    def demonstrations(self, *, n: int, generator: Generator) -> Rollouts:
        """See `opdbench.world.World`. An environment's part of a solution is not a decision, so it is no row."""
        first = self._cursor
        indices = self._next(n)
        examples = [self._problems[index] for index in indices]
        turns = self.task.turns(examples, self.tokenizer, _rngs(n, generator), evaluating=False)
        completions = []
        for index, example in enumerate(examples):
            tokens = self.tokenizer.encode(self._solution(example))
            sources, ended = [int(Source.DATA)] * len(tokens), False
            if turns is not None:
                sources, ended = _decisions(tokens, turns, index)
            if self.task.stop_at_eos and not ended:
                tokens, sources, ended = [*tokens, self.tokenizer.eos_id], [*sources, int(Source.DATA)], True
            completions.append(Completion(tokens, sources, [float("nan")] * len(tokens), ended))
        prompts = [self._render(example, len(completion.tokens), thinking=self._thinks(first + number))
                   for number, (example, completion) in enumerate(zip(examples, completions, strict=True))]
        return self._rollouts(indices, torch.arange(n) + first, prompts, completions)

    def separable(self, rollouts: Rollouts) -> Rollouts:
        """Whole trajectories: a state is a prefix."""
        return rollouts

    @torch.no_grad()
    def teacher_features(self, rollouts: Rollouts) -> Tensor:
        """See `opdbench.world.World`; on the teacher's device, and undefined but finite beyond each length."""
        assert self.teacher is not None, "this world has no teacher"
        return self.features(self.teacher, rollouts)

    @property
    def prompts(self) -> LanguageWorld:
        """See `opdbench.world.Prompts`."""
        return self

    def problems(self, rollouts: Rollouts) -> list[Example]:
        return [self._problems[index] for index in rollouts.columns["example"].tolist()]

    def written(self, rollouts: Rollouts) -> list[str]:
        host = rollouts.to("cpu")
        return [self.completion_text(completion_of(host, index)[0]) for index in range(host.n_trajectories)]

    def below(self, rollouts: Rollouts, prompts: Sequence[Prompt], *, thinking: bool = False) -> Rollouts:
        tokens = [self.tokenizer.render(prompt, thinking=thinking) for prompt in prompts]
        view = below(rollouts, tokens)
        room = min(model.context_length for model in self._models)
        if (longest := int(view.length_b.max())) > room:
            raise UserError(f"a prompt of {self.task.id} with what its teacher is told beside it comes to {longest} "
                            f"tokens, and the models' context is {room}", "lower horizon, or pass models with a longer "
                                                                          "context")
        return view

    @torch.no_grad()
    def features(self, policy: Policy, rollouts: Rollouts) -> Tensor:
        assert isinstance(policy, LanguagePolicy)
        device, features = policy.device, None
        problems = self.problems(rollouts)
        for part in _slices(rollouts.n_trajectories, self.teacher_batch):
            length_b = rollouts.length_b[part].to(device)
            horizon = int(length_b.max())
            speaker = policy.on(problems[part])
            part_bth = speaker.features(rollouts.input_bt[part, :horizon].to(device), length_b)
            if features is None:
                features = part_bth.new_zeros(*rollouts.input_bt.shape, part_bth.shape[-1])
            features[part, :horizon] = part_bth
        assert features is not None, "there is nothing to score"
        return features

    def evaluate(self, policy: Policy | Oracle, *, split: Split, mode: Literal["greedy", "sampled"], n: int | None,
                 seed: int) -> list[Outcome]:
        """See `opdbench.world.World`. Sampled means temperature 1 and the whole distribution, `task.samples` times a
        problem, whose outcomes share its id; what is drawn for a sample depends on nothing but the seed, that id and
        its number. Where continuations are scored there is nothing to sample."""
        assert isinstance(policy, LanguagePolicy | RemoteTeacher)
        problems = list(self.task.examples(split))[:n]
        if any(problem.continuations for problem in problems):
            return judge(self.task, policy, problems, self.generation_batch) if mode == "greedy" else []
        samples = self.task.samples if mode == "sampled" else 1
        examples = [problem for problem in problems for _ in range(samples)]
        horizon = self.task.max_new_tokens
        prompts = [self._render(example, horizon, thinking=self.thinking == "on") for example in examples]
        temperature = 0.0 if mode == "greedy" else 1.0
        actor = Teacher(temperature) if isinstance(policy, RemoteTeacher) else Student(temperature)
        by_length = sorted(range(len(examples)), key=lambda index: len(prompts[index]))
        outcomes: dict[int, Outcome] = {}
        for part in _slices(len(examples), self.generation_batch):
            indices = by_length[part]
            asked = [examples[index] for index in indices]
            drawn_for = [examples[index].id + (f"#{index % samples}" if index % samples else "") for index in indices]
            rngs = [seeds.rng(seed, "turns", split, mode, name) for name in drawn_for]
            draws = [uniform_table(1, horizon, seeds.generator(seed, "evaluate", split, mode, name))
                     for name in drawn_for]
            turns = self.task.turns(asked, self.tokenizer, rngs, evaluating=True)
            student, oracle = (None, policy) if isinstance(policy, RemoteTeacher) else (policy.on(asked), None)
            completions = self._write(actor, student, None, oracle, [prompts[index] for index in indices],
                                      torch.cat(draws, 1), turns)
            outcomes |= {index: self._outcome(example, completion, mode)
                         for index, example, completion in zip(indices, asked, completions, strict=True)}
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

    def _thinks(self, prompt_number: int) -> bool:
        """With `thinking=both`, every other prompt of the run."""
        return self.thinking == "on" or (self.thinking == "both" and prompt_number % 2 == 1)

    def _render(self, example: Example, horizon: int, *, thinking: bool) -> list[int]:
        prompt = self.tokenizer.render(example.prompt, thinking=thinking)
        room = min(model.context_length for model in self._models)
        if self.oracle is not None and self.oracle.context_length is not None:
            room = min(room, self.oracle.context_length)
        if len(prompt) + horizon > room:
            raise UserError(f"problem {example.id} of {self.task.id} has a prompt of {len(prompt)} tokens, which with "
                            f"{horizon} new ones exceeds the models' context of {room}",
                            "--set horizon=N shortens completions in training; or pass models with a longer context")
        return prompt

    def _solution(self, example: Example) -> str:
        if example.solution is None:
            raise UserError(f"{self.task.id} has no reference solutions to imitate",
                            "choose a method that learns from the teacher's or its own completions")
        return example.solution

    def _write(self, actor: Actor, student: Speaker | None, teacher: Speaker | None, oracle: RemoteTeacher | None,
               prompts: Sequence[list[int]], uniform_tbd: Tensor, turns: Turns | None) -> list[Completion]:
        """Completions by the models here, or where the actor is a teacher that is asked, by it."""
        horizon = len(uniform_tbd)
        if oracle is not None and actor.uses_teacher:
            return oracle.write(actor, prompts, max_new_tokens=horizon, eos_ids=self.eos_ids, uniform_tbd=uniform_tbd,
                                turns=turns)
        return generate(actor, student, teacher, prompts, max_new_tokens=horizon, eos_ids=self.eos_ids,
                        uniform_tbd=uniform_tbd, turns=turns)

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
    for member in teacher.members():
        difference = student.tokenizer.difference(member.tokenizer)
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


def _rngs(n: int, generator: Generator) -> list[Random]:
    """Randomness for the environment's side of `n` conversations."""
    return [Random(seed) for seed in torch.randint(1 << 62, (n,), generator=generator).tolist()]


def _slices(n: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
