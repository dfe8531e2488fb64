"""Dolly, Self-Instruct, Vicuna and S-NI: MiniLLM's prompts, files and figures; splits that share nothing."""

from __future__ import annotations

import json
import random
import shutil
import string
from pathlib import Path

import pytest

from opdbench.conformance.language_task import STRANGE_TEXTS
from opdbench.errors import UserError
from opdbench.task import Example
from opdbench.tasks import instructions
from opdbench.tasks.instructions import SNI, Dolly, Instructions, SelfInst, Vicuna
from tests.tasks import published

pytest_plugins = ["tests.hub_cache"]

TASKS = (Dolly, SelfInst, Vicuna, SNI)


@pytest.fixture(scope="module")
def folder(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("rouge_score", reason="rouge-score is not installed: pip install 'opdbench[test]'")
    return published.instructions(shared_data, tmp_path_factory.mktemp("published"))


@pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.name)
def test_the_splits_are_the_published_ones_and_share_nothing(cls: type[Instructions], folder: Path) -> None:
    task = cls(str(folder))
    test, validation, train = (task.examples(split) for split in ("test", "validation", "train"))
    assert len(test) == {"dolly": 500, "self-inst": 242, "vicuna": 80, "s-ni": 1694}[cls.name]
    prompts = [{example.prompt for example in split} for split in (test, validation, train)]
    assert not prompts[0] & prompts[1] and not prompts[0] & prompts[2] and not prompts[1] & prompts[2]
    assert len(prompts[1]) == len(validation) > 100 and len(prompts[2]) == len(train) > 500
    assert all(task.grade(example, example.solution)["exact"] == 100 for example in test[:50])


@pytest.mark.parametrize("cls", TASKS, ids=lambda cls: cls.name)
def test_every_prompt_is_the_one_that_minillm_stored(cls: type[Instructions], folder: Path) -> None:
    file = cls.tested_on.file(folder / cls.tested_on.name, cls.tested_on.patterns[0])
    stored = [row["prompt"] for _, row in instructions.files.json_rows(file)]
    assert [example.prompt for example in cls(str(folder)).examples("test")] == stored


def test_super_natural_instructions_have_several_references(folder: Path) -> None:
    examples = SNI(str(folder)).examples("test")
    several = [example for example in examples if len(example.meta["references"]) > 1]
    assert len(several) == 388
    task = SNI(str(folder))
    for example in several[:20]:
        assert task.grade(example, example.meta["references"][-1])["rouge_l"] == pytest.approx(100)


def test_rouge_l_is_that_of_the_package(folder: Path) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rng = RougeScorer(["rougeL"], use_stemmer=True), random.Random(0)
    examples = Dolly(str(folder)).examples("test")
    words = ["running", "runs", "run", "The", "fox's", "É", "naïve", "", "12", "-", "flies", "dying", "yyy", "_"]
    pairs = [(rng.choice(examples).answer, rng.choice(examples).answer) for _ in range(150)]
    pairs += [tuple(" ".join(rng.choices(words, k=rng.randint(0, 12))) for _ in range(2)) for _ in range(500)]
    pairs += [(text, "1 nan true answer x") for text in STRANGE_TEXTS if len(text) < 1000 and text != "\ud83d"]
    theirs = [scorer.score(target=reference, prediction=text)["rougeL"].fmeasure for text, reference in pairs]
    assert [instructions.rouge_l(text, reference) for text, reference in pairs] == theirs
    assert len({round(score, 3) for score in theirs}) > 50


def test_the_figures_are_minillms_over_many_references(folder: Path) -> None:
    """Its evaluation, written anew: the best over references, times 100; text up to <|endoftext|>."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer, rng = RougeScorer(["rougeL"], use_stemmer=True), random.Random(1)
    examples = SNI(str(folder)).examples("test")
    chosen = rng.sample([example for example in examples if len(example.meta["references"]) > 1], 60)
    for example in chosen:
        text = " ".join(rng.sample(rng.choice(chosen).answer.split() + example.answer.split(), 6))
        best = max(scorer.score(target=reference, prediction=text)["rougeL"].fmeasure
                   for reference in example.meta["references"])
        scores = SNI().grade(example, f"\n{text} <|endoftext|>{example.answer}")
        assert scores["rouge_l"] == pytest.approx(100 * best, abs=1e-12)
        assert scores["exact"] == 0


def test_exact_match_ignores_case_punctuation_and_spacing() -> None:
    example = Example("x", "", "It's 5.", meta={"references": ["It's 5.", "five"]})
    task = Dolly()
    assert task.grade(example, " its\n5 ")["exact"] == task.grade(example, "FIVE!")["exact"] == 100
    assert task.grade(example, "it is 5")["exact"] == 0
    assert instructions.normalise(string.punctuation) == ""


def test_unsplit_rows_are_split_as_minillm_splits_them(shared_data: Path, folder: Path, tmp_path: Path) -> None:
    rows = published.dolly_rows(shared_data)
    extra = [json.dumps({"instruction": f"Say {n}.", "input": "", "output": f"{n}"}).encode() + b"\n" for n in range(5)]
    long = json.dumps({"instruction": "Go on.", "input": "", "output": "on " * 400}).encode() + b"\n"
    (tmp_path / "raw.jsonl").write_bytes(b"".join([*rows, long, *extra, extra[0]]))
    shutil.copy(folder / "dolly/valid.jsonl", tmp_path)
    task = Dolly(str(tmp_path))
    assert [example.id for example in task.examples("train")] == [f"dolly-{1001 + n}" for n in range(5)]
    assert 800 < len(task.examples("validation")) < 1000


def test_bad_files_are_named(folder: Path, tmp_path: Path, hub_cache: Path) -> None:
    with pytest.raises(UserError) as error:
        SNI().examples("test")
    assert "MiniLLM/sinst" in error.value.fix and "FOLDER/sinst/ holds 11_/valid.jsonl" in error.value.fix
    with pytest.raises(UserError, match=r"has no folder vicuna/ with valid\.jsonl"):
        Vicuna(str(tmp_path)).examples("test")
    with pytest.raises(UserError, match="a folder that does not exist"):
        Vicuna(str(tmp_path / "no")).examples("test")
    (tmp_path / "vicuna").mkdir()
    for line, problem in (("[1]", "is not a JSON object"), ("{", "is not one JSON object"),
                          ('{"instruction": "a"}', "line 1: field 'output' is not a text"),
                          ('{"instruction": "a", "output": ["b", 3]}', "line 1: field 'output' is not a text"),
                          ('{"instruction": "a", "output": "b"}', "has 1 rows, but vicuna's test split has 80")):
        (tmp_path / "vicuna/valid.jsonl").write_text(line)
        with pytest.raises(UserError, match=problem):
            Vicuna(str(tmp_path)).examples("test")
    shutil.copy(folder / "vicuna/valid.jsonl", tmp_path / "vicuna")
    with pytest.raises(UserError, match="has no folder dolly/"):
        Vicuna(str(tmp_path)).examples("train")
