"""`opdbench new method`: a file that works as it is, with a test that runs the conformance suite on it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from opdbench import registry
from opdbench.cli.main import main


def test_the_skeleton_is_a_method_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "method", "my-method", "--out", str(tmp_path / "new")]) == 0
    file = tmp_path / "new" / "my_method.py"
    assert f"opdbench check {file}" in capsys.readouterr().out
    method = registry.load("method", "my-method", [file])
    assert method.__name__ == "MyMethod" and method.Params().forward_weight == 0.5
    assert main(["show", "my-method", "--plugin", str(file), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["claim"] and shown["equation"] and shown["deviations"]
    assert main(["run", "--plugin", str(file), "--method", "my-method", "--task", "cartpole", "--budget", "steps=2",
                 "--set", "batch=2", "--set", "horizon=4", "--set", "evaluation.examples=2",
                 "--results", str(tmp_path / "results"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "completed"


LOSS = "weight * forward_n + (1 - weight) * reverse_n"


@pytest.mark.parametrize(("loss", "code"), [(LOSS, 0), pytest.param(f"-({LOSS})", 1, marks=pytest.mark.slow)])
def test_the_skeletons_own_test_passes_and_fails_when_the_method_is_broken(
        tmp_path: Path, loss: str, code: int) -> None:
    assert main(["new", "method", "my-method", "--out", str(tmp_path)]) == 0
    file = tmp_path / "my_method.py"
    assert LOSS in file.read_text()
    file.write_text(file.read_text().replace(LOSS, loss))
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_my_method.py"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code, done.stdout


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test_mine.py").write_text("precious")
    assert main(["new", "method", "mine", "--out", str(tmp_path)]) == 1
    assert "test_mine.py exists, and is left as it is" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["test_mine.py"]
    assert (tmp_path / "test_mine.py").read_text() == "precious"


@pytest.mark.parametrize(("name", "code"), [("My-Method", 2), ("../up", 2), ("a_b", 2), ("class", 2), ("1st", 2),
                                            ("", 2), ("gkd", 1)])
def test_names_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int) -> None:
    assert main(["new", "method", name, "--out", str(tmp_path)]) == code
    assert list(tmp_path.iterdir()) == [] and "fix:" in capsys.readouterr().err


def test_an_unwritable_folder_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["new", "method", "mine", "--out", str(tmp_path / "file")]) == 1
    assert "cannot write" in capsys.readouterr().err
