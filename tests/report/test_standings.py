"""Boards over several tasks: whose runs count, the closed division's rule, ranks over tasks, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from opdbench.errors import UserError
from opdbench.report import board
from opdbench.report.standings import Standing
from opdbench.schema.board import SuiteBoard, read_board
from opdbench.schema.suite import read
from tests.report.synthetic import write_run

TASKS = ("toy", "play")
SUITE = {"title": "Two toys", "tune": {"key": "lr", "values": [0.001, 0.01], "seed": 9},
         "tasks": {task: {"budget": "steps=10"} for task in TASKS},
         "arms": {"good": {"method": "good"}, "poor": {"method": "poor"}, "half": {"method": "half", "tasks": ["toy"]}}}
CHOICES = {"toy/good": 0.001, "toy/poor": 0.01, "play/good": 0.01, "play/poor": 0.001, "toy/half": 0.001}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Runs of three arms at both values of the grid; what was not chosen scores better on the test, to tempt."""
    for place in CHOICES:
        task, arm = place.split("/")
        for lr in (0.001, 0.01):
            accuracy = {"good": 0.8, "poor": 0.4, "half": 0.9}[arm] + (0.1 if lr != CHOICES[place] else 0.0)
            for seed in range(5):
                write_run(tmp_path / "results", arm, seed, after=accuracy, task=f"{task}@1", lr=lr)
    write(tmp_path)
    return tmp_path


def write(folder: Path, choices: dict[str, Any] | None = None, **rules: Any) -> None:
    suite = folder / "pair.yaml"
    suite.write_text(yaml.safe_dump(SUITE))
    (folder / "results" / "suites").mkdir(exist_ok=True)
    given = {place: {"value": value, "scores": {"0.001": float(value == 0.001), "0.01": float(value == 0.01)}}
             for place, value in CHOICES.items()}
    (folder / "results" / "suites" / "pair.json").write_text(json.dumps({"choices": {**given, **(choices or {})}}))
    (folder / "boards" / "pair").mkdir(parents=True, exist_ok=True)
    tasks = {f"{task}@1": {"suite": str(suite), "teacher": "toy/teacher"} for task in TASKS}
    content = {"title": "Two toys", "tasks": tasks, **rules}
    (folder / "boards" / "pair" / "board.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def built(folder: Path) -> board.Built:
    return board.build(folder / "boards", "pair", board.read(folder / "results"))


def lines(found: board.Built) -> list[Standing]:
    return [line for line in found.entries if isinstance(line, Standing)]


@pytest.mark.parametrize(("dtype", "ranked"), [("float32", 2), ("bfloat16", 0)])
def test_what_a_suite_says_of_the_computation_decides_which_runs_are_its_own(
        dtype: str, ranked: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITE, "tasks", {task: {"budget": "steps=10", "set": [f"dtype={dtype}"]} for task in TASKS})
    write(folder)
    assert len([line for line in lines(built(folder)) if line.rank is not None]) == ranked


def test_the_mean_over_tasks_of_the_chosen_setting_ranks(folder: Path) -> None:
    found = built(folder)
    good, poor, half = lines(found)
    assert (good.name, good.rank, good.tie) == ("good", 1, "a") and (poor.name, poor.rank, poor.tie) == ("poor", 2, "b")
    assert found.left_out == {"a setting that the grid of suite pair did not choose": 25}
    by_task = [entry.gaps["mean"].estimate.mean for entry in good.by_task.values()]
    assert good.gap is not None and good.gap.mean == pytest.approx(sum(by_task) / 2)
    assert good.gap.interval().low < (0.8 - 0.2) / (0.95 - 0.2) < good.gap.interval().high
    assert good.middle is not None and good.middle.low <= good.middle.mean <= good.middle.high
    assert good.costs["total_flops"] == 4e9 and good.seeds == 5
    assert (half.name, half.rank, half.gap, half.missing) == ("half", None, None, ("play@1",))


def test_too_few_seeds_on_one_task_are_shown_and_not_ranked(folder: Path) -> None:
    write(folder, min_seeds=6)
    assert [line.rank for line in lines(built(folder))] == [None] * 3
    assert lines(built(folder))[0].missing == ("toy@1", "play@1")


def test_tables_are_deterministic_and_say_what_is_missing(folder: Path) -> None:
    found = built(folder)
    assert board.write(found) == ["table.json", "table.csv", "table.md", "table.tex", "pareto.svg"]
    assert board.write(built(folder)) == []
    assert "`half`: play@1" in found.files["table.md"] and "toy@1 (steps=10, suite" in found.files["table.md"]
    content = json.loads(found.files["table.json"])
    assert content["entries"][0]["tasks"]["play@1"]["gap_recovered"]["mean"]["mean"] is not None
    assert found.files["table.csv"].count("\n") == 1 + 3 + 5


def test_a_choice_without_the_scores_that_made_it_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITE["tune"], "joint", ["toy"])  # type: ignore[arg-type]
    write(folder)
    path = folder / "results" / "suites" / "pair.json"
    path.write_text(json.dumps({"choices": {"play/good": json.loads(path.read_text())["choices"]["play/good"]}}))
    with pytest.raises(UserError, match="is not what the grid of suite pair chooses for play/good"):
        built(folder)


@pytest.mark.parametrize(("choices", "says"), [
    ({"toy/good": {"value": 0.01, "scores": {"0.001": 0.9, "0.01": 0.8}}}, "is not what the grid"),
    ({"toy/good": {"value": 0.01, "scores": {"0.001": 0.8, "0.01": 0.8}}}, "is not what the grid"),
    ({"toy/good": {"value": "fast", "scores": {}}}, "does not hold a suite's choices"),
    ({"toy/good": {"value": 0.01, "scores": {"0.01": "high"}}}, "does not hold a suite's choices"),
    ({"toy/good": 7}, "does not hold a suite's choices"),
])
def test_a_choice_that_breaks_the_rule_is_refused(folder: Path, choices: dict[str, Any], says: str) -> None:
    write(folder, choices)
    with pytest.raises(UserError, match=says):
        built(folder)


def test_without_choices_no_run_counts(folder: Path) -> None:
    (folder / "results" / "suites" / "pair.json").unlink()
    found = built(folder)
    assert not found.entries and "No run meets the rules yet" in found.files["table.md"]


def test_a_task_that_the_suite_does_not_run_is_one_sentence(folder: Path) -> None:
    suite = str(folder / "pair.yaml")
    write(folder, tasks={"toy@1": {"suite": suite}, "other@1": {"suite": suite}})
    with pytest.raises(UserError, match="does not run other"):
        built(folder)


def test_wrong_keys_get_the_nearest(folder: Path) -> None:
    write(folder, min_seed=4)
    with pytest.raises(UserError, match="did you mean 'min_seeds'"):
        read_board(folder / "boards" / "pair")


@pytest.mark.parametrize("name", ["tiny-lm", "gym", "cross-domain", "frontier", "board-games"])
def test_a_shipped_board_names_tasks_that_its_suites_run(name: str) -> None:
    rules = read_board(Path(__file__).resolve().parents[2] / "leaderboards" / name)
    assert isinstance(rules, SuiteBoard)
    for task, of_task in rules.tasks.items():
        assert task.partition("@")[0] in read(of_task.suite)[1].tasks
