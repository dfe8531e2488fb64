"""What is not public cannot be run, and what is ours never meets the published ones on a closed board."""

from __future__ import annotations

from pathlib import Path

import pytest

from opdbench import registry, unspecified
from opdbench.cli.main import main
from opdbench.errors import UserError
from opdbench.report.entries import broken_rule
from opdbench.report.runs import read_records
from opdbench.resolve import Request, resolve
from opdbench.schema.board import read_board
from tests.report.synthetic import write_board, write_run

UNKNOWN = ["sg-opd", "near-future", "omni-opd", "cgtr", "ovd", "pu-rl"]


def test_the_list_says_of_each_what_is_known_and_what_is_missing() -> None:
    assert list(unspecified.read()) == UNKNOWN and not set(UNKNOWN) & set(registry.names("method"))
    for known in unspecified.read().values():
        assert all(len(text) > 10 for text in known) and "arXiv" in known.paper


@pytest.mark.parametrize("name", UNKNOWN)
def test_they_are_shown_and_listed_and_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", name]) == 0
    shown = capsys.readouterr().out
    assert "missing" in shown and "cannot be run" in shown
    assert main(["list", "methods"]) == 0 and name in capsys.readouterr().out
    assert main(["run", "--method", name, "--task", "chain-sum"]) != 0
    assert "too little of it is public" in capsys.readouterr().err


def test_constants_of_ours_are_refused_until_they_are_accepted() -> None:
    with pytest.raises(UserError, match="not public") as error:
        resolve(Request("aopd", "chain-sum"))
    assert "approximate=true" in str(error.value.fix)
    plan = resolve(Request("aopd", "chain-sum", settings=("approximate=true",)))
    assert plan.spec.recipe.params["approximate"] is True


@pytest.mark.parametrize("name, wanted", [("opsd", "solution"), ("ptd-po", "hint")])
def test_a_task_that_cannot_tell_what_a_method_tells_is_refused(
        name: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry.load("task", "chain-sum"), "notes", lambda self, example: {})
    with pytest.raises(UserError, match=f"tells its teacher the {wanted}"):
        resolve(Request(name, "chain-sum"))


def test_they_never_enter_a_closed_board(tmp_path: Path) -> None:
    write_run(tmp_path / "results", "aopd", 0, params={"approximate": True})
    write_run(tmp_path / "results", "gkd", 0)
    runs, _ = read_records(tmp_path / "results")
    for division, wanted in (("closed", {"aopd": "a method whose constants are not public", "gkd": None}),
                             ("open", {"aopd": None, "gkd": None})):
        board = read_board(write_board(tmp_path / "boards", division, division=division))
        assert {run.record.recipe.method: broken_rule(board, run) for run in runs} == wanted
