"""What a language task must satisfy: honest splits, a grader that survives any text, and an environment that ends."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from statistics import fmean
from typing import get_args

from opdbench.conformance.check import Skipped, require
from opdbench.conformance.compare import other_random_state
from opdbench.lm.tokenizer import Tokenizer
from opdbench.models import resolve, shipped_models
from opdbench.task import Example, LanguageTask, Split, Turns

SPLITS: tuple[Split, ...] = get_args(Split)
LOOKED_AT = 100  # problems of a split, where all would take too long
EVALUATED = 60
SLOW_SECONDS = 1.0  # to grade one text

# What models write when nobody is looking. A grader must answer all of it, with numbers.
STRANGE_TEXTS = (
    "", " ", "\n", "\t\n" * 50, "\0", "\ufeff", "\u202e12\u202c", "\ud83d", "🙂" * 20, "é́́", "１２", "٣",
    "nan", "inf", "-inf", "1e999", "-", "--1", "-0", "0x10", "1_000", "1,,0", "1/0", "..", "$", "$$", "%",
    "####", "#### ", "#### -", "#### $1,0.", "####" * 500, ":", "::", "=", ";" * 200,
    "\\boxed{", "\\boxed{}", "\\boxed{\\boxed{1}", "}", "{}", "[", "(" * 500, "(?P<x>", "%s%n", "__import__('os')",
    "1" * 5000, "1" * 5000 + "x", "1," * 3000 + "x", " " * 5000 + "x", "a" * 10_000,
    "<|im_end|>", "</s>", "<eos>", "<pad>", "null", "None", "True",
)


def language_checks(task: LanguageTask, fresh: Callable[[], LanguageTask]) -> dict[str, Callable[[], None]]:
    """The checks by name; `fresh` makes another instance of the same task."""
    return {
        "splits share no problem": lambda: _check_disjoint(task),
        "problems and ids are stable": lambda: _check_stable(task, fresh),
        "grading is total and pure": lambda: _check_grade(task),
        "reference solutions score best": lambda: _check_solutions(task),
        "problems fit the tokenizer and the horizon": lambda: _check_fit(task),
        "environment turns fit": lambda: _check_turns(task),
        "teacher beats student": lambda: _check_teacher(task),
    }


def _check_disjoint(task: LanguageTask) -> None:
    """An environment makes a problem more than its prompt: then `meta` counts too. A test set is left as it was
    published, and some repeat a prompt."""
    with_meta = _has_turns(task)
    seen: dict[str, str] = {}
    tested = {example.id for example in task.examples("test")} if task.reads_data else set()
    for split in SPLITS:
        examples = task.examples(split)
        require(len(examples) > 0, f"split {split} is empty")
        for example in examples:
            problem = json.dumps([example.prompt, dict(example.meta) if with_meta else None], sort_keys=True)
            other = seen.setdefault(problem, example.id)
            require(other == example.id or {other, example.id} <= tested,
                    f"problems {other} and {example.id} are the same")


def _check_stable(task: LanguageTask, fresh: Callable[[], LanguageTask]) -> None:
    """Two instances that read the splits in different orders agree, and ids are unique."""
    second = fresh()
    one = {split: list(task.examples(split)) for split in SPLITS}
    with other_random_state():
        other = {split: list(second.examples(split)) for split in reversed(SPLITS)}
    for split in SPLITS:
        require(one[split] == other[split], f"split {split} is not the same in two instances of the task")
    ids = [example.id for examples in one.values() for example in examples]
    require(len(set(ids)) == len(ids), "some problems have the same id")


def _check_grade(task: LanguageTask) -> None:
    """Any text gets the same finite scores twice, in no time, and the problem is left as it is."""
    example = task.examples("test")[0]
    before, names = deepcopy(example), set(task.grade(example, ""))
    require(task.metric in names, f"`grade` must give a score named {task.metric!r}, the task's metric")
    for text in (*STRANGE_TEXTS, example.answer, f" {example.answer}\n", example.answer * 50):
        began = time.perf_counter()
        scores = task.grade(example, text)
        seconds = time.perf_counter() - began
        require(set(scores) == names, f"`grade` gives other scores for {text[:40]!r} than for an empty completion")
        require(all(math.isfinite(value) for value in scores.values()), f"`grade` gives {scores} for {text[:40]!r}")
        require(scores == task.grade(example, text), f"`grade` gives two results for {text[:40]!r}")
        require(seconds < SLOW_SECONDS, f"`grade` takes {seconds:.1f} s for {text[:40]!r}, of {len(text)} characters")
    require(example == before, "`grade` changes the problem that it is given")


def _check_solutions(task: LanguageTask) -> None:
    """Every reference solution gets the best score, and silence a lower one."""
    looked_at = [example for split in SPLITS for example in task.examples(split)[:LOOKED_AT]]
    scores = {example.id: task.grade(example, example.solution)[task.metric]
              for example in looked_at if example.solution is not None}
    if not scores:
        raise Skipped("no problem has a reference solution")
    best = max(scores.values())
    worse = [name for name, score in scores.items() if score < best]
    require(not worse, f"the solutions of {len(worse)} problems score less than those of others, such as {worse[:1]}")
    silent = max(task.grade(example, "")[task.metric] for example in looked_at)
    require(silent < best, f"an empty completion scores {silent}, as much as a reference solution")


def _check_fit(task: LanguageTask) -> None:
    """The shipped tokenizer can write every problem and read it back, and the horizon has room for the solution."""
    tokenizer = _shipped_tokenizer(task)
    for split in SPLITS:
        for example in task.examples(split)[:LOOKED_AT]:
            require(len(tokenizer.render(example.prompt)) > 0, f"the prompt of {example.id} has no tokens")
            if example.solution is not None:
                tokens = tokenizer.encode(example.solution)
                require(tokenizer.decode(tokens) == example.solution,
                        f"the solution of {example.id} is not the same after encoding and decoding")
                needed = len(tokens) + task.stop_at_eos * (not _has_turns(task))
                require(needed <= task.max_new_tokens, f"the solution of {example.id} has {needed} tokens with its "
                                                       f"end, and max_new_tokens is {task.max_new_tokens}")


def _check_turns(task: LanguageTask) -> None:
    """The environment answers anything with tokens that exist, whatever the batch, and says of reference solutions what
    they say of it."""
    if not _has_turns(task):
        raise Skipped("no environment takes part")
    tokenizer = _shipped_tokenizer(task)
    examples, writer = task.examples("train")[:LOOKED_AT], Random(0)
    for evaluating in (False, True):
        turns = _turns(task, examples, tokenizer, evaluating=evaluating)
        for index, example in reversed(list(enumerate(examples))):
            written = [writer.randrange(tokenizer.n_tokens) for _ in range(task.max_new_tokens)]
            heard = _converse(turns, index, example, written, tokenizer.n_tokens)
            alone = _turns(task, [example], tokenizer, evaluating=evaluating)
            require(heard == _converse(alone, 0, example, written, tokenizer.n_tokens),
                    f"what the environment answers in {example.id} depends on the batch: let each conversation draw "
                    "from its own rng alone")
    turns = _turns(task, examples, tokenizer, evaluating=False)
    for index, example in enumerate(examples):
        if example.solution is not None:
            _follow(turns, index, example, tokenizer.encode(example.solution))


def _turns(task: LanguageTask, examples: Sequence[Example], tokenizer: Tokenizer, *, evaluating: bool) -> Turns:
    rngs = [Random(example.id) for example in examples]
    turns = task.turns(examples, tokenizer, rngs, evaluating=evaluating)
    require(turns is not None, "`turns` gives None although the task overrides it")
    assert turns is not None
    return turns


def _converse(turns: Turns, index: int, example: Example, written: Sequence[int], n_tokens: int) -> list[list[int]]:
    """One conversation with a model that has `written` these tokens, up to the horizon; returns the answers."""
    answers: list[list[int]] = []
    length = 0
    while length < len(written):
        reply = turns.reply(index, written[length])
        answer = [] if reply is None else list(reply.tokens)
        wrong = [token for token in answer if not 0 <= token < n_tokens]
        require(not wrong, f"the environment of {example.id} answers with tokens {wrong}, which do not exist")
        answers.append(answer)
        length += 1 + len(answer)
        if reply is not None and reply.done:
            break
    return answers


def _follow(turns: Turns, index: int, example: Example, tokens: Sequence[int]) -> None:
    """Play the model's part of a solution: the environment must say what the solution says for it."""
    place = 0
    while place < len(tokens):
        reply = turns.reply(index, tokens[place])
        place += 1
        answer = [] if reply is None else list(reply.tokens)
        require(list(tokens[place:place + len(answer)]) == answer,
                f"the solution of {example.id} contradicts its environment after {place} tokens")
        place += len(answer)
        require(reply is None or not reply.done or place == len(tokens),
                f"the environment ends {example.id} after {place} tokens, before its solution of {len(tokens)} ends")


