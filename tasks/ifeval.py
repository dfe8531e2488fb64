"""IFEval: 541 prompts with instructions that a program can check, checked by lm-eval's own checkers.

Zhou et al. 2023, "Instruction-Following Evaluation for Large Language Models", arXiv:2311.07911.

IFEval has no training split. Training and validation prompts are made here in the way of Tülu 3's (Lambert et al.
2024, arXiv:2411.15124): an instruction of Dolly followed by one verifiable instruction, drawn from lm-eval's checkers
with its own wording. They are of the kinds that the test asks for, which a comparison with models that have not trained
on them must say. There are no reference answers: what imitates them (`sft` with `data=solutions`) refuses.

Deviations from lm-eval's task (version 4.0): prompts go through the tokenizer's chat template; the language detector is
seeded, where lm-eval's may answer differently from run to run on short texts; where a prompt asks to count a sign that
is no letter (`#`, `!`), lm-eval counts a letter drawn anew each time, and here it is always the same letter; a text on
which a checker fails with an error has not followed it, where lm-eval would stop.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from opdbench.errors import UserError
from opdbench.lm import files
from opdbench.lm.files import Files
from opdbench.lm.published import PublishedTask
from opdbench.task import Example, Split
from opdbench.tasks.instructions import DOLLY, read_dolly

PUBLISHED = Files("ifeval", "google/IFEval", ("ifeval_input_data.jsonl", "input_data.jsonl"),
                  "input_data.jsonl (541 rows)")
TEST_ROWS = 541
# They refer to a prompt's own text, or (the first word of a paragraph that may not be) cannot always be followed.
NOT_DRAWN = ("combination:repeat_prompt", "length_constraints:nth_paragraph_first_word")


class IFEval(PublishedTask):
    """ifeval@1. Scores: `prompt_strict` and `prompt_loose`, each 0 or 1, and over all instructions
    `instruction_strict` and `instruction_loose`."""

    name = "ifeval"
    version = 1
    summary = "541 prompts with verifiable instructions, checked by lm-eval's checkers"
    source = "google/IFEval (Zhou et al. 2023, arXiv:2311.07911); training prompts from MiniLLM/dolly"
    license = "Apache-2.0; training prompts CC-BY-SA-3.0"
    protocol = (
        "The prompt as one user message. Primary is prompt-level strict accuracy: every instruction of the prompt is "
        "followed. Loose accuracy also accepts the text without its first or last line or its asterisks; "
        "instruction-level accuracy counts instructions over all prompts. Training and validation prompts are Dolly's, "
        "each with one drawn instruction of the same kinds."
    )
    metric = "prompt_strict"
    max_new_tokens = 1280
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-5, "batch": 64, "warmup_steps": 5}
    budget: ClassVar[Mapping[str, float]] = {"steps": 200}

    class Params(PublishedTask.Params):
        max_new_tokens: PositiveInt = Field(1280, description="longest completion in tokens, when scores are taken")

    def examples(self, split: Split) -> Sequence[Example]:
        """The prompts of a split, in a fixed order; read once.

        Raises:
            UserError: no data at hand, or no checkers: what grades must be there before anything is trained.
        """
        _checkers()
        return super().examples(split)

    def read(self, split: Split) -> dict[Split, list[Example]]:
        if split == "test":
            return {"test": self._read_test()}
        tested = {_content(example) for example in self.examples("test")}
        found: dict[Split, list[Example]] = {}
        for name, problems in read_dolly(DOLLY.folder(self.data, shared=True)).items():
            asked = [_with_instruction(problem) for problem in problems]
            found[name] = [example for example in asked if _content(example) not in tested]
        return found

    def _read_test(self) -> list[Example]:
        file = PUBLISHED.file(PUBLISHED.folder(self.data, shared=True), *reversed(PUBLISHED.patterns))
        examples = [_example(where, row) for where, row in files.json_rows(file)]
        if len(examples) != TEST_ROWS:
            raise UserError(f"{file} has {len(examples)} rows, but IFEval has {TEST_ROWS}", PUBLISHED.how_to_get)
        return examples

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """lm-eval's verdicts on every instruction of the prompt, strict and loose.

        Raises:
            UserError: a package that lm-eval's checkers need is missing.
        """
        strict, loose = [], []
        for name, arguments in zip(example.meta["instructions"], example.meta["arguments"], strict=True):
            strict.append(_follows(example, name, arguments, [completion]))
            loose.append(strict[-1] or _follows(example, name, arguments, loosened(completion)))
        return {"prompt_strict": float(all(strict)), "prompt_loose": float(all(loose)),
                "sum.instruction_strict.hits": float(sum(strict)), "sum.instruction_strict.of": float(len(strict)),
                "sum.instruction_loose.hits": float(sum(loose)), "sum.instruction_loose.of": float(len(loose))}

    def scorer(self) -> str:
        _checkers()
        packages = ("lm_eval", "nltk", "langdetect")
        return "checkers of " + ", ".join(f"{name} {metadata.version(name)}" for name in packages)


def loosened(text: str) -> list[str]:
    """The text without its first line, its last line, or both, and all of these without asterisks."""
    lines = text.split("\n")
    shorter = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [*shorter, *(variant.replace("*", "") for variant in (text, *shorter))]


@cache
def _checkers() -> Mapping[str, Any]:
    """lm-eval's checkers, once all that they need is known to be there: importing them would download a file."""
    try:
        import immutabledict  # noqa: F401
        import langdetect
        import nltk

        nltk.data.find("tokenizers/punkt_tab/english/")
        from lm_eval.tasks.ifeval import instructions_registry
    except ImportError as error:
        raise UserError(f"IFEval is checked by lm-eval, and the package {error.name} is not installed",
                        "pip install 'opdbench[eval]'") from None
    except LookupError:
        raise UserError("IFEval's sentences are counted with nltk's punkt_tab, which is not on this machine",
                        "python -m nltk.downloader punkt_tab, where there is network (or set NLTK_DATA)") from None
    # They log an error for every text without a language, which a student writes often, and log the text with it.
    logging.getLogger("lm_eval.tasks.ifeval.instructions").setLevel(logging.CRITICAL)
    langdetect.DetectorFactory.seed = 0
    langdetect.detect("Its language profiles are read once, here, and not within the first grade.")
    checkers: Mapping[str, Any] = instructions_registry.INSTRUCTION_DICT
    return checkers


