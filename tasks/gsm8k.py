"""GSM8K: grade-school word problems, graded exactly as lm-eval's `gsm8k` task grades them.

Cobbe et al. 2021, "Training Verifiers to Solve Math Word Problems", arXiv:2110.14168.

Deviations from lm-eval's task (version 3.0): the prompt is zero-shot and goes through the tokenizer's chat template,
instead of five worked examples as plain text; extraction, normalisation and stop strings are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from opdbench.errors import UserError
from opdbench.lm import data
from opdbench.lm.data import Row
from opdbench.lm.published import PublishedTask
from opdbench.task import Example, Split

PUBLISHED = data.Dataset(name="gsm8k", hub_id="openai/gsm8k", config="main", counts={"train": 7473, "test": 1319},
                         fields=("question", "answer"))
VALIDATION_SIZE = 500  # the last rows of the published train split, which has no validation split of its own

# No digits: a model that repeats the instruction must not be graded on it.
INSTRUCTION = ("Solve the problem step by step. End with a last line of the form `#### N`, where N is the final answer "
               "as a plain number without units.")

_STOPS = ("Question:", "</s>", "<|im_end|>")
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_IGNORED = tuple(re.compile(pattern) for pattern in (",", r"\$", r"(?s).*#### ", r"\.$"))
_NOTHING = "[invalid]"
_ANNOTATION = re.compile(r"<<[^>]*>>")
_FINAL_ANSWER = re.compile(r"#### (-?[0-9][0-9,.]*)\s*$")


class GSM8K(PublishedTask):
    """gsm8k@1. Scores: `accuracy` (= `flexible`), `flexible` and `strict`, each 0 or 1."""

    name = "gsm8k"
    version = 1
    summary = "grade-school maths word problems, 1,319 real test questions"
    source = "openai/gsm8k (Cobbe et al. 2021, arXiv:2110.14168); from the hub, or a folder given with --data"
    license = "MIT"
    protocol = (
        "Zero-shot: the question and the instruction to end with `#### N` as one user message. Accuracy is lm-eval's "
        "flexible-extract exact match (the last number of the completion); strict-match (the number after the first "
        "`####`) is reported beside it. Flexible is primary, so that gap recovered measures arithmetic and not the "
        "learning of a marker. Test is the published 1,319 questions; validation is the last 500 of train."
    )
    metric = "accuracy"
    max_new_tokens = 512  # in training; when scores are taken, `Params` decides
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-5, "batch": 64, "warmup_steps": 5}
    budget: ClassVar[Mapping[str, float]] = {"steps": 200}

    def read(self, split: Split) -> dict[Split, list[Example]]:
        published = "test" if split == "test" else "train"
        examples = [_example(f"{published}-{index}", row)
                    for index, row in enumerate(data.load(PUBLISHED, published, self.data))]
        if published == "test":
            return {"test": examples}
        return {"train": examples[:-VALIDATION_SIZE], "validation": examples[-VALIDATION_SIZE:]}

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """lm-eval's exact match after its two filters; both are 0 or 1."""
        text = _before_stop(completion)
        gold = normalise(example.answer)
        strict = float(normalise(strict_match(text)) == gold)
        flexible = float(normalise(flexible_extract(text)) == gold)
        return {"accuracy": flexible, "strict": strict, "flexible": flexible}


def strict_match(text: str) -> str:
    """lm-eval's strict-match filter: the number after the first `#### `, or "[invalid]"."""
    found = _STRICT.search(text)
    return found[1] if found else _NOTHING


def flexible_extract(text: str) -> str:
    """lm-eval's flexible-extract filter: the last thing that looks like a number, or "[invalid]"."""
    found = _FLEXIBLE.findall(text)
    return (found[-1][0] or found[-1][1]) if found else _NOTHING


def normalise(answer: str) -> str:
    """lm-eval's `regexes_to_ignore` (commas, dollars, everything up to `#### `, a last full stop) and `ignore_case`."""
    for pattern in _IGNORED:
        answer = pattern.sub("", answer)
    return answer.lower()


def _before_stop(completion: str) -> str:
    """What lm-eval would have kept: it ends a completion at the first of its stop strings."""
    for stop in _STOPS:
        completion = completion.split(stop)[0]
    return completion


def _example(name: str, row: Row) -> Example:
    final = _FINAL_ANSWER.search(row.fields["answer"])
    if final is None:
        raise UserError(f"{row.where}: the answer does not end in `#### <number>`",
                        "the file was changed: copy it anew from its source")
    return Example(
        id=name,
        prompt=[{"role": "user", "content": f"{row.fields['question']}\n\n{INSTRUCTION}"}],
        answer=final[1],
        solution=_ANNOTATION.sub("", row.fields["answer"]),
    )
