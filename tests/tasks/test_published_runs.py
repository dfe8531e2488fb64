"""Whole runs on the published tasks with small random models: `opdbench run`, its record, and the same scores again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench.cli import main as cli
from opdbench.errors import UserError
from opdbench.registry import load
from opdbench.scores import Outcome, scores
from opdbench.store import RECORD, read_outcomes, read_record
from tests.lm import tiny_models
from tests.tasks import published

TASKS = ("dolly", "self-inst", "vicuna", "s-ni", "wmt-en-de", "ifeval")
SHORT = ("max_new_tokens=8", "examples=3", "curve_examples=2", "batch=2", "horizon=6")


@pytest.fixture(scope="module")
def data(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("rouge_score", "sacrebleu", "lm_eval", "langdetect"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'opdbench[test]'")
    published.sentence_splitter(shared_data, tmp_path_factory.mktemp("nltk"))
    return published.translations(shared_data, published.instructions(
        shared_data, tmp_path_factory.mktemp("published")))


@pytest.fixture(scope="module")
def models(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two random byte-level models of one family, with a chat template."""
    out, rows = tmp_path_factory.mktemp("models"), published.dolly_rows(shared_data)[:200]
    tokenizer = tiny_models.make_tokenizer([json.loads(row)["output"] for row in rows])
    for seed, role in enumerate(("teacher", "student")):
        tiny_models.make_model(tokenizer, layers=1, hidden=32, seed=seed).save_pretrained(out / role)
        tokenizer.save_pretrained(out / role)
    return {role: out / role for role in ("teacher", "student")}


@pytest.mark.parametrize("name", TASKS)
def test_a_run_ends_with_scores_that_its_outcomes_make(
        name: str, data: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    method = ["gkd"] if name == "ifeval" else ["sft", "--set", "data=solutions"]
    words = ["run", "--method", *method, "--task", name, "--data", str(data),
             "--teacher", str(models["teacher"]), "--student", str(models["student"]), "--budget", "steps=2",
             "--results", str(tmp_path), "--json"]
    assert cli.main([*words, *(word for setting in SHORT for word in ("--set", setting))]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "completed"
    (path,) = tmp_path.glob(f"*/*/*/{RECORD}")
    record, task = read_record(path), load("task", name)(data=str(data))
    assert record.scorer == task.scorer() and record.validation
    problems = {example.id: example for example in task.examples("test")}
    for phase, file in record.outcomes.items():
        outcomes = [Outcome(**outcome) for outcome in read_outcomes(path.parent, file)]
        assert scores(outcomes, task.metric) == getattr(record, phase)
        for outcome in outcomes:
            grade = task.grade(problems[outcome.id], outcome.output)
            assert grade == {task.metric: outcome.score, **outcome.extra}


def test_methods_that_imitate_answers_refuse_where_there_are_none(
        data: Path, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--method", "sft", "--set", "data=solutions", "--task", "ifeval", "--data", str(data),
             "--teacher", str(models["teacher"]), "--student", str(models["student"]),
             "--budget", "steps=2", "--results", str(tmp_path)]
    assert cli.main([*words, *(word for setting in SHORT for word in ("--set", setting))]) == 1
    assert "learn from reference solutions, and ifeval@1 has none" in capsys.readouterr().err


@pytest.mark.parametrize("name", [
    name if name in ("dolly", "ifeval") else pytest.param(name, marks=pytest.mark.slow) for name in TASKS])
def test_show_and_check_know_the_task(name: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", name, "--data", str(data), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["size"]["test"] == len(load("task", name)(data=str(data)).examples("test"))
    assert cli.main(["check", name, "--data", str(data)]) == 0, capsys.readouterr().out
    assert "data are at hand" in capsys.readouterr().out


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from opdbench.tasks import ifeval, instructions, translation

    for function, package in ((instructions._tokenizer, "rouge_score.tokenizers"),
                              (translation._metrics, "sacrebleu.metrics.bleu"), (ifeval._checkers, "langdetect")):
        function.cache_clear()
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError) as error:
            function()
        assert error.value.fix == "pip install 'opdbench[eval]'"
        function.cache_clear()
