"""Problems whose answer is chosen and not written: how probable a model finds each given continuation.

Tokens are split as lm-eval splits them (spaces that end a context go to its continuation, and the continuation's tokens
are what the whole text has beyond the context's), so that scores are comparable with its own. No BOS is added.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import torch

from opdbench.errors import UserError
from opdbench.lm.policy import LanguagePolicy, pad_right
from opdbench.lm.remote import RemoteTeacher
from opdbench.lm.tokenizer import Tokenizer
from opdbench.scores import Outcome
from opdbench.task import Example, LanguageTask


class Likelihood(NamedTuple):
    """Of one continuation: its log-probability in nats, and whether greedy decoding would write it."""

    logp: float
    greedy: bool


def judge(task: LanguageTask, policy: LanguagePolicy | RemoteTeacher, examples: Sequence[Example],
          batch: int) -> list[Outcome]:
    """Outcomes of problems with continuations; what is stored, and graded, is the JSON list of their likelihoods.

    Raises:
        UserError: the model is asked over a network, or a text is longer than its context.
    """
    if isinstance(policy, RemoteTeacher):
        raise UserError(f"{task.id} asks for the probability of given answers, which a teacher behind a server is not "
                        "asked for yet", "pass the teacher as a folder or a hub id")
    pairs = [split_tokens(policy.tokenizer, *pair) for example in examples for pair in example.continuations]
    scored = iter(likelihoods(policy, pairs, batch))
    lengths = iter(len(continuation) for _, continuation in pairs)
    outcomes = []
    for example in examples:
        output = json.dumps([next(scored) for _ in example.continuations])
        length = sum(next(lengths) for _ in example.continuations)
        grades = task.grade(example, output)
        extra = {name: value for name, value in grades.items() if name != task.metric}
        outcomes.append(Outcome(example.id, "greedy", grades[task.metric], length, False, output, extra))
    return outcomes


def split_tokens(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of the two parts, at least one each; after an empty context stands the tokenizer's first or last token.

    Raises:
        UserError: the continuation adds no token to its context.
    """
    bare = context.rstrip()
    before, after = (bare, context[len(bare):] + continuation)
    if not before:
        first = tokenizer.inner.bos_token_id
        return [tokenizer.eos_id if first is None else int(first)], _some(tokenizer.encode(after), after)
    start = tokenizer.encode(before)
    return start, _some(tokenizer.encode(before + after)[len(start):], after)


def _some(tokens: list[int], text: str) -> list[int]:
    if not tokens:
        raise UserError(f"the continuation {text!r} adds no token to its context, so that it has no probability",
                        "use a model with another tokenizer, or mend the task")
    return tokens


@torch.no_grad()
def likelihoods(policy: LanguagePolicy, pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
                batch: int) -> list[Likelihood]:
    """Log-probability of each continuation after its context, in order; sequences of similar length go together."""
    longest = max(len(context) + len(continuation) for context, continuation in pairs) - 1
    if longest > policy.context_length:
        raise UserError(f"a problem has {longest} tokens, which exceeds the model's context of {policy.context_length}",
                        "ask for fewer examples in the prompt, or pass a model with a longer context")
    order = sorted(range(len(pairs)), key=lambda index: -len(pairs[index][0]) - len(pairs[index][1]))
    found: dict[int, Likelihood] = {}
    for start in range(0, len(order), batch):
        indices = order[start:start + batch]
        found |= zip(indices, _batch(policy, [pairs[index] for index in indices]), strict=True)
    return [found[index] for index in range(len(pairs))]


def _batch(policy: LanguagePolicy, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
    """One forward pass; only the rows that predict a continuation's tokens are projected to the vocabulary."""
    input_bt, length_b = pad_right([[*context, *continuation][:-1] for context, continuation in pairs], policy.device)
    features_bth = policy.features(input_bt, length_b)
    found = []
    for features_th, (context, continuation) in zip(features_bth, pairs, strict=True):
        rows = slice(len(context) - 1, len(context) + len(continuation) - 1)
        logp_na = policy.project(features_th[rows]).log_softmax(-1)
        token_n = torch.tensor(continuation, device=policy.device)
        logp = logp_na.gather(1, token_n[:, None]).sum()
        found.append(Likelihood(float(logp), bool((logp_na.argmax(-1) == token_n).all())))
    return found
