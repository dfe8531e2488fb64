"""What is won, drawn and lost, counted from the records' raw outcomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import win_rates

RESULTS = Path(__file__).resolve().parents[2] / "results"


def test_expert_iteration_loses_no_game_of_its_records(capsys: pytest.CaptureFixture[str]) -> None:
    assert win_rates.main([str(RESULTS)]) == 0
    rows = {cells[1]: cells[2:6] for line in capsys.readouterr().out.splitlines()
            if (cells := [cell.strip() for cell in line.split("|")])[2].isdigit()}
    (own,) = (row for name, row in rows.items() if name.startswith("exit #"))
    assert own[:2] == ["5", "100"] and own[2].startswith("56.0 (") and rows
    wins, draws = own[2:]
    assert float(wins.split()[0]) + float(draws.split()[0]) == 100


def test_a_folder_without_such_records_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert win_rates.main([str(tmp_path)]) == 2
    assert "no completed run of tic-tac-toe" in capsys.readouterr().err