def _follows(example: Example, name: str, arguments: Mapping[str, Any], texts: Sequence[str]) -> bool:
    """Whether any of the texts follows an instruction. A blank text follows none."""
    with _own_randomness(example.id):
        checker = _checkers()[name](name)
        checker.build_description(**arguments)
        if "prompt" in (checker.get_instruction_args() or {}):
            checker.build_description(prompt=_content(example))
        return any(text.strip() and _check(checker, text) for text in texts)


def _check(checker: Any, text: str) -> bool:
    try:
        return bool(checker.check_following(text))
    except Exception:  # foreign code on any text at all; it has no errors of its own to tell apart
        return False


@contextmanager
def _own_randomness(key: str) -> Iterator[None]:
    """lm-eval draws missing arguments from Python's global generator: here always the same, and it stays as it was."""
    state = random.getstate()
    random.seed(key)
    try:
        yield
    finally:
        random.setstate(state)


def _with_instruction(problem: Example) -> Example:
    """A Dolly problem that also asks for one drawn instruction, the same one always."""
    request = problem.meta["request"]
    names = sorted(set(_checkers()) - set(NOT_DRAWN))
    with _own_randomness(problem.id):
        name = random.choice(names)
        checker = _checkers()[name](name)
        wording = checker.build_description()
        arguments = checker.get_instruction_args() or {}
    return _problem(f"{problem.id}-{name.partition(':')[2]}", f"{request}\n\n{wording}", [name], [arguments])


def _example(where: str, row: dict[str, Any]) -> Example:
    names, arguments = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, list) or not isinstance(arguments, list) or len(names) != len(arguments) or not names:
        raise UserError(f"{where}: `instruction_id_list` and `kwargs` are not two lists of one length",
                        PUBLISHED.how_to_get)
    unknown = [name for name in names if name not in _checkers()]
    if unknown or not all(isinstance(argument, dict) for argument in arguments):
        raise UserError(f"{where}: lm-eval has no checker for {unknown}, or an instruction's arguments are no object",
                        PUBLISHED.how_to_get)
    # The hub's rows name every argument there is, with null (and lm-eval leaves out what is zero too).
    given = [{name: value for name, value in argument.items() if value} for argument in arguments]
    return _problem(f"test-{row.get('key')}", files.text(where, row, "prompt"), names, given)


def _problem(name: str, content: str, instructions: Sequence[str], arguments: Sequence[Mapping[str, Any]]) -> Example:
    return Example(name, [{"role": "user", "content": content}], answer="",
                   meta={"instructions": list(instructions), "arguments": [dict(each) for each in arguments]})


def _content(example: Example) -> str:
    message = example.prompt[0]
    assert isinstance(message, dict)
    return message["content"]
