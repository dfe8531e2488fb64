"""A record as text."""

from pathlib import Path

from opdbench.report.summary import summary
from opdbench.schema.record import Record

RECORD = next(iter(sorted((Path(__file__).parents[2] / "results" / "chain-sum" / "gkd").glob("*/record.json"))))


def test_further_scores_stand_below_the_first_with_their_phases_and_modes() -> None:
    record = Record.model_validate_json(RECORD.read_text())
    worked = {phase: getattr(record, phase)["greedy"].extra["worked"] for phase in ("before", "after", "teacher")}
    row = next(line for line in summary(record, "here").splitlines() if line.startswith("worked, greedy"))
    assert row.split()[2:] == [f"{mean:.4g}" for mean in worked.values()]


def test_a_record_without_further_scores_has_no_such_table() -> None:
    record = Record.model_validate_json(RECORD.read_text())
    for phase in (record.before, record.after, record.teacher):
        for score in phase.values():
            score.extra = {}
    assert "ALSO" not in summary(record, "here")


def test_returns_that_happen_to_be_0_and_1_are_no_shares() -> None:
    record = Record.model_validate_json(RECORD.read_text())
    assert "%  (" in summary(record, "here")
    record.teacher["greedy"].interval, record.teacher["greedy"].mean = "t", 6.9
    shown = summary(record, "here")
    assert "%  (" not in shown and "    6.9  (" in shown
