"""`opdbench teacher train`: makes a model that `opdbench run` can use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench.cli.main import main


def test_a_teacher_is_trained_and_taken_by_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "teacher"
    assert main(["teacher", "train", "cartpole", "--steps", "512", "--seed", "3", "--out", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["folder"] == str(out) and json.loads((out / "manifest.json").read_text()) == made["manifest"]
    assert made["manifest"]["seed"] == 3 and made["manifest"]["environment_steps"] >= 512
    assert main(["run", "--method", "gkd", "--task", "cartpole", "--teacher", str(out), "--budget", "steps=1",
                 "--set", "batch=2", "--set", "horizon=4", "--set", "evaluation.examples=2",
                 "--results", str(tmp_path / "results"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "completed"


def test_a_language_student_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "student"
    assert main(["teacher", "train", "chain-sum", "--role", "student", "--steps", "1", "--out", str(out)]) == 0
    assert "measured: greedy " in capsys.readouterr().out
    assert (out / "model.safetensors").is_file() and (out / "manifest.json").is_file()


@pytest.mark.parametrize(("words", "code", "problem"), [
    (["trian", "cartpole"], 2, "unknown action 'trian'"),
    (["train", "cartpol"], 2, "unknown task 'cartpol'"),
    (["train", "cartpole", "--role", "techer"], 2, "unknown role 'techer'"),
    (["train", "cartpole", "--role", "student"], 1, "fresh network"),
    (["train", "gsm8k"], 1, "has no recipe"),
    (["train", "cartpole", "--steps", "0"], 2, "--steps 1 or more"),
])
def test_what_cannot_be_trained_is_a_sentence(
        tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int, problem: str) -> None:
    assert main(["teacher", *words, "--out", str(tmp_path / "out")]) == code
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["teacher", "train", "cartpole", "--steps", "1", "--out", str(tmp_path / "file" / "out")]) == 1
    assert "cannot write" in capsys.readouterr().err
