"""WMT14 English to German, scored by sacreBLEU: BLEU of the whole test set, with chrF beside it.

Bojar et al. 2014; Post 2018, "A Call for Clarity in Reporting BLEU Scores". GKD (Agarwal et al. 2024, arXiv:2306.13649,
section 4.2) distils on this pair.

The prompt is ALMA's (Xu et al. 2023, arXiv:2309.11674, section 4), as one user message. Deviations from GKD: that
prompt instead of T5's prefix, since students are decoders; sampled and greedy text instead of a beam of 4; training
pairs with a blank side, over 500 characters, or with a source seen before are left out.

BLEU is no mean over sentences. The grader keeps each sentence's n-gram counts, from which `opdbench.corpus` makes the
figure and its bootstrap interval; `sentence_bleu` (smoothed, effective order) is what methods with rewards see.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, PositiveInt

from opdbench.corpus import BLEU_ORDERS, CHRF_ORDERS
from opdbench.errors import UserError
from opdbench.lm import files
from opdbench.lm.files import Files
from opdbench.lm.published import PublishedTask
from opdbench.task import Example, Split

PUBLISHED = Files("wmt-en-de", "wmt/wmt14",
                  ("de-en/train-00000-of-*.parquet", "de-en/validation-*.parquet", "de-en/test-*.parquet", "test.en"),
                  "train, validation (newstest2013) and test (newstest2014): `.en` and `.de`, one sentence a line, or "
                  "the hub's de-en/*.parquet")
COUNTS: dict[Split, int] = {"validation": 3000, "test": 3003}
LONGEST = 500  # characters of either side of a training pair
PROMPT = "Translate this from English to German:\nEnglish: {}\nGerman:"


class WMT(PublishedTask):
    """wmt-en-de@1. Score of the test set: `bleu`, 0 to 100; beside it `chrf` and the mean `sentence_bleu`."""

    name = "wmt-en-de"
    version = 1
    summary = "WMT14 English to German, newstest2014's 3,003 sentences, sacreBLEU"
    source = "wmt/wmt14, de-en (Bojar et al. 2014); from the hub, or a folder given with --data"
    license = "no explicit licence: research use (WMT)"
    protocol = (
        "ALMA's prompt as one user message; the first line that is not blank is the translation. Corpus BLEU as "
        "sacreBLEU defines it (13a tokens, mixed case, exponential smoothing; its signature is in the record), with a "
        "95% bootstrap over sentences; chrF2 beside it. Training rewards are smoothed sentence BLEU. Test is "
        "newstest2014, all 3,003 sentences; validation newstest2013; training the first pairs of WMT14's training data."
    )
    metric = "bleu"
    max_new_tokens = 256
    training: ClassVar[Mapping[str, Any]] = {"lr": 1e-5, "batch": 64, "warmup_steps": 5}
    budget: ClassVar[Mapping[str, float]] = {"steps": 500}

    class Params(PublishedTask.Params):
        max_new_tokens: PositiveInt = Field(256, description="longest completion in tokens, when scores are taken")
        train_pairs: PositiveInt = Field(100_000, description="how many of the first training pairs are read")

    def read(self, split: Split) -> dict[Split, list[Example]]:
        folder = PUBLISHED.folder(self.data)
        test = _examples("test", self._read(folder, "test"))
        seen = {example.prompt[0]["content"] for example in test}  # type: ignore[index]
        validation = _new(_examples("validation", self._read(folder, "validation")), seen)
        train = _new(_examples("train", self._read(folder, "train")), seen)
        return {"test": test, "validation": validation, "train": train}

    def _read(self, folder: Path, split: Split) -> list[tuple[str, str]]:
        limit = self.params.train_pairs if split == "train" else None
        if files.has(folder, f"{split}.en"):
            pairs = _text_pairs(folder, split, limit)
        else:
            pairs = _parquet_pairs(folder, split, limit)
        if split in COUNTS and len(pairs) != COUNTS[split]:
            raise UserError(f"{folder} has {len(pairs)} pairs in its {split} split, and WMT14 has {COUNTS[split]}",
                            PUBLISHED.how_to_get)
        return pairs

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        """Smoothed sentence BLEU (as `bleu`, and again as `sentence_bleu`), and the counts of corpus BLEU and chrF.

        Raises:
            UserError: sacrebleu is not installed.
        """
        bleu, sentence, chrf = _metrics()
        text, references = first_line(completion), [[example.answer]]
        corpus = bleu.corpus_score([text], references)
        counts = {"bleu.written": corpus.sys_len, "bleu.reference": corpus.ref_len}
        for n in BLEU_ORDERS:
            counts |= {f"bleu.match{n}": corpus.counts[n - 1], f"bleu.of{n}": corpus.totals[n - 1]}
        (statistics,) = chrf._extract_corpus_statistics([text], references)
        for n in CHRF_ORDERS:
            counts |= dict(zip((f"chrf.written{n}", f"chrf.reference{n}", f"chrf.match{n}"),
                               statistics[3 * (n - 1):3 * n], strict=True))
        score = sentence.sentence_score(text, [example.answer]).score
        return {"bleu": score, "sentence_bleu": score} | {f"sum.{name}": float(count) for name, count in counts.items()}

    def scorer(self) -> str:
        """sacreBLEU's signature."""
        bleu, _, chrf = _metrics()
        for metric in (bleu, chrf):
            metric.corpus_score(["a"], [["a"]])  # it signs what it has done
        return f"sacrebleu BLEU {bleu.get_signature()}, chrF {chrf.get_signature()}"


