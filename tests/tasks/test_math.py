"""Competition mathematics: boxes, verdicts on equivalent and wrong answers, hostile LaTeX, real splits, refusals."""

from __future__ import annotations

import gzip
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from opdbench.conformance import check_task
from opdbench.errors import UserError
from opdbench.task import Example
from opdbench.tasks import math, verifier
from opdbench.tasks.math import Aime24, Aime25, Amc23, BoxedTask, Math500, last_box

pytest_plugins = ["tests.hub_cache"]
TASKS: list[type[BoxedTask]] = [Math500, Aime24, Aime25, Amc23]

BOXES = {
    "": None, "42": None, "\\boxed{42}": "42", "\\boxed{1} then \\boxed{2}": "2", "\\boxed {3}": "3", "\\fbox{4}": "4",
    "\\boxed{\\frac{1}{2}}": "\\frac{1}{2}", "\\boxed{\\{1, 2\\}}": "\\{1, 2\\}", "\\boxed{ 5 }.": "5",
    "\\boxed{": None, "\\boxed{1": None, "\\boxed{6} and \\boxed{": "6", "\\boxed{}": "", "}\\boxed{7}}": "7",
    "\\boxed{\\text{(C)}}": "\\text{(C)}",
    "\\boxed{\\boxed{8}}": "\\boxed{8}", "boxed{9}": None, "\\\\boxed{9}": None, "{\\boxed{1}": "1", "\\boxed 8": None,
}
EQUAL = [
    ("\\frac{1}{2}", "0.5"), ("\\frac{1}{2}", "1/2"), ("\\frac12", "\\dfrac{1}{2}"), ("\\frac{14}{3}", "4\\frac{2}{3}"),
    ("p - q", "-q+p"), ("9", "9.0"), ("204", "\\text{204}"), ("25", "025"), ("2\\sqrt{2}", "\\sqrt{8}"), ("5", " 5. "),
    ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3,\\pi/2)"), ("\\text{Evelyn}", "Evelyn"), ("\\text{(C)}", "C"),
    ("145^\\circ", "145"), ("\\$36", "36"), ("36", "\\$36"), ("36", "36\\text{ inches}"), ("1,450,000", "1450000"),
    ("x \\in [-2,7]", "[-2,7]"), ("6-5i", "-5i+6"), ("x^2+2x+1", "(x+1)^2"), ("1,2,3", "3,2,1"), ("3", "x=3"),
    ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"),
    ("\\frac{3}{56}", "\\frac{6}{112}"),
]
DIFFERENT = [
    ("(3,4)", "(4,3)"), ("18", "18,19"), ("18", "\\{18,19\\}"), ("18", "18 \\text{ or } 19"), ("-1", "1"), ("2", "2x"),
    ("\\text{Evelyn}", "\\text{Carla}"), ("[-2,7]", "(-2,7)"), ("3", "3.001"), ("0", "\\emptyset"), ("", ""), ("7", ""),
    ("7", "\ud83d"), ("7", "7\x00"), ("7", "\\frac"), ("7", "}"), ("7", "7" * 1001), ("8", "__import__('os').getpid()"),
]
HOSTILE = ["9^{9^{9^{9}}}", "10^{10^{10}}", "100000!!!", "(" * 400, "\\sqrt{" * 150 + "7" + "}" * 150,
           "\\int_0^{1} e^{e^{x^x}}\\sin(x^x) dx"]


def made(cls: type[BoxedTask], shared_data: Path, **params: Any) -> BoxedTask:
    return cls(data=str(shared_data), params=cls.Params(**params))


@pytest.fixture
def verified() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'opdbench[math]'")


@pytest.mark.parametrize("text", BOXES)
def test_the_last_complete_box_counts(text: str) -> None:
    assert last_box(text) == BOXES[text]


def test_any_text_is_searched_in_one_pass() -> None:
    began = time.process_time()
    for text in ("\\boxed{" * 100_000, "{" * 500_000, "}" * 500_000, "\\" * 500_000, "\\boxed{1}" * 50_000):
        last_box(text)
    assert time.process_time() - began < 20  # and not hours


@pytest.mark.usefixtures("verified")
def test_equivalent_answers_are_right_and_others_wrong() -> None:
    assert [pair for pair in EQUAL if not verifier.equivalent(*pair)] == []
    assert [pair for pair in DIFFERENT if verifier.equivalent(*pair)] == []


@pytest.mark.usefixtures("verified")
def test_a_hostile_answer_is_wrong_and_costs_no_more_than_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_worker", verifier._Worker())
    began = time.process_time()
    assert verifier.equivalent("7", "9^{9^{9^{9}}}") is False
    assert verifier.equivalent("\\frac{1}{2}", "0.5") is True  # by a new worker
    assert time.process_time() - began < 1  # the time is the worker's


@pytest.mark.slow
@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize("answer", HOSTILE)
def test_hostile_answers_end(answer: str) -> None:
    assert verifier.equivalent("7", answer) is False


