"""From runs to entries: which runs the rules admit, ranks, ties, power, failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opdbench.errors import UserError
from opdbench.report.entries import Selection, select
from opdbench.report.runs import read_records
from opdbench.schema.board import Board, read_board
from tests.report.synthetic import TEACHER, write_board, write_run


def selected(results: Path, **rules: Any) -> Selection:
    board = Board(**{"title": "A toy", "task": "toy@1", "budget": {"steps": 10}, **rules})
    return select(board, read_records(results)[0])


def fill(results: Path, seeds: int = 5) -> None:
    for seed in range(seeds):
        for method, after in (("best", 0.9), ("good", 0.62), ("same", 0.6), ("poor", 0.3)):
            write_run(results, method, seed, after=after, examples=200)


def test_ranks_and_ties(tmp_path: Path) -> None:
    fill(tmp_path)
    entries = selected(tmp_path).entries
    assert [entry.method for entry in entries] in (["best", "good", "same", "poor"], ["best", "same", "good", "poor"])
    assert [(entry.rank, entry.tie) for entry in entries] == [(1, "a"), (2, "b"), (2, "b"), (4, "c")]
    gap = entries[0].gaps["mean"].estimate
    assert gap.interval().low < (0.9 - 0.2) / (0.95 - 0.2) < gap.interval().high
    assert not any(entry.underpowered for entry in entries)


def test_a_tie_that_could_not_have_been_resolved_is_underpowered(tmp_path: Path) -> None:
    for seed in range(5):
        for method in ("one", "two"):
            write_run(tmp_path, method, seed, after=0.6, examples=20)
    first, second = selected(tmp_path, smallest_effect=0.02).entries
    assert not first.underpowered and second.underpowered and second.detectable is not None and second.detectable > 0.02
    assert not any(entry.underpowered for entry in selected(tmp_path, smallest_effect=2.0).entries)


def test_too_few_seeds_are_shown_and_not_ranked(tmp_path: Path) -> None:
    fill(tmp_path)
    for seed in range(4):
        write_run(tmp_path, "few", seed, after=0.95, examples=200)
    entries = selected(tmp_path).entries
    assert [entry.rank for entry in entries][-1] is None and entries[-1].method == "few" and entries[-1].seeds == 4
    assert selected(tmp_path, min_seeds=4).entries[0].method == "few"


def test_failed_and_refused_runs_are_shown_with_their_reason(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path, "one", seed)
    write_run(tmp_path, "one", 5, status="diverged", reason="the loss is nan")
    write_run(tmp_path, "lost", 0, status="oom", reason="out of memory")
    (write_run(tmp_path, "one", 6).path / "after.jsonl.gz").write_bytes(b"")
    entries = {entry.method: entry for entry in selected(tmp_path).entries}
    assert entries["one"].seeds == 5 and entries["one"].rank == 1
    assert [(failure.seed, failure.status) for failure in entries["one"].failures] == [(5, "diverged"), (6, "refused")]
    assert entries["lost"].seeds == 0 and entries["lost"].failures[0].reason == "out of memory"


@pytest.mark.parametrize(("rules", "why"), [
    ({"budget": {"steps": 11}}, "another budget"), ({"budget": {"student_tokens": 10}}, "another budget"),
    ({"teacher": "other"}, "another teacher"), ({"teacher": "a" * 8}, "another teacher"),
    ({"student": "other"}, "another student"), ({"examples": 10}, "another number of test examples"),
    ({"task_params": {"level": 2}}, "another value of the task's level"),
    ({"settings": {"one": {"lr": 0.5}}}, "another setting of one"),
])
def test_runs_that_break_a_rule_are_left_out_and_counted(tmp_path: Path, rules: dict[str, Any], why: str) -> None:
    write_run(tmp_path, "one", 0)
    found = selected(tmp_path, **rules)
    assert not found.entries and found.left_out == {why: 1}


@pytest.mark.parametrize("rules", [
    {"teacher": TEACHER[:12]}, {"teacher": "toy/teacher", "student": "toy/student"},
    {"budget": [{"teacher_tokens": 5}, {"steps": 10}]}, {"settings": {"one": {"lr": 0.001}}},
])
def test_runs_that_keep_the_rules_are_in(tmp_path: Path, rules: dict[str, Any]) -> None:
    write_run(tmp_path, "one", 0)
    assert len(selected(tmp_path, **rules).entries) == 1
    assert not selected(tmp_path, task="toy@2", **rules).entries


def test_a_closed_board_takes_one_setting_and_an_open_one_all(tmp_path: Path) -> None:
    for lr in (0.001, 0.01):
        write_run(tmp_path, "one", 0, lr=lr)
    with pytest.raises(UserError, match="2 settings of one"):
        selected(tmp_path)
    assert len(selected(tmp_path, settings={"one": {"lr": 0.01}}).entries) == 1
    assert [dict(entry.changed) for entry in selected(tmp_path, division="open").entries].count({"lr": 0.01}) == 1


def test_without_a_gap_there_is_no_rank(tmp_path: Path) -> None:
    write_run(tmp_path, "one", 0)
    (entry,) = selected(tmp_path, min_seeds=2).entries
    assert entry.rank is None and not entry.gaps and entry.scores["after", "greedy"].high == 1


@pytest.mark.parametrize(("rules", "says"), [
    ({"budjet": {"steps": 1}}, "did you mean 'budget'"), ({"task": "toy"}, "task"), ({"budget": {}}, "budget"),
    ({"division": "half"}, "division"), ({"alpha": 2}, "alpha"), ({"min_seeds": 1}, "min_seeds"),
    ({"budget": {"steps": float("inf")}}, "budget"),
])
def test_wrong_rules_are_one_sentence(tmp_path: Path, rules: dict[str, Any], says: str) -> None:
    folder = write_board(tmp_path, **rules)
    with pytest.raises(UserError) as error:
        read_board(folder)
    assert says in str(error.value) and str(folder) in error.value.problem


@pytest.mark.parametrize("content", [b"", b"- 1", b"a: [", b"\xff\xfe\x00", b"!!python/object/apply:os.system [id]"])
def test_rules_that_are_no_mapping_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    folder = write_board(tmp_path)
    (folder / "board.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"board\.yaml"):
        read_board(folder)
