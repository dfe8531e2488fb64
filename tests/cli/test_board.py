"""`opdbench board`: build writes, check exits 3 on any difference, wrong names get the nearest right one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench.cli.main import main
from tests.report.synthetic import write_board, write_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    for seed in range(5):
        write_run(tmp_path / "results", "one", seed, after=0.9)
        write_run(tmp_path / "results", "two", seed, after=0.4)
    write_board(tmp_path / "boards")
    return ["--results", str(tmp_path / "results"), "--leaderboards", str(tmp_path / "boards")]


def test_build_then_check(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["board", "check", *places]) == 3
    assert "table.md is missing" in capsys.readouterr().out
    assert main(["board", "build", "toy", *places]) == 0
    assert "2 entries; changed table.json" in capsys.readouterr().out
    assert main(["board", "build", *places]) == 0
    assert "changed nothing" in capsys.readouterr().out
    assert main(["board", "check", "toy", *places]) == 0


@pytest.mark.parametrize("file", ["table.json", "table.csv", "table.md", "table.tex"])
def test_a_changed_digit_is_found(file: str, places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["board", "build", *places])
    path = Path(places[3]) / "toy" / file
    content = path.read_text()
    path.write_text(content.replace("102", "103", 1))
    capsys.readouterr()
    assert content != path.read_text() and main(["board", "check", *places]) == 3
    assert f"{path}, line " in capsys.readouterr().out


def test_a_new_record_makes_the_committed_table_old(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main(["board", "build", *places])
    write_run(Path(places[1]), "two", 5, status="diverged", reason="the loss is nan")
    capsys.readouterr()
    assert main(["board", "check", "--json", *places]) == 3
    shown = json.loads(capsys.readouterr().out)
    assert not shown["passed"] and len(shown["boards"][0]["differences"]) == 3  # the table of the paper has no failures


def test_what_the_rules_leave_out_and_what_cannot_be_read_is_said(
        places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_board(Path(places[3]), budget={"steps": 99})
    (Path(places[1]) / "broken").mkdir()
    (Path(places[1]) / "broken" / "record.json").write_text("{")
    assert main(["board", "build", *places]) == 0
    text = capsys.readouterr().out
    assert "left out: 10 with another budget" in text and "not read: " in text


def test_list(places: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["board", "list", "--json", *places]) == 0
    assert [board["name"] for board in json.loads(capsys.readouterr().out)] == ["toy"]
    assert main(["board", "list", *places]) == 0 and "toy@1" in capsys.readouterr().out


def test_wrong_words(places: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["board", "build", "tyo", *places]) == 2 and "did you mean 'toy'" in capsys.readouterr().err
    assert main(["board", "biuld", *places]) == 2 and "did you mean 'build'" in capsys.readouterr().err
    assert main(["board", "check", "--leaderboards", str(tmp_path / "none")]) == 2
    assert "there are no boards" in capsys.readouterr().err
    assert main(["board", "check", "--results", str(tmp_path / "none"), *places[2:]]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_the_committed_boards_are_what_the_committed_records_give(capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--results", str(ROOT / "results"), "--leaderboards", str(ROOT / "leaderboards")]
    assert main(["board", "check", *places]) == 0, capsys.readouterr().out