def _check_teacher(task: LanguageTask) -> None:
    """What is shipped as a teacher has something to teach to what is shipped as a student."""
    import torch

    from opdbench.lm.model import load
    from opdbench.lm.world import LanguageWorld

    shipped = shipped_models(task)
    if task.teacher not in shipped or task.student not in shipped:
        raise Skipped("teacher and student are not both shipped with the task")
    models = {role: load(resolve(name, role=role, task=task), dtype=torch.float32)  # type: ignore[arg-type]
              for role, name in (("teacher", task.teacher), ("student", task.student)) if name is not None}
    world = LanguageWorld(task, models["student"], models["teacher"], seed=0)
    scores = {role: fmean(outcome.score for outcome in world.evaluate(model, split="test", mode="greedy", n=EVALUATED,
                                                                      seed=0)) for role, model in models.items()}
    require(scores["teacher"] > scores["student"],
            f"over {EVALUATED} test problems the teacher's {task.metric} is {scores['teacher']:.3f}, and the starting "
            f"student's {scores['student']:.3f}")


def _has_turns(task: LanguageTask) -> bool:
    return type(task).turns is not LanguageTask.turns


def _shipped_tokenizer(task: LanguageTask) -> Tokenizer:
    shipped = shipped_models(task)
    if task.teacher not in shipped:
        raise Skipped("no tokenizer is shipped with the task")
    return Tokenizer.load(shipped[task.teacher])