def first_line(completion: str) -> str:
    """The first line that is not blank, without the spaces around it: what follows is no translation."""
    return next((line.strip() for line in completion.split("\n") if line.strip()), "")


class _Metrics(NamedTuple):
    bleu: Any
    sentence: Any
    chrf: Any


@cache
def _metrics() -> _Metrics:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise UserError("BLEU is computed by the package sacrebleu, which is not installed",
                        "pip install 'opdbench[eval]'") from None
    return _Metrics(BLEU(), BLEU(effective_order=True), CHRF())


def _text_pairs(folder: Path, split: Split, limit: int | None) -> list[tuple[str, str]]:
    sides = [files.text_lines(PUBLISHED.file(folder, f"{split}.{language}"), limit) for language in ("en", "de")]
    if len(sides[0]) != len(sides[1]):
        raise UserError(f"{folder} has {len(sides[0])} lines in {split}.en and {len(sides[1])} in {split}.de",
                        "they must be translations of each other, line by line")
    return list(zip(*sides, strict=True))


def _parquet_pairs(folder: Path, split: Split, limit: int | None) -> list[tuple[str, str]]:
    place = folder / "de-en" if (folder / "de-en").is_dir() else folder
    shards = sorted(place.glob(f"{split}-*.parquet"))
    if not shards:
        raise UserError(f"{folder} has no {split}.en and no {split}-*.parquet", PUBLISHED.how_to_get)
    pairs = []
    for number, row in enumerate(files.parquet_column(shards, "translation", limit), 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(side), str) for side in ("en", "de")):
            raise UserError(f"{shards[0]} row {number}: `translation` has no texts en and de", PUBLISHED.how_to_get)
        pairs.append((row["en"], row["de"]))
    return pairs


def _examples(split: Split, pairs: Sequence[tuple[str, str]]) -> list[Example]:
    return [Example(f"{split}-{index}", [{"role": "user", "content": PROMPT.format(source)}], target, solution=target)
            for index, (source, target) in enumerate(pairs)]


def _new(examples: Sequence[Example], seen: set[str]) -> list[Example]:
    """Those whose sides are neither blank nor long, and whose source was not seen before."""
    kept = []
    for example in examples:
        prompt = example.prompt[0]["content"]  # type: ignore[index]
        source = prompt.removeprefix(PROMPT.partition("{}")[0]).removesuffix("\nGerman:")
        short = max(len(source), len(example.answer)) <= LONGEST
        if short and source.strip() and example.answer.strip() and prompt not in seen:
            kept.append(example)
            seen.add(prompt)
    return kept
