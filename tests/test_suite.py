"""Suites: what is run, how a setting is chosen, and that a second start runs nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench import registry
from opdbench.cli.main import main
from opdbench.errors import UserError
from opdbench.resolve import Request, resolve
from opdbench.schema.suite import Suite, names, read
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
def test_every_run_of_a_shipped_suite_resolves(name: str) -> None:
    _, suite = read(name)
    assert suite.tune is None or str(suite.tune.seed) not in suite.seeds.split(":")
    for task, arm in suite.places():
        words = list(job(suite, task, arm, 0, None, Path("results")).command)
        values = dict(zip(words[1::2], words[2::2], strict=True))
        settings = tuple(words[place + 1] for place, word in enumerate(words) if word == "--set")
        plan = resolve(Request(method=values["--method"], task=task, budget=(values["--budget"],), settings=settings,
                               preset=values.get("--preset"), teacher=values.get("--teacher"),
                               student=values.get("--student")))
        assert plan.spec.recipe.method == suite.arms[arm].method


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
