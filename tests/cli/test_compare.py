"""`opdbench compare`: the paired difference of two methods or two groups of records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench.cli.main import main
from tests.report.synthetic import write_run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for seed in range(5):
        write_run(tmp_path, "one", seed, after=0.8, examples=100)
        write_run(tmp_path, "two", seed + 1, after=0.5, examples=100)
    return tmp_path


def test_two_methods(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "one", "two", "--results", str(results), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["common_seeds"] == [1, 2, 3, 4] and shown["examples"] == 100
    by_measure = {each["measure"]: each for each in shown["differences"]}
    assert set(by_measure) == {"after greedy", "after sampled", *(f"gap recovered, {mode}" for mode in (
        "greedy", "sampled", "mean"))}
    after = by_measure["after greedy"]
    assert after["difference"]["low"] < 0.3 < after["difference"]["high"] and after["p"] < 0.05
    assert 0 < after["detectable"] < 0.3


def test_text_says_who_is_higher(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "two", "one", "--task", "toy", "--results", str(results)]) == 0
    assert "one is higher" in capsys.readouterr().out
    assert main(["compare", "one", "one", "--results", str(results)]) == 0
    assert capsys.readouterr().out.count("cannot be told apart") == 5


def test_two_folders(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(results / "toy" / method) for method in ("one", "two")]
    assert main(["compare", *folders]) == 0 and "higher" in capsys.readouterr().out


def test_what_cannot_be_compared_is_a_sentence(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*words: str) -> str:
        assert main(["compare", *words, "--results", str(results)]) in (1, 2)
        return capsys.readouterr().err

    assert "did you mean 'one'" in refused("noe", "two")
    assert "no records of one on maze" in refused("one", "two", "--task", "maze")
    write_run(results, "far", 9)
    assert "same examples" in refused("one", "far")
    write_run(results, "late", 9, examples=100)
    assert "fewer than two seeds in common" in refused("one", "late")
    write_run(results, "failed", 0, status="oom", reason="out of memory")
    assert "no run of failed is complete" in refused("one", "failed")
    write_run(results, "one", 0, task="other@1")
    assert "there are records of one on other@1, toy@1" in refused("one", "two")
    write_run(results, "two", 0, lr=0.5, examples=100)
    assert "in 2 settings" in refused("one", "two", "--task", "toy")


def test_a_setting_is_chosen_by_its_digits(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        write_run(results, "two", seed, lr=0.5, examples=100)
    assert main(["compare", "one", "two", "--results", str(results)]) == 1
    chosen = capsys.readouterr().err.strip().rpartition(" ")[2]
    assert main(["compare", "one", chosen, "--results", str(results)]) == 0
