"""`opdbench check`: exit code 0 when every check passes, 3 when one fails, for installed names and for files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench import registry
from opdbench.cli.main import main
from tests.test_registry import method_source

LAZY = '''
from opdbench.baselines.kd import KD
from opdbench.distiller import Loss

class Lazy(KD):
    """It learns nothing."""
    name = "lazy"

    def loss(self, rows, ctx):
        return Loss(super().loss(rows, ctx).value_n * 0)
'''


def test_a_method_of_ours_passes_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "sft", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["passed"] and len(shown["checks"]) >= 5
    assert {(check["kind"], check["name"]) for check in shown["checks"]} == {("method", "sft")}


def test_a_task_of_ours_passes_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "cartpole"]) == 0
    assert "checks passed" in capsys.readouterr().out


def test_a_method_that_learns_nothing_fails_with_code_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lazy.py"
    file.write_text(LAZY)
    assert main(["check", str(file)]) == 3
    text = capsys.readouterr().out
    assert any("FAIL" in line and line.startswith("lazy ") for line in text.splitlines())
    assert "checks failed" in text


def test_what_cannot_be_checked_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "gdk"]) == 2
    assert "unknown method or task 'gdk'" in capsys.readouterr().err
    file = tmp_path / "empty.py"
    file.write_text("x = 1\n")
    assert main(["check", str(file)]) == 1
    assert "defines no method and no task" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "absent.py")]) == 1
    assert "not a Python file that exists" in capsys.readouterr().err


def test_a_file_that_takes_an_installed_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "copy.py"
    file.write_text(method_source("gkd", "Copy"))
    assert "gkd" in registry.names("method")
    assert main(["check", str(file)]) == 1
    assert "registered 2 times" in capsys.readouterr().err
