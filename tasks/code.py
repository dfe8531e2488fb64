"""Python programs: HumanEval and MBPP, scored by running what the model wrote in `opdbench.sandbox`, with the tests.

Chen et al. 2021, "Evaluating Large Language Models Trained on Code", arXiv:2107.03374; Austin et al. 2021, "Program
Synthesis with Large Language Models", arXiv:2108.07732.

Deviations: both are asked for in a chat, zero-shot, as a markdown block (HumanEval with the instruction of EvalPlus;
MBPP with the words of its paper, which shows three examples), instead of being continued as plain text. A program gets
CPU seconds instead of HumanEval's three wall seconds. HumanEval publishes no training problems: MBPP's stand in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field, PositiveInt

from opdbench import sandbox
from opdbench.errors import UserError
from opdbench.lm import data
from opdbench.lm.data import Dataset, Row
from opdbench.lm.published import SampledTask
from opdbench.task import Example, Split

HUMANEVAL = Dataset(name="humaneval_mbpp", hub_id="openai/openai_humaneval", config="openai_humaneval",
                    counts={"test": 164}, fields=("prompt", "entry_point", "canonical_solution", "test"),
                    files={"test": ("HumanEval.jsonl.gz", "HumanEval.jsonl", "openai_humaneval/test-*.parquet")})
_COLUMNS = ("text", "code", "test_list")
MBPP_SPLITS = Dataset(name="mbpp", hub_id="google-research-datasets/mbpp", config="full", fields=_COLUMNS,
                      counts={"train": 374, "validation": 90, "test": 500}, optional=("test_setup_code",),
                      lists=("test_list",))
MBPP_FILE = Dataset(name="humaneval_mbpp", hub_id=None, config="", fields=_COLUMNS, optional=("test_setup_code",),
                    counts={"all": 974}, lists=("test_list",), files={"all": ("mbpp.jsonl",)},
                    url="https://raw.githubusercontent.com/google-research/google-research/master/mbpp/mbpp.jsonl")
# Where the splits lie in the one file that Google Research published; the first ten are the paper's examples.
_IN_FILE: Mapping[Split, slice] = {"test": slice(10, 510), "validation": slice(510, 600), "train": slice(600, 974)}

_BLOCK = re.compile(r"```[ \t]*(?:python|py)?[0-9]*[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)


class CodeTask(SampledTask):
    """Programs that are run. One score: `accuracy`, whether the program passes all tests of its problem."""

    metric = "accuracy"
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-6, "batch": 64, "warmup_steps": 5}
    budget: ClassVar[Mapping[str, float]] = {"steps": 100}
    executes: ClassVar[bool] = True
    max_new_tokens = 768  # in training; when scores are taken, `Params` decides

    class Params(SampledTask.Params):
        execute_code: bool = Field(False, description="run what models write, in a sandbox; without it, no score")
        cpu_seconds: PositiveInt = Field(5, description="CPU time of one program with its tests")
        max_new_tokens: PositiveInt = Field(768, description="longest completion in tokens, when scores are taken")

    def __init__(self, data: str | None = None, params: BaseModel | None = None) -> None:
        super().__init__(data, params)
        self._limits = sandbox.Limits(cpu_seconds=self.params.cpu_seconds)

    def examples(self, split: Split) -> Sequence[Example]:
        """The problems of a split; read once.

        Raises:
            UserError: `execute_code` is off, programs cannot be isolated here, or there are no data at hand. Said
                before anything is trained, and not when the first program is there.
        """
        if not self.params.execute_code:
            raise UserError(f"{self.name} is scored by running programs that a model wrote, and that is off",
                            "add --set execute_code=true: they run in a sandbox without network (opdbench/sandbox.py)")
        sandbox.check()
        return super().examples(split)

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """Whether the program in the completion runs through the problem's tests; `example.answer` are the tests."""
        if not self.params.execute_code:
            raise UserError(f"{self.name} is scored by running programs that a model wrote, and that is off",
                            "add --set execute_code=true")
        verdict = sandbox.run(program(example, completion), self._limits)
        return {"accuracy": float(verdict.passed)}


