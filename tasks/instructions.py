"""Instruction following as MiniLLM evaluates it: `dolly`, `self-inst`, `vicuna` and `s-ni`, scored by Rouge-L.

Gu et al. 2024, "MiniLLM: Knowledge Distillation of Large Language Models", arXiv:2306.08543, section 3.1; DistiLLM and
DSKD use the same sets. All four train on Dolly's training split; only the test sets differ.

As in MiniLLM's code: the two prompt templates, 256 new tokens, and Rouge-L (F-measure of the longest common
subsequence of lower-case, Porter-stemmed words, by the `rouge-score` package), the best over an answer's references,
times 100; exact match ignores case, punctuation and spacing.

Deviations from its evaluation: text is sampled at temperature 1 from the whole distribution, as there, but repeated
6-grams are not forbidden (its scripts leave `no_repeat_ngram_size` at 6, which changes what the student wrote); one
sample a problem and seed (there five generation seeds: use `--seeds 0:5`), and greedy beside it; prompts are not padded
or cut to 256 tokens, and training examples with a prompt or response over 1,024 characters (about 256 tokens) are left
out, where it drops such prompts and cuts such responses, which then have no end.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, lru_cache
from importlib import metadata
from typing import Any, ClassVar

from pydantic import Field, PositiveInt

from opdbench.errors import UserError
from opdbench.lm import files
from opdbench.lm.files import Files
from opdbench.lm.published import PublishedTask
from opdbench.task import Example, Split

DOLLY = Files("dolly", "MiniLLM/dolly", ("valid.jsonl", "raw.jsonl", "train.jsonl", "dev.jsonl"),
              "valid.jsonl (the 500 test rows), and raw.jsonl or train.jsonl with dev.jsonl (the others)")
VALIDATION_ROWS = 1000  # the first of raw.jsonl, as MiniLLM's --dev-num takes them
LONGEST = 1024  # characters of a training example's prompt, and of its response

_TASK = "Below is an instruction that describes a task"
_REQUEST = "Write a response that appropriately completes the request."
_WITHOUT_INPUT = f"{_TASK}. {_REQUEST}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n"
_WITH_INPUT = (f"{_TASK}, paired with an input that provides further context. {_REQUEST}\n\n"
               "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Instructions(PublishedTask):
    """Scores: `rouge_l` and `exact`, each 0 to 100."""

    protocol = (
        "MiniLLM's prompt template as plain text, 256 new tokens, Rouge-L (x100, stemmed, best over the references, by "
        "rouge-score) averaged over problems; exact match beside it. MiniLLM reports sampling at temperature 1, which "
        "is our `sampled`, over 5 seeds, with repeated 6-grams forbidden, which we do not do. Training and validation "
        "are Dolly's for every test set, without prompts that are in the test set."
    )
    metric = "rouge_l"
    max_new_tokens = 256
    training: ClassVar[Mapping[str, Any]] = {"lr": 5e-6, "batch": 64}
    budget: ClassVar[Mapping[str, float]] = {"steps": 500}
    tested_on: ClassVar[Files]
    test_rows: ClassVar[int]

    class Params(PublishedTask.Params):
        max_new_tokens: PositiveInt = Field(256, description="longest completion in tokens, when scores are taken")

    def read(self, split: Split) -> dict[Split, list[Example]]:
        if split == "test":
            return {"test": self._read_test()}
        tested = {example.prompt for example in self.examples("test")}
        return read_dolly(DOLLY.folder(self.data, shared=self.tested_on is not DOLLY), tested)

    def _read_test(self) -> list[Example]:
        folder = self.tested_on.folder(self.data, shared=self.tested_on is not DOLLY)
        file = self.tested_on.file(folder, self.tested_on.patterns[0])
        examples = list(_read(f"{self.name}-test", file))
        if len(examples) != self.test_rows:
            raise UserError(f"{file} has {len(examples)} rows, but {self.name}'s test split has {self.test_rows}",
                            self.tested_on.how_to_get)
        return examples

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """MiniLLM's two figures for one completion, 0 to 100.

        Raises:
            UserError: rouge-score is not installed.
        """
        text = completion.partition("<|endoftext|>")[0].replace("<n>", "\n")
        references = example.meta["references"]
        return {"rouge_l": 100 * max(rouge_l(text, reference) for reference in references),
                "exact": 100.0 * any(normalise(text) == normalise(reference) for reference in references)}

    def scorer(self) -> str:
        _tokenizer()
        return f"words of rouge-score {metadata.version('rouge-score')}, stemmed"


class Dolly(Instructions):
    """dolly@1."""

    name = "dolly"
    version = 1
    summary = "Dolly's 500 held-out instructions, Rouge-L as in MiniLLM"
    source = "MiniLLM/dolly (databricks-dolly-15k, Conover et al. 2023; split of Gu et al. 2024, arXiv:2306.08543)"
    license = "CC-BY-SA-3.0"
    tested_on = DOLLY
    test_rows = 500


class SelfInst(Instructions):
    """self-inst@1."""

    name = "self-inst"
    version = 1
    summary = "242 user-oriented instructions of Self-Instruct, Rouge-L as in MiniLLM; trains on Dolly"
    source = "MiniLLM/self-inst (Wang et al. 2023, arXiv:2212.10560); training from MiniLLM/dolly"
    license = "Apache-2.0; training data CC-BY-SA-3.0"
    tested_on = Files("self-inst", "MiniLLM/self-inst", ("valid.jsonl",), "valid.jsonl (242 rows)")
    test_rows = 242


class Vicuna(Instructions):
    """vicuna@1."""

    name = "vicuna"
    version = 1
    summary = "Vicuna's 80 questions, Rouge-L as in MiniLLM; trains on Dolly"
    source = "MiniLLM/Vicuna (Chiang et al. 2023, lm-sys/FastChat); training from MiniLLM/dolly"
    license = "Apache-2.0; training data CC-BY-SA-3.0"
    tested_on = Files("vicuna", "MiniLLM/Vicuna", ("valid.jsonl",), "valid.jsonl (80 rows)")
    test_rows = 80


class SNI(Instructions):
    """s-ni@1."""

    name = "s-ni"
    version = 1
    summary = "1,694 Super-NaturalInstructions tests with responses of 11 words and more; trains on Dolly"
    source = "MiniLLM/sinst, part 11_ (Wang et al. 2022, arXiv:2204.07705); training from MiniLLM/dolly"
    license = "Apache-2.0; training data CC-BY-SA-3.0"
    tested_on = Files("sinst", "MiniLLM/sinst", ("11_/valid.jsonl",), "11_/valid.jsonl (1,694 rows)")
    test_rows = 1694


def read_dolly(folder: Any, tested: Iterable[Any] = ()) -> dict[Split, list[Example]]:
    """Dolly's train and validation splits, without prompts seen before (in `tested`, validation, or the split itself).

    Raises:
        UserError: a file is missing, or a row cannot be used.
    """
    if files.has(folder, "raw.jsonl"):
        rows = list(_read("dolly", DOLLY.file(folder, "raw.jsonl")))
        validation, train = rows[:VALIDATION_ROWS], rows[VALIDATION_ROWS:]
    else:
        validation = list(_read("dolly-validation", DOLLY.file(folder, "dev.jsonl")))
        train = list(_read("dolly-train", DOLLY.file(folder, "train.jsonl", "raw.jsonl")))
    seen = set(tested)
    return {"validation": _new_and_short(validation, seen), "train": _new_and_short(train, seen)}


def rouge_l(text: str, reference: str) -> float:
    """Rouge-L's F-measure of two texts, 0 to 1 (Lin 2004), on rouge-score's words, stemmed.

    The package's own longest common subsequence takes seconds on the longest texts that models write.
    """
    written, wanted = _tokenizer().tokenize(text), _words(reference)
    common = common_length(written, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(written), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, with the rows of the usual table as bits (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for index, word in enumerate(b):
        places[word] = places.get(word, 0) | 1 << index
    row = full = (1 << len(b)) - 1
    for word in a:
        hits = row & places.get(word, 0)
        row = (row + hits | row - hits) & full
    return len(b) - row.bit_count()


def normalise(text: str) -> str:
    """Lower case without ASCII punctuation, words one space apart."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


