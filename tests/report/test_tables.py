"""The rendered tables: deterministic, honest about what is missing, and safe to open whatever a record says."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from opdbench.report import board
from tests.report.synthetic import write_board, write_run

NASTY = "<script>x</script> | `a` \x1b[31m \u202e =1+1 \n# head"


def built(folder: Path, **rules: Any) -> board.Built:
    write_board(folder / "boards", **rules)
    return board.build(folder / "boards", "toy", board.read(folder / "results"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed in range(5):
        write_run(tmp_path / "results", "one", seed, after=0.9)
        write_run(tmp_path / "results", "two", seed, after=0.4, lr=0.01)
    return tmp_path


def test_equal_records_give_equal_bytes_wherever_they_lie(folder: Path) -> None:
    first = built(folder)
    assert board.write(first) == ["table.json", "table.csv", "table.md", "table.tex", "pareto.svg"]
    assert board.write(built(folder)) == [] and board.differing(built(folder)) == []
    (folder / "results").rename(folder / "moved")
    (folder / "moved" / "toy").rename(folder / "moved" / "elsewhere")
    assert board.build(folder / "boards", "toy", board.read(folder / "moved")).files == first.files


def test_numbers_come_from_the_raw_outcomes(folder: Path) -> None:
    entry = json.loads(built(folder).files["table.json"])["entries"][0]
    runs = [run for run in board.read(folder / "results").runs if run.record.recipe.method == "one"]
    assert entry["method"] == "one" and entry["seeds"] == [0, 1, 2, 3, 4]
    assert entry["scores"]["after"]["greedy"]["mean"] == pytest.approx(
        sum(run.record.after["greedy"].mean for run in runs) / 5)
    assert entry["costs"]["student_tokens"] == 102 and entry["commit"] == ["eeeeeeeee"]


def test_every_form_shows_every_entry(folder: Path) -> None:
    files = built(folder).files
    lines = list(csv.DictReader(io.StringIO(files["table.csv"])))
    assert [(line["rank"], line["method"], line["setting"]) for line in lines] == [
        ("1", "one", ""), ("2", "two", "lr=0.01")]
    assert "| 1 | a | one |" in files["table.md"] and "| 2 | b | two | lr=0.01 |" in files["table.md"]
    assert files["table.tex"].count(r"\\") == 3 and r"\%" in files["table.tex"]


def test_a_strangers_words_stay_words(folder: Path) -> None:
    write_run(folder / "results", "one", 5, status="error", reason=NASTY + "x" * 10_000)
    files = built(folder).files
    for content in files.values():
        assert not set(content) & {"\x1b", "\u202e"} and "x" * 1000 not in content
    assert "<script>" not in files["table.md"] and "&lt;script&gt;" in files["table.md"]
    assert "\n# head" not in files["table.md"] and r"\`a\`" in files["table.md"] and r"\|" in files["table.md"]


def test_a_spreadsheet_finds_no_formula(folder: Path) -> None:
    (folder / "results" / "toy" / "two").rename(folder / "aside")
    record = write_run(folder / "results", "one", 0).path / "record.json"
    record.write_text(record.read_text().replace("a CPU", "=HYPERLINK(1)"))
    assert ",\"'=HYPERLINK(1), 2 cores" in built(folder).files["table.csv"]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path / "results", "one", 0)
    entry = json.loads(built(tmp_path).files["table.json"])["entries"][0]
    assert entry["rank"] is None and entry["gap_recovered"] == {}


def test_a_board_without_runs_says_so(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    assert "No run meets the rules yet" in built(tmp_path).files["table.md"]
