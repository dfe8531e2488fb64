"""Outer recipes: runs in sequence, each from what an earlier one left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench import outer
from opdbench.cli.main import main
from opdbench.errors import UserError
from opdbench.resolve import Request, resolve
from opdbench.schema.outer import OuterRecipe, names, read
from opdbench.store import RECORD
from opdbench.tasks.reasoning import ReasoningTask

RESULTS = Path(__file__).resolve().parents[2] / "results"
CHEAP = "evaluation.sampled=false, evaluation.examples=4, evaluation.curve_points=0, batch=4, horizon=4"
TINY = f"""
title: Lost and restored
stages:
  skill: {{method: opd, task: text-maze, budget: steps=1, set: [{CHEAP}]}}
  restore: {{method: opd, task: text-maze, budget: steps=1, student: "stage:skill", teacher: "stage:skill",
            set: [{CHEAP}]}}
report:
  - {{label: learnt, stage: skill, phase: after}}
  - {{label: lost, stage: restore, phase: before}}
  - {{label: restored, stage: restore, phase: after}}
"""


@pytest.mark.parametrize("name", names())
def test_a_shipped_recipe_names_runs_that_resolve(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage, with the task's own models where an earlier stage's student is going to be; on few problems."""
    monkeypatch.setattr(ReasoningTask, "sizes", {"train": 20, "validation": 5, "test": 5})
    _, recipe = read(name)
    for stage in recipe.stages.values():
        if stage.teacher is None or not stage.teacher.startswith("nf4:"):
            resolve(Request(stage.method, stage.task, budget=(stage.budget,), settings=tuple(stage.set), student=None
                            if stage.builds_on() else stage.student))


def test_six_recipes_are_shipped() -> None:
    assert names() == ["alternating", "domains", "low-precision", "online", "personalisation", "progressive"]


def test_a_stage_is_the_command_that_a_user_would_type() -> None:
    _, recipe = read("personalisation")
    folders = {"skill": Path("there/skill"), "domain": Path("there/domain")}
    command = outer.job("restore", recipe.stages["restore"], 3, Path("out"), folders).command
    assert " ".join(command) == (
        "run --method opd --task text-maze --seed 3 --budget steps=100 --teacher there/skill/student "
        "--student there/domain/student --set lr=0.003 --set evaluation.sampled=false --set evaluation.examples=120 "
        "--set evaluation.curve_points=0 --results out")


def test_the_best_of_several_stages_is_the_one_that_validation_says_and_the_earlier_of_equals(tmp_path: Path) -> None:
    stage = read("online")[1].stages["student-3"]

    def teacher(*scores: float | None) -> str:
        """Whom the student is told to learn from, when the agents' stages had these scores (none: not validated)."""
        folders = {"student-2": Path("there")}
        for number, score in enumerate(scores):
            folder = folders[f"agent-{number + 1}"] = tmp_path / f"{number}"
            content = json.loads(next(RESULTS.glob(f"cartpole/*/*/{RECORD}")).read_text())
            content["validation"] = [] if score is None else [{"step": 4, "score": 400.0}, {"step": 8, "score": score}]
            folder.mkdir(exist_ok=True)
            (folder / RECORD).write_text(json.dumps(content))
        command = outer.job("student-3", stage, 0, Path("out"), folders).command
        return command[command.index("--teacher") + 1]

    for scores, best in (((10.0, 90.0, 50.0), 1), ((10.0, 50.0, 90.0), 2), ((90.0, 90.0, 50.0), 0)):
        assert teacher(*scores) == str(tmp_path / str(best) / "student")
    assert teacher() == stage.teacher == "best:stage:agent-1,stage:agent-2,stage:agent-3"  # before they were run
    with pytest.raises(UserError, match="agent-2 was not scored on validation"):
        teacher(10.0, None, 50.0)


@pytest.mark.slow
def test_a_recipe_runs_its_stages_and_prints_before_after_and_restored(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    words = ["run", f"recipe:{file}", "--results", str(tmp_path / "results"), "--json"]
    assert main(words) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [line["label"] for line in shown["report"]] == ["learnt", "lost", "restored"]
    assert shown["report"][0]["scores"] == shown["report"][1]["scores"]  # nothing lies between the two
    skill, restore = (json.loads((Path(shown["records"][stage][0]) / "record.json").read_text())
                      for stage in ("skill", "restore"))
    assert restore["recipe"]["student"]["sha256"] == restore["recipe"]["teacher"]["sha256"]
    assert restore["recipe"]["student"]["sha256"] != skill["recipe"]["student"]["sha256"]
    assert main([*words[:-1], "--seed", "0"]) == 0  # finished: shown, and not run again
    assert "restored" in capsys.readouterr().out


def test_a_stage_that_fails_ends_the_recipe_with_its_reason(tmp_path: Path) -> None:
    recipe = OuterRecipe.model_validate({
        "title": "wrong", "stages": {"one": {"method": "gkdd", "task": "text-maze", "budget": "steps=1"}},
        "report": [{"label": "x", "stage": "one", "phase": "after"}]})
    with pytest.raises(UserError, match="stage one did not complete"):
        list(outer.play(recipe, 0, tmp_path, lambda line: None))


@pytest.mark.parametrize("text, wanted", [
    ("title: x\nstages: {a: {method: opd, task: t, budget: steps=1, student: 'stage:b'}}\n"
     "report: [{label: x, stage: a, phase: after}]", "builds on b, which is no earlier stage"),
    ("title: x\nstages: {a: {method: opd, task: t, budget: steps=1}}\nreport: [{label: x, stage: b, phase: after}]",
     "which there is not"),
    ("title: [", "is not YAML"),
    ("title: x\nstages: {}\nreport: []\nmore: 1", "recipe")])
def test_what_a_recipe_cannot_say_is_refused(text: str, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=wanted):
        read(str(tmp_path / "bad.yaml"))


def test_settings_mean_nothing_to_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "recipe:personalisation", "--set", "lr=1"]) != 0
    assert "a recipe says itself what it runs" in capsys.readouterr().err
    assert main(["run", "recipe:personalization"]) != 0
    assert "personalisation" in capsys.readouterr().err
    assert main(["run", "recipe:personalisation", "--dry-run"]) == 0
    assert "stage:skill" in capsys.readouterr().out