@cache
def _tokenizer() -> Any:
    try:
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError:
        raise UserError("Rouge-L needs the package rouge-score, which is not installed",
                        "pip install 'opdbench[eval]'") from None
    return DefaultTokenizer(use_stemmer=True)


@lru_cache(1 << 16)
def _words(reference: str) -> tuple[str, ...]:
    return tuple(_tokenizer().tokenize(reference))


def _new_and_short(examples: Iterable[Example], seen: set[Any]) -> list[Example]:
    kept = []
    for example in examples:
        if example.prompt not in seen and max(len(example.prompt), len(example.answer)) <= LONGEST:
            kept.append(example)
            seen.add(example.prompt)
    return kept


def _read(name: str, file: Any) -> Iterable[Example]:
    for index, (where, row) in enumerate(files.json_rows(file)):
        output = row.get("output")
        several = output if isinstance(output, list) and output else [output]
        references = [files.text(where, {"output": reference}, "output") for reference in several]
        instruction, context = files.text(where, row, "instruction"), row.get("input") or ""
        prompt = (_WITH_INPUT if context else _WITHOUT_INPUT).format(instruction=instruction, input=context)
        request = f"{instruction}\n\n{context}".strip()
        yield Example(f"{name}-{index}", prompt, references[0], solution=references[0],
                      meta={"references": references, "request": request})
