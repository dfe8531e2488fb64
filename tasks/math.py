"""Competition mathematics: MATH-500, AIME 2024 and 2025, AMC 2023; answers in a box, checked by `math-verify`.

Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset", arXiv:2103.03874; Lightman et al.
2023, "Let's Verify Step by Step", arXiv:2305.20050 (whose 500 test problems MATH-500 is); the American Invitational
Mathematics Examination and the American Mathematics Competitions (texts (c) Mathematical Association of America).

The prompt is that of the Qwen2.5-Math, QwQ and Qwen3 model cards, zero-shot and through the chat template. Deviation
from the evaluation that `math-verify` proposes: only the last complete box counts, and a number outside one does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from opdbench.lm import data
from opdbench.lm.data import Dataset, Row
from opdbench.lm.published import SampledTask
from opdbench.task import Example, Split
from opdbench.tasks import verifier

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."

_POOLS = "https://raw.githubusercontent.com/agentica-project/rllm/874daa4acb7f451dc2a4b2b6e8ce28f5aa88d1f5/rllm/data/"
MATH_500 = Dataset(name="math500", hub_id="HuggingFaceH4/MATH-500", config="data", counts={"test": 500},
                   fields=("problem", "answer"), optional=("solution",),
                   files={"test": ("test.jsonl", "test.jsonl.gz", "test-*.parquet")})
MATH_TRAIN = Dataset(name="math_hendrycks", hub_id="DigitalLearningGmbH/MATH-lighteval", config="data",
                     counts={"train": 7500}, fields=("problem", "solution"))
MATH_TRAIN_ANSWERS = Dataset(name="math_hendrycks", hub_id=None, config="", counts={"train": 7474}, fields=("problem",),
                             optional=("answer",), files={"train": ("train_rllm.json.gz", "math.json")},
                             url=f"{_POOLS}train/math/math.json")
AIME_POOL = Dataset(name="aime_amc", hub_id=None, config="", counts={"train": 975}, numbers=("year", "answer"),
                    fields=("problem", "solution", "answer", "year"),
                    files={"train": ("aime.json", "aime_1983_2023_train.json.gz")}, url=f"{_POOLS}train/math/aime.json")
AIME_24 = Dataset(name="aime_amc", hub_id="HuggingFaceH4/aime_2024", config="data", counts={"test": 30},
                  fields=("problem", "answer"), optional=("solution",), numbers=("answer",),
                  files={"test": ("aime24.jsonl", "data/train-*.parquet")})
AIME_25 = Dataset(name="aime_amc", hub_id="math-ai/aime25", config="data", counts={"test": 30},
                  fields=("problem", "answer"), optional=("solution",), numbers=("answer",),
                  files={"test": ("aime25.jsonl", "test.jsonl")})
AMC_23 = Dataset(name="aime_amc", hub_id="math-ai/amc23", config="data", counts={"test": 40},
                 fields=("question", "answer"), optional=("solution",), numbers=("answer",),
                 files={"test": ("amc23.jsonl", "test-*.parquet")})

VALIDATION_SIZE = 500  # of MATH: the last problems of its train split
VALIDATION_YEAR = 2021  # of AIME: from this year on

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


class BoxedTask(SampledTask):
    """Problems whose answer is to be put in a box. Scores: `accuracy`, and `boxed`, whether there was a box at all."""

    source: ClassVar[str]
    metric = "accuracy"
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-6, "batch": 64, "warmup_steps": 5}
    budget: ClassVar[Mapping[str, float]] = {"steps": 100}
    max_new_tokens = 2048  # in training; when scores are taken, `Params` decides

    class Params(SampledTask.Params):
        max_new_tokens: PositiveInt = Field(2048, description="longest completion in tokens, when scores are taken")

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """Whether the last box holds the answer, by `tasks.verifier`; what takes it too long is wrong."""
        box = last_box(completion)
        right = box is not None and verifier.equivalent(example.answer, box)
        return {"accuracy": float(right), "boxed": float(box is not None)}


class Math500(BoxedTask):
    """math-500@1."""

    name = "math-500"
    version = 1
    summary = "competition mathematics, the 500 test problems of MATH-500"
    source = ("HuggingFaceH4/MATH-500 (Lightman et al. 2023, arXiv:2305.20050) and MATH's train split (Hendrycks et "
              "al. 2021, arXiv:2103.03874); from the hub, or a folder given with --data")
    license = "MIT"
    protocol = (
        "Zero-shot: the problem and `Please reason step by step, and put your final answer within \\boxed{}.` as one "
        "user message. Accuracy is whether math-verify finds the last box equal to the answer. Sampled scores are "
        "means over `samples` completions a problem, with pass@k and an interval over problems. Train is MATH's train "
        "split without its last 500, which are validation; no problem of the 500 is among them."
    )

    def read(self, split: Split) -> dict[Split, list[Example]]:
        test = [_example(f"test-{index}", row) for index, row in enumerate(data.load(MATH_500, "test", self.data))]
        if split == "test":
            return {"test": test}
        answers_only = data.at_hand(MATH_TRAIN_ANSWERS, self.data)
        rows = data.load(MATH_TRAIN_ANSWERS if answers_only else MATH_TRAIN, "train", self.data)
        examples = [_example(f"train-{index}", row) for index, row in enumerate(rows) if _answer(row)]
        seen = {_problem(example) for example in test}
        known = list(_without(examples, seen))
        return {"train": known[:-VALIDATION_SIZE], "validation": known[-VALIDATION_SIZE:]}


class _Contest(BoxedTask):
    """A contest of one year as the test, and AIME's earlier years to train on."""

    license = "texts (c) Mathematical Association of America; the collections are MIT and Apache-2.0"
    published: ClassVar[Dataset]

    class Params(BoxedTask.Params):
        max_new_tokens: PositiveInt = Field(8192, description="longest completion in tokens, when scores are taken")
        samples: PositiveInt = Field(16, description="completions of every problem when sampling is scored")

    def read(self, split: Split) -> dict[Split, list[Example]]:
        if split == "test":
            rows = data.load(self.published, "test", self.data)
            return {"test": [_example(f"test-{index}", row) for index, row in enumerate(rows)]}
        found: dict[Split, list[Example]] = {"train": [], "validation": []}
        for index, row in enumerate(data.load(AIME_POOL, "train", self.data)):
            part: Split = "validation" if int(row.fields["year"]) >= VALIDATION_YEAR else "train"
            found[part].append(_example(f"train-{index}", row))
        return found


