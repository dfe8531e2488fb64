"""WMT en-de: corpus BLEU and chrF from each sentence's counts equal sacreBLEU's, and so does the bootstrap."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from opdbench import corpus
from opdbench.conformance.language_task import STRANGE_TEXTS
from opdbench.errors import UserError
from opdbench.scores import Outcome, scores
from opdbench.tasks.translation import WMT, first_line
from tests.tasks import published

pytest_plugins = ["tests.hub_cache"]


@pytest.fixture(scope="module")
def task(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> WMT:
    pytest.importorskip("sacrebleu", reason="sacrebleu is not installed: pip install 'opdbench[test]'")
    return WMT(str(published.translations(shared_data, tmp_path_factory.mktemp("published"))))


def garbled(task: WMT, n: int, seed: int) -> tuple[list[str], list[str], list[dict[str, float]]]:
    """References with words changed, as translations; the references; and their grades."""
    rng, texts = random.Random(seed), []
    examples = task.examples("test")[:n]
    for example in examples:
        words = example.answer.split()
        texts.append(" ".join(word if rng.random() < 0.6 else rng.choice(words) for word in words))
    grades = [task.grade(example, f"\n {text} \nMore.") for example, text in zip(examples, texts, strict=True)]
    return texts, [example.answer for example in examples], grades


def outcomes(grades: list[dict[str, float]]) -> list[Outcome]:
    return [Outcome(str(index), "greedy", grade["bleu"], 1, False, "",
                    {name: value for name, value in grade.items() if name != "bleu"})
            for index, grade in enumerate(grades)]


def test_scores_of_the_test_set_are_sacrebleus(task: WMT) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    texts, references, grades = garbled(task, 120, seed=0)
    theirs = BLEU().corpus_score(texts, [references], n_bootstrap=corpus.RESAMPLES)
    score = scores(outcomes(grades), "bleu")["greedy"]
    assert score.mean == pytest.approx(theirs.score, abs=1e-9) and 10 < score.mean < 90
    assert score.extra["chrf"] == pytest.approx(CHRF().corpus_score(texts, [references]).score, abs=1e-9)
    assert (score.high - score.low) / 2 == pytest.approx(theirs._ci, abs=1e-4)  # it adds in float32
    assert score.interval == "bootstrap" and score.low < score.mean < score.high
    assert set(score.extra) == {"chrf", "sentence_bleu"}
    assert score.mean != pytest.approx(score.extra["sentence_bleu"], abs=0.1)  # it is no mean


@pytest.mark.parametrize(("text", "reference"), [
    ("Das", "Das ist gut ."), ("Das ist schlecht hier", "Das war gut da"), ("", "Das"), ("Nein", "Das ist gut ."),
    ("Das ist ein Haus am See ja", "Das ist kein Haus am Meer ja"), ("a b c d e f g h i", "a b c d e f g h i"),
    ("Das ist gut , sagt er", "So ist gut , meint er nicht"), (".", "."),
])
def test_short_texts_are_smoothed_as_there(task: WMT, text: str, reference: str) -> None:
    from sacrebleu.metrics import BLEU, CHRF

    example = task.examples("test")[0]
    grade = task.grade(type(example)("x", "", reference), text)
    assert corpus.bleu(grade) == pytest.approx(BLEU().corpus_score([text], [[reference]]).score, abs=1e-9)
    assert corpus.chrf(grade) == pytest.approx(CHRF().corpus_score([text], [[reference]]).score, abs=1e-9)
    expected = BLEU(effective_order=True).sentence_score(text, [reference]).score
    assert grade["sentence_bleu"] == grade["bleu"] == expected


def test_hostile_text_is_graded(task: WMT) -> None:
    example = task.examples("test")[0]
    for text in STRANGE_TEXTS:
        grade = task.grade(example, text)
        assert 0 <= grade["bleu"] <= 100 and 0 <= corpus.chrf(grade) <= 100 and grade == task.grade(example, text)
    assert first_line("\n\t\n  a \nb") == "a" and first_line(" \n") == ""


def test_the_record_names_the_signature(task: WMT) -> None:
    signature = task.scorer()
    for part in ("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:", "chrF nrefs:1|case:mixed|eff:yes|nc:6|nw:0"):
        assert part in signature


def test_splits_share_no_source(task: WMT) -> None:
    prompts = {split: [example.prompt[0]["content"] for example in task.examples(split)]
               for split in ("test", "validation", "train")}
    assert len(prompts["test"]) == 3003 and 2800 < len(prompts["validation"]) <= 3000 and len(prompts["train"]) > 900
    assert prompts["test"][0].startswith("Translate this from English to German:\nEnglish: It is not acceptable")
    assert not set(prompts["test"]) & {*prompts["validation"], *prompts["train"]}
    assert not set(prompts["validation"]) & set(prompts["train"])
    assert len(WMT(task.data, WMT.Params(train_pairs=10)).examples("train")) <= 10


def test_the_hubs_files_are_the_same_task(task: WMT, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'opdbench[test]'")
    import pyarrow

    (tmp_path / "de-en").mkdir()
    for split, shard in (("train", "00000-of-00003"), ("validation", "00000-of-00001"), ("test", "00000-of-00001")):
        sides = [(Path(task.data) / f"wmt-en-de/{split}.{side}").read_text().split("\n")[:-1] for side in ("en", "de")]
        rows = [{"translation": {"de": de, "en": en}} for en, de in zip(*sides, strict=True)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"de-en/{split}-{shard}.parquet")
    assert WMT(str(tmp_path)).checksum() == task.checksum()


def test_bad_files_are_named(task: WMT, tmp_path: Path, hub_cache: Path) -> None:
    with pytest.raises(UserError) as error:
        WMT().examples("test")
    assert "hf download --repo-type dataset wmt/wmt14" in error.value.fix
    (tmp_path / "test.en").write_text("One.\nTwo.\n")
    with pytest.raises(UserError, match=r"has no test\.de"):
        WMT(str(tmp_path)).examples("test")
    (tmp_path / "test.de").write_text("Eins.\n")
    with pytest.raises(UserError, match=r"2 lines in test\.en and 1 in test\.de"):
        WMT(str(tmp_path)).examples("test")
    (tmp_path / "test.de").write_text("Eins.\nZwei.\n")
    with pytest.raises(UserError, match="has 2 pairs in its test split, and WMT14 has 3003"):
        WMT(str(tmp_path)).examples("test")
    (tmp_path / "test.de").write_bytes(b"Eins.\n\xff\n")
    with pytest.raises(UserError, match=r"test\.de line 2 is not UTF-8"):
        WMT(str(tmp_path)).examples("test")
