"""Suites: what is run, how a setting is chosen, and that a second start runs nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from shutil import rmtree

import pytest
from pydantic import ValidationError

from opdbench import registry
from opdbench.cli.main import main
from opdbench.errors import UserError
from opdbench.report.timing import together
from opdbench.resolve import Request, resolve
from opdbench.rl.conv_policy import ConvPolicy
from opdbench.rl.simulators import make_simulators
from opdbench.schema.board import Board, read_board
from opdbench.schema.record import Record
from opdbench.schema.suite import Suite, names, read
from opdbench.store import read_record
from opdbench.suite import Choice, choices_as_json, job, tune

SMALL = """
title: Two arms in the smallest world
seeds: "0:2"
tune: {key: lr, values: [0.0001, 0.003], seed: 50, examples: 20}
tasks:
  text-maze: {budget: tokens=300, set: [evaluation.examples=4]}
arms:
  sft: {method: sft}
  gkd-hot: {method: gkd, set: [loss_temperature=2.0]}
"""


@pytest.fixture
def suite_file(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


@pytest.mark.parametrize("name", names())
def test_every_run_of_a_shipped_suite_resolves(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a suite's teachers are to be trained first, which its file says, ones that know nothing stand in."""
    monkeypatch.chdir(tmp_path)
    _, suite = read(name)
    assert suite.tune is None or str(suite.tune.seed) not in suite.seeds.split(":")
    for task, arm in suite.places():
        words = list(job(suite, task, arm, 0, None, Path("results")).command)
        values = dict(zip(words[1::2], words[2::2], strict=True))
        settings = tuple(words[place + 1] for place, word in enumerate(words) if word == "--set")
        if (teacher := Path(values.get("--teacher", ""))).parts[:1] == ("models",) and not teacher.exists():
            ConvPolicy.named("net1", make_simulators(registry.load("task", task)()).n_actions).save(teacher)
        plan = resolve(Request(method=values["--method"], task=task, budget=(values["--budget"],), settings=settings,
                               preset=values.get("--preset"), teacher=values.get("--teacher"),
                               student=values.get("--student")))
        assert plan.spec.recipe.method == suite.arms[arm].method


TIMED = SMALL.replace('tune: {key: lr, values: [0.0001, 0.003], seed: 50, examples: 20}', "timed: true").replace(
    '"0:2"', '"1:2"')


@pytest.mark.slow
def test_a_timed_suite_makes_the_runs_of_a_seed_in_one_sitting_or_again(tmp_path: Path) -> None:
    file, results = tmp_path / "timed.yaml", tmp_path / "results"
    file.write_text(TIMED)

    def typed(*more: str) -> dict[str, Record]:
        """In a process of its own, as commands are."""
        subprocess.run([sys.executable, "-m", "opdbench", "run", f"suite:{file}", "--results", str(results), *more],
                       check=True, capture_output=True)
        return {path.parts[-3]: read_record(path) for path in results.rglob("record.json")}

    first = typed()
    assert set(first) == {"sft", "gkd"} and together(list(first.values()))
    assert {record.execution.threads for record in first.values()} == {1}
    # The order turns: at seed 1 the second arm is the first.
    assert first["gkd"].times.finished <= first["sft"].times.started  # type: ignore[operator]
    assert typed() == first  # nothing is missing, so nothing is run
    rmtree(next(results.rglob("sft")))
    again = typed()
    assert together(list(again.values()))
    assert not {record.times.sitting for record in first.values()} & {record.times.sitting for record in again.values()}


@pytest.mark.parametrize("words", [["--jobs", "2"], ["--jobs", "2", "--dry-run"]])
def test_a_timed_suite_runs_nothing_beside_anything(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "suite:timed", *words]) == 2
    assert "suite timed is timed" in capsys.readouterr().err


def test_the_timed_suite_runs_the_reference_of_the_timed_board() -> None:
    _, suite = read("timed")
    rules = read_board(Path(__file__).parents[1] / "leaderboards" / "timed")
    assert isinstance(rules, Board) and rules.timed is not None and suite.timed
    assert rules.timed.reference in {arm.method for arm in suite.arms.values()} and 8 <= len(suite.arms) <= 10
    assert [f"tokens={limits['tokens']:g}" for limits in rules.budgets] == [
        where.budget for where in suite.tasks.values()]


def test_the_classical_suite_holds_every_classical_method() -> None:
    _, suite = read("classical")
    assert {arm.method for arm in suite.arms.values()} <= set(registry.names("method"))


