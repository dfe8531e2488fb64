"""The committed records: whole, made from committed code, and with every score recomputed from the raw outcomes."""

from __future__ import annotations

from pathlib import Path

import pytest

from opdbench.report.runs import read_run
from opdbench.scores import Outcome, scores
from opdbench.store import RECORD, read_outcomes, read_record

RESULTS = Path(__file__).resolve().parents[1] / "results"
RECORDS = sorted(RESULTS.glob(f"*/*/*/{RECORD}"))


def test_there_are_records() -> None:
    assert RECORDS


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: str(path.parent.relative_to(RESULTS)))
def test_a_record_says_what_its_raw_outcomes_say(path: Path) -> None:
    record = read_record(path)
    assert record.status == "completed" and record.provenance["dirty"] is False
    assert read_run(path).problem is None and path.parent.name == f"s{record.recipe.seed}-{record.id}"
    for phase, file in record.outcomes.items():
        outcomes = [Outcome(**outcome) for outcome in read_outcomes(path.parent, file)]
        assert scores(outcomes, record.after["greedy"].metric) == getattr(record, phase)
