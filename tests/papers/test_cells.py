"""Cells: what is reproduced at either scale, and what is not run and why."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from opdbench.report.paper_tables import as_json, render
from opdbench.report.papers import Cell, Reproduction, reproduce
from tests.papers.conftest import Toys
from tests.papers.synthetic import paper


def found(toys: Toys, **changes: Any) -> Reproduction:
    return reproduce(paper(toys.suite, **changes), toys.evidence)


def cell(reproduction: Reproduction, row: str, column: str = "x") -> Cell:
    return reproduction.cells["one"][row, column]


def test_at_tiny_scale_the_sign_against_the_reference_counts(toys: Toys) -> None:
    cells = found(toys)
    assert cell(cells, "base").verdict == "reference"
    assert cell(cells, "up").verdict == "reproduced" and cell(cells, "up").seeds == 5
    assert cell(cells, "down").verdict == "not reproduced"
    assert cell(cells, "equal").verdict == "within noise"
    ours = cell(cells, "up").ours
    assert ours is not None and ours.low < 100 * (0.9 - 0.2) / (0.95 - 0.2) < ours.high
    assert [cells.count(verdict) for verdict in ("reproduced", "not run")] == [1, 2]


def test_cells_without_runs_say_why(toys: Toys) -> None:
    cells = found(toys)
    assert cell(cells, "base", "y").why == "it is a toy"
    assert "no records of absent on toy@1" in cell(cells, "down", "y").why


@pytest.mark.parametrize(("reported", "tolerance", "verdict"), [
    (90, 20, "reproduced"), (90, 0.001, "within noise"), (50, 20, "not reproduced"), (50, 0.001, "not reproduced")])
def test_at_the_papers_scale_the_value_counts(toys: Toys, reported: float, tolerance: float, verdict: str) -> None:
    table = paper(toys.suite).tables[0].model_dump(mode="json")
    table["rows"] = [{"method": "up", "values": {"x": reported}}]
    ours = [{"table": "one", "scale": "paper", "suite": toys.suite, "task": "toy@1", "arms": {"up": {"x": "high"}},
             "factor": 100, "tolerance": tolerance}]
    cells = found(toys, tables=[table], ours=ours)
    assert cell(cells, "up").verdict == verdict and cell(cells, "up").scale == "paper"


def test_every_form_shows_marks_and_verdicts_and_is_safe(toys: Toys) -> None:
    reproduction = found(toys)
    files = render(reproduction, "opdbench paper build toy")
    assert render(reproduction, "opdbench paper build toy") == files
    assert "~60.5 ± 1\\*; ours 9" in files["table.md"] and "tiny: reproduced" in files["table.md"]
    assert "~40 (30 to 45);" in files["table.md"]  # verified, so without a star
    assert "Not run: 2 of 6 cells" in files["table.md"] and "A toy &lt;paper&gt;" in files["table.md"]
    assert "<paper>" not in files["table.html"] and files["table.html"].count("<tr>") == 1 + 4
    assert files["table.tex"].count(r"\begin{tabular}") == 1 and "~" not in files["table.tex"].partition(r"\midrule")[2]
    lines = list(csv.DictReader(io.StringIO(files["table.csv"])))
    assert [line["verdict"] for line in lines].count("not run") == 2 and len(lines) == 6
    assert as_json(reproduction)["tables"][0]["cells"][0]["reported"] == 50