@pytest.mark.usefixtures("verified")
def test_threads_and_forked_processes_get_their_own_verdicts() -> None:
    pairs = [*EQUAL[:8], *DIFFERENT[:8]]
    expected = [verifier.equivalent(*pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda pair: verifier.equivalent(*pair), pairs)) == expected
    child = os.fork()
    if child == 0:
        os._exit(0 if [verifier.equivalent(*pair) for pair in pairs[6:10]] == expected[6:10] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert [verifier.equivalent(*pair) for pair in pairs] == expected


def test_without_the_library_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "_worker", verifier._Worker())
    monkeypatch.setattr(verifier.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="checked by math-verify") as error:
        Math500().grade(Example("x", "", answer="1/2"), "\\boxed{0.5}")
    assert error.value.fix == "pip install 'opdbench[math]'"
    assert Math500().grade(Example("x", "", answer="1"), "1") == {"accuracy": 0.0, "boxed": 0.0}  # nothing to check


def test_the_real_splits(shared_data: Path) -> None:
    sizes = {cls.name: [len(made(cls, shared_data).examples(split)) for split in ("train", "validation", "test")]
             for cls in TASKS}
    assert sizes == {"math-500": [6969, 500, 500], "aime24": [885, 90, 30], "aime25": [885, 90, 30],
                     "amc23": [885, 90, 40]}
    first = made(Math500, shared_data).examples("test")[0]
    assert first.id == "test-0" and first.answer == "\\left( 3, \\frac{\\pi}{2} \\right)"
    assert first.prompt[0]["content"].endswith(f"2 \\pi.$\n{math.INSTRUCTION}")
    assert made(Aime24, shared_data).examples("test")[7].answer == "025"
    assert made(Amc23, shared_data).examples("test")[0].answer == "27"
    assert made(Amc23, shared_data).examples("test")[15].answer == "-1"


@pytest.mark.parametrize("cls", TASKS)
def test_training_problems_are_not_test_problems(cls: type[BoxedTask], shared_data: Path) -> None:
    task = made(cls, shared_data)
    texts = {split: {" ".join(example.prompt[0]["content"].split()) for example in task.examples(split)}
             for split in ("train", "validation", "test")}
    assert sum(map(len, texts.values())) == len(set.union(*texts.values()))


@pytest.mark.usefixtures("verified")
def test_every_reference_solution_is_right(shared_data: Path) -> None:
    right = {"accuracy": 1.0, "boxed": 1.0}
    task = made(Math500, shared_data)
    wrong = [example.id for example in task.examples("test") if task.grade(example, example.solution or "") != right]
    assert wrong == []
    for cls, split in ((Aime24, "train"), (Aime24, "test")):
        task = made(cls, shared_data)
        for example in task.examples(split)[:50]:
            assert example.solution and task.grade(example, example.solution) == right, example.id


@pytest.mark.slow
@pytest.mark.usefixtures("verified")
def test_the_library_itself_finds_every_reference_answer_equal_to_itself(shared_data: Path) -> None:
    """Not only because the two are the same text, which is looked at first."""
    answers = [example.answer for example in made(Math500, shared_data).examples("test")]
    assert [answer for answer in answers if not verifier._worker.ask(answer, answer)] == []
    assert sum(verifier.equivalent(*pair) for pair in pairwise(answers)) < 12  # neighbours that have the same answer


@pytest.mark.usefixtures("verified")
@pytest.mark.parametrize("cls", [Math500, Aime25])
def test_conformance(cls: type[BoxedTask], shared_data: Path) -> None:
    assert [check for check in check_task(cls, data=str(shared_data)) if not check.passed] == []


def test_settings_reach_the_task(shared_data: Path) -> None:
    task = made(Aime25, shared_data, samples=3, max_new_tokens=77)
    assert task.samples == 3 and task.max_new_tokens == 77
    assert made(Aime25, shared_data).samples == 16 and Math500().samples == 4


def test_published_folders_and_files_are_the_same_task(shared_data: Path, tmp_path: Path) -> None:
    """In the hub's own layout: MATH with solutions, and no column for the answer."""
    (tmp_path / "test.jsonl").write_bytes((shared_data / "math500" / "test.jsonl").read_bytes())
    rows = [{"problem": f"What is {number}?", "solution": f"It is $\\boxed{{{number}}}$."} for number in range(7500)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Math500(data=str(tmp_path))
    assert [len(task.examples(split)) for split in ("train", "validation", "test")] == [7000, 500, 500]
    assert task.examples("train")[5].answer == "5" and task.examples("train")[5].solution == "It is $\\boxed{5}$."


def test_what_is_missing_is_named(shared_data: Path, tmp_path: Path, hub_cache: Path) -> None:
    with pytest.raises(UserError, match="HuggingFaceH4/MATH-500"):
        Math500().examples("test")
    with pytest.raises(UserError, match="aime_amc is not on the hub") as error:
        Aime24().examples("train")
    assert "rllm/data/train/math/aime.json" in str(error.value.fix) and "--data FOLDER" in str(error.value.fix)
    (tmp_path / "aime24.jsonl").write_text('{"problem": "What?", "answer": [1]}\n')
    with pytest.raises(UserError, match=r"aime24\.jsonl line 1: field 'answer' is not a text"):
        Aime24(data=str(tmp_path)).examples("test")
    for content in (b"{}", gzip.compress(b"[1]"), b"[", b"\xff"):
        (tmp_path / "aime_1983_2023_train.json.gz").write_bytes(content)
        with pytest.raises(UserError, match=r"train\.json\.gz (is not one JSON array|row 1 is not a JSON)"):
            Aime24(data=str(tmp_path)).examples("train")