class HumanEval(CodeTask):
    """humaneval@1."""

    name = "humaneval"
    version = 1
    summary = "164 Python functions to complete from their docstrings, run against hidden tests"
    source = ("openai/openai_humaneval (Chen et al. 2021, arXiv:2107.03374), and MBPP (arXiv:2108.07732) to train on; "
              "from the hub, or a folder given with --data")
    license = "MIT (HumanEval), CC-BY-4.0 (MBPP)"
    protocol = (
        "Zero-shot: the function's head and docstring, asked for as a markdown block in one user message. Accuracy is "
        "whether the block, run after the given head, passes the problem's tests within `cpu_seconds`, in a sandbox. "
        "Sampled scores are means over `samples` completions a problem, with pass@k and an interval over problems. "
        "Train and validation are MBPP's, since HumanEval has none."
    )

    def read(self, split: Split) -> dict[Split, list[Example]]:
        if split != "test":
            return {split: _mbpp(split, self.data)}
        rows = data.load(HUMANEVAL, "test", self.data)
        return {"test": [_humaneval(f"test-{index}", row) for index, row in enumerate(rows)]}


class MBPP(CodeTask):
    """mbpp@1."""

    name = "mbpp"
    version = 1
    summary = "short Python functions from a sentence and three tests, 500 test problems"
    source = ("google-research-datasets/mbpp (Austin et al. 2021, arXiv:2108.07732); from the hub, or a folder given "
              "with --data")
    license = "CC-BY-4.0"
    protocol = (
        "Zero-shot: the task's sentence and its three tests, asked for as a markdown block in one user message. "
        "Accuracy is whether the block passes the three tests within `cpu_seconds`, in a sandbox. Sampled scores are "
        "means over `samples` completions a problem, with pass@k and an interval over problems. The published splits."
    )

    def read(self, split: Split) -> dict[Split, list[Example]]:
        return {split: _mbpp(split, self.data)}


def program(example: Example, completion: str) -> str:
    """What is run: what the problem gives, the model's code, the tests."""
    head, function = example.meta["head"], example.meta["function"]
    code = block(completion, function)
    # Code that does not define the function continues its head, which is a whole function by its docstring alone.
    between = "\n" if not function or _defines(code, function) else ""
    return f"{head}{between}{code}\n\n{example.answer}\n"


def block(completion: str, function: str) -> str:
    """The first markdown block that defines `function`, else the first one, else the whole text."""
    blocks = [match[1] for match in _BLOCK.finditer(completion)]
    return next((code for code in blocks if _defines(code, function)), blocks[0] if blocks else completion)


def _defines(code: str, function: str) -> bool:
    return bool(function) and bool(re.search(rf"^\s*def\s+{re.escape(function)}\s*\(", code, re.MULTILINE))


def _humaneval(name: str, row: Row) -> Example:
    head, function = row.fields["prompt"], row.fields["entry_point"]
    return Example(
        id=name,
        prompt=_asked("Please provide a self-contained Python script that solves the following problem in a markdown "
                      f"code block:\n```python\n{head.strip()}\n```"),
        answer=f"{row.fields['test']}\n\ncheck({function})",
        solution=f"```python\n{head}{row.fields['canonical_solution']}```",
        meta={"head": head, "function": function},
    )


def _mbpp(split: Split, folder: str | None) -> list[Example]:
    if data.at_hand(MBPP_FILE, folder):
        rows = data.load(MBPP_FILE, "all", folder)[_IN_FILE[split]]
    else:
        rows = data.load(MBPP_SPLITS, split, folder)
    return [_mbpp_example(f"{split}-{index}", row) for index, row in enumerate(rows)]


def _mbpp_example(name: str, row: Row) -> Example:
    text, tests, code = (row.fields[column].replace("\r\n", "\n") for column in ("text", "test_list", "code"))
    return Example(
        id=name,
        prompt=_asked(f"You are an expert Python programmer, and here is your task: {text} Your code should pass these "
                      f"tests:\n\n{tests}\n\nAnswer with one markdown code block."),
        answer=f"{row.fields['test_setup_code']}\n{tests}",  # two problems set up what the solution defines
        solution=f"```python\n{code}\n```",
        meta={"head": "", "function": ""},
    )


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]