_PROTOCOL = (
    "Zero-shot: the problem and `Please reason step by step, and put your final answer within \\boxed{}.` as one user "
    "message. Accuracy is whether math-verify finds the last box equal to the answer. Sampled scores are means over "
    "`samples` completions a problem, with pass@k and an interval over problems. Train is AIME 1983 to 2020, "
    "validation AIME 2021 to 2023."
)


class Aime24(_Contest):
    """aime24@1."""

    name = "aime24"
    version = 1
    summary = "the 30 problems of AIME 2024"
    source = "HuggingFaceH4/aime_2024; to train on, DeepScaleR's AIME 1983 to 2023, from a folder given with --data"
    protocol = _PROTOCOL
    published = AIME_24


class Aime25(_Contest):
    """aime25@1."""

    name = "aime25"
    version = 1
    summary = "the 30 problems of AIME 2025"
    source = "math-ai/aime25; to train on, DeepScaleR's AIME 1983 to 2023, from a folder given with --data"
    protocol = _PROTOCOL
    published = AIME_25


class Amc23(_Contest):
    """amc23@1."""

    name = "amc23"
    version = 1
    summary = "40 problems of AMC 12 2023 with whole numbers as answers"
    source = "math-ai/amc23; to train on, DeepScaleR's AIME 1983 to 2023, from a folder given with --data"
    protocol = _PROTOCOL
    published = AMC_23

    class Params(_Contest.Params):
        max_new_tokens: PositiveInt = Field(4096, description="longest completion in tokens, when scores are taken")


def last_box(text: str) -> str | None:
    """What stands in the last complete `\\boxed{...}` or `\\fbox{...}`; None when there is none. One pass, any text."""
    opened: list[tuple[bool, int]] = []  # whether a brace opens a box, and where what it holds begins
    found = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}" and opened:
            is_box, start = opened.pop()
            found = text[start:match.start()].strip() if is_box else found
        elif token.endswith("{") and token != "\\{":
            opened.append((token != "{", match.end()))
    return found


def _example(name: str, row: Row) -> Example:
    fields, answer = row.fields, _answer(row)
    problem = fields.get("problem") or fields["question"]
    solution = fields.get("solution") or None
    if solution and last_box(solution) != answer:
        solution += f"\n\nThe final answer is $\\boxed{{{answer}}}$."
    return Example(id=name, prompt=[{"role": "user", "content": f"{problem}\n{INSTRUCTION}"}], answer=answer,
                   solution=solution)


def _answer(row: Row) -> str:
    """The published answer, else what its solution boxes; "" when there is neither."""
    return (row.fields.get("answer") or last_box(row.fields.get("solution", "")) or "").strip()


def _problem(example: Example) -> str:
    """The text by which one problem is told from another: a copy may differ in white space."""
    message = example.prompt[0]
    assert isinstance(message, dict)
    return " ".join(message["content"].split())


def _without(examples: Iterable[Example], seen: set[str]) -> Iterable[Example]:
    """Those that are not among `seen`, nor twice."""
    for example in examples:
        if (problem := _problem(example)) not in seen:
            seen.add(problem)
            yield example
