"""`opdbench list`: tables for people, JSON for programs, broken plugins with their reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench import hardware, registry
from opdbench.cli.main import main
from tests.test_registry import method_source


def test_tables_hold_everything_that_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    first_words = {line.split()[0] for line in text.splitlines() if line}
    tasks = {description.id for description in registry.descriptions("task")}
    assert {*registry.names("method"), *tasks, *hardware.names()} <= first_words


def test_json_lists_have_one_object_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "methods", "--json"]) == 0
    methods = json.loads(capsys.readouterr().out)
    assert [method["name"] for method in methods] == list(registry.names("method"))
    assert {"summary", "domains", "needs", "paper", "package", "path", "problem", "id"} <= set(methods[0])
    assert main(["list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"methods", "tasks", "profiles"}


def test_a_plugin_file_is_listed_with_where_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "zap.py"
    file.write_text(method_source())
    assert main(["list", "methods", "--plugin", str(file)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("zap "))
    assert row.split()[1:3] == ["rl", "sampled"] and row.endswith(f"A claim about zap [{file}]")


def test_a_broken_registration_is_listed_with_its_reason(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    info = tmp_path / "gone-2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gone\nVersion: 2.0\n")
    (info / "entry_points.txt").write_text("[opdbench.tasks]\nlost = gone_module:Lost\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["list", "tasks"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert any(row.endswith("cannot be used: there is no module 'gone_module' [gone 2.0]") for row in rows)
    assert any(row.startswith("cartpole@1 ") for row in rows)