def test_a_suite_is_tuned_run_and_not_run_twice(suite_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
                                                ) -> None:
    words = ["run", f"suite:{suite_file}", "--results", str(tmp_path / "results"), "--jobs", "2", "--json"]
    assert main(words) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["runs"] == 4 and not first["failed"]
    chosen = json.loads((tmp_path / "results/suites/small.json").read_text())
    for place in ("text-maze/sft", "text-maze/gkd-hot"):
        entry = chosen["choices"][place]
        best = max(entry["scores"].values())
        assert entry["scores"][f"{entry['value']:g}"] == best
    records = sorted((tmp_path / "results/text-maze").glob("*/*/record.json"))
    tuning = sorted((tmp_path / "results-tuning/text-maze").glob("*/*/record.json"))
    assert len(records) == len(tuning) == 4
    for path in records:
        recipe = json.loads(path.read_text())["recipe"]
        arm = "sft" if recipe["method"] == "sft" else "gkd-hot"
        assert recipe["training"]["lr"] == chosen["choices"][f"text-maze/{arm}"]["value"]
        assert recipe["training"]["loss_temperature"] == (1.0 if arm == "sft" else 2.0)
    before = {path: path.read_bytes() for path in records + tuning}
    assert main(words) == 0
    assert {path: path.read_bytes() for path in records + tuning} == before


def test_the_smaller_value_wins_a_tie_and_an_earlier_choice_is_kept(tmp_path: Path) -> None:
    suite = Suite.model_validate({
        "title": "t", "tasks": {"text-maze": {"budget": "steps=1"}}, "arms": {"sft": {"method": "sft"}},
        "tune": {"values": [0.001, 0.01], "seed": 9}})
    place = ("text-maze", "sft")
    known = choices_as_json(suite, {place: Choice(0.01, {"0.001": 0.5, "0.01": 0.7})})
    assert tune(suite, tmp_path, [place], jobs=1, known=known, say=print)[place].value == 0.01
    assert not any(tmp_path.iterdir())  # nothing was run


def test_a_joint_choice_is_the_best_over_all_tasks_of_an_arm(tmp_path: Path) -> None:
    suite = Suite.model_validate({
        "title": "t", "tasks": {"text-maze": {"budget": "steps=1"}, "chain-sum": {"budget": "steps=1"}},
        "arms": {"sft": {"method": "sft"}, "gkd": {"method": "gkd", "tasks": ["chain-sum"]}},
        "tune": {"values": [0.001, 0.01, 0.1], "seed": 9, "joint": True}})
    scores: dict[tuple[str, str], dict[str, float | None]] = {
        ("text-maze", "sft"): {"0.001": 0.5, "0.01": 0.9, "0.1": None}, ("chain-sum", "sft"): {
            "0.001": 0.8, "0.01": 0.3, "0.1": 1.0}, ("chain-sum", "gkd"): {"0.001": 0.1, "0.01": 0.3, "0.1": 0.2}}
    known = choices_as_json(suite, {place: Choice(0.0, of) for place, of in scores.items()})
    found = tune(suite, tmp_path, suite.places(), jobs=1, known=known, say=print)
    # 0.65 against 0.6; 0.1 failed on one of the two tasks.
    assert {place: choice.value for place, choice in found.items()} == {
        ("text-maze", "sft"): 0.001, ("chain-sum", "sft"): 0.001, ("chain-sum", "gkd"): 0.01}
    assert found["chain-sum", "sft"].scores == scores["chain-sum", "sft"]


def test_one_task_may_choose_for_all(tmp_path: Path) -> None:
    told = {"title": "t", "tasks": {"text-maze": {"budget": "steps=1"}, "chain-sum": {"budget": "steps=1"}},
            "arms": {"sft": {"method": "sft"}}, "tune": {"values": [0.001, 0.01], "seed": 9, "joint": ["text-maze"]}}
    suite = Suite.model_validate(told)
    known = choices_as_json(suite, {("text-maze", "sft"): Choice(0.0, {"0.001": 0.5, "0.01": 0.9})})
    found = tune(suite, tmp_path, [("chain-sum", "sft")], jobs=1, known=known, say=print)
    assert found == {("chain-sum", "sft"): Choice(0.01, {}), ("text-maze", "sft"): Choice(0.01, {
        "0.001": 0.5, "0.01": 0.9})}
    told["arms"] = {"sft": {"method": "sft", "tasks": ["chain-sum"]}}
    with pytest.raises(ValidationError, match="sft runs on none of the tasks that choose its lr"):
        Suite.model_validate(told)
    with pytest.raises(ValidationError, match="the task text-mazes is to choose lr"):  # beside one that there is
        Suite.model_validate({**told, "tune": {**told["tune"], "joint": ["chain-sum", "text-mazes"]}})  # type: ignore[dict-item]


@pytest.mark.parametrize(("words", "word"), [
    (["suite:classicl"], "classical"), (["suite:nowhere.yaml"], "no suite file"), (["gkd"], "no suite"),
    (["suite:classical", "--set", "lr=1"], "--set"), (["suite:classical", "--only", "chain-sun"], "chain-sum"),
    (["suite:classical", "--jobs", "0"], "--jobs")])
def test_what_a_suite_cannot_do_is_said(words: list[str], word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words]) != 0
    assert word in capsys.readouterr().err


def test_a_bad_suite_file_is_named_by_place(tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(SMALL.replace("method: sft", "methd: sft"))
    with pytest.raises(UserError, match=r"arms.sft"):
        read(str(file))
