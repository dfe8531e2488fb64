"""Timed boards: ratios of pairs of one seed, machine and sitting; whatever has no partner says why."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opdbench.errors import UserError
from opdbench.report import board
from opdbench.report.timing import together
from opdbench.schema.board import read_board
from opdbench.schema.record import Record
from opdbench.store import read_record
from tests.report.synthetic import write_board, write_run

ONE, TWO = "1" * 12, "2" * 12
RULE = {"reference": "ref", "measure": "cpu_seconds"}
T_2 = 4.302652729911275  # 97.5% point of Student's t with 2 degrees of freedom
NASTY = "<script>x</script> | `a` & _b"


class Folder:
    """Records with times, and the board that they make."""

    def __init__(self, top: Path) -> None:
        self.results, self.boards = top / "results", top / "boards"

    def run(self, method: str, seed: int, cpu: float, *, sitting: str | None = ONE, **changes: Any) -> Path:
        """A run that took `cpu` CPU seconds, and four times as long by the clock; `changes` are a record's fields."""
        status = changes.pop("status", "completed")
        folder = write_run(self.results, method, seed, status=status, lr=changes.pop("lr", 0.001))
        record = folder.read_record()
        assert record is not None
        record.times = record.times.model_copy(update={"sitting": sitting, **changes.pop("times", {})})
        record.ledger |= {"cpu_seconds": cpu, "seconds": 4 * cpu} if status == "completed" else {}
        folder.write_record(record.model_copy(update=changes))
        return folder.path / "record.json"

    def build(self, **rules: Any) -> board.Built:
        write_board(self.boards, **{"timed": RULE, "min_seeds": 2, **rules})
        return board.build(self.boards, "toy", board.read(self.results))

    def time(self, method: str, **rules: Any) -> dict[str, Any]:
        entries = json.loads(self.build(**rules).files["table.json"])["entries"]
        time: dict[str, Any] = next(entry["time"] for entry in entries if entry["method"] == method)
        return time


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """The reference takes 1, 2 and 5 s; the other method 2, 4 and 8 times as long."""
    found = Folder(tmp_path)
    for seed, (cpu, factor) in enumerate([(1.0, 2), (2.0, 4), (5.0, 8)]):
        found.run("ref", seed, cpu)
        found.run("slow", seed, factor * cpu)
    return found


def reasons(time: dict[str, Any]) -> dict[int, str]:
    return {each["seed"]: each["reason"] for each in time["unpaired"]}


# ---------------------------------------------------------------------------------------------------------- the numbers


def test_the_ratio_is_the_geometric_mean_with_students_interval_of_the_logarithms(folder: Folder) -> None:
    """Logarithms ln 2 times 1, 2, 3: mean 2 ln 2, standard deviation ln 2, standard error ln 2 / sqrt 3."""
    time = folder.time("slow")
    assert time["ratio"] == pytest.approx({"mean": 4.0, "low": 4 * 2 ** (-T_2 / math.sqrt(3)),
                                           "high": 4 * 2 ** (T_2 / math.sqrt(3))}, rel=1e-7)
    assert time["seeds"] == [0, 1, 2] and time["unpaired"] == []
    assert time["seconds"] == pytest.approx((2 + 8 + 40) / 3)


def test_the_reference_is_one_exactly(folder: Folder) -> None:
    assert folder.time("ref")["ratio"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert folder.time("ref")["seconds"] == pytest.approx(8 / 3)


def test_the_measure_is_what_the_rule_says(folder: Folder) -> None:
    folder.run("wait", 0, 3.0)
    record = folder.run("wait", 1, 6.0)
    record.write_text(record.read_text().replace('"seconds": 24.0', '"seconds": 80.0'))
    assert folder.time("wait")["ratio"]["mean"] == pytest.approx(3.0)
    time = folder.time("wait", timed={"reference": "ref", "measure": "seconds"})
    assert time["ratio"]["mean"] == pytest.approx(math.sqrt(3 * 10)) and time["seconds"] == pytest.approx((12 + 80) / 2)


def test_one_pair_has_no_interval(folder: Folder) -> None:
    folder.run("new", 1, 3.0)
    assert folder.time("new")["ratio"] == {"mean": 1.5, "low": None, "high": None}
    assert "| 1.50 |" in folder.build().files["table.md"]


# --------------------------------------------------------------------------------------------------- what makes no pair


def test_a_sitting_that_was_split_pairs_nothing_across(folder: Folder) -> None:
    folder.run("slow", 2, 400.0, sitting=TWO)
    time = folder.time("slow")
    assert time["seeds"] == [0, 1] and time["ratio"]["mean"] == pytest.approx(math.sqrt(8))
    assert reasons(time) == {2: "ref was run in another sitting"}
    folder.run("ref", 2, 100.0, sitting=TWO)  # its partner there: the third pair is back
    assert folder.time("slow")["ratio"]["mean"] == pytest.approx((2 * 4 * 4) ** (1 / 3))


@pytest.mark.parametrize("hardware", [
    {"cpu": "another", "cores": 2, "gpus": []}, {"cpu": "a CPU", "cores": 64, "gpus": []},
    {"cpu": "a CPU", "cores": 2, "gpus": [], "memory_gib": 8.0}, {"cpu": "a CPU", "cores": 2, "platform": "Mac"},
    {"cpu": "a CPU", "cores": 2, "gpus": [{"name": "a GPU", "memory_gib": 8.0}]}])
def test_two_machines_pair_nothing_even_if_they_name_one_sitting(folder: Folder, hardware: dict[str, Any]) -> None:
    folder.run("slow", 1, 400.0, hardware=hardware)
    assert reasons(folder.time("slow")) == {1: "ref was run on another machine"}


def test_each_machine_with_its_own_reference_counts(folder: Folder) -> None:
    other = {"cpu": "another", "cores": 8, "gpus": []}
    folder.run("ref", 2, 50.0, sitting=TWO, hardware=other)
    folder.run("slow", 2, 100.0, sitting=TWO, hardware=other)
    assert folder.time("slow")["ratio"]["mean"] == pytest.approx((2 * 4 * 2) ** (1 / 3))


def test_another_execution_pairs_nothing(folder: Folder) -> None:
    record = read_record(folder.run("slow", 0, 2.0))
    folder.run("slow", 0, 2.0, execution=record.execution.model_copy(update={"threads": 7, "dtype": "float64"}))
    assert reasons(folder.time("slow")) == {0: "ref was run with other dtype, threads"}


def test_a_reference_that_is_missing_or_failed_is_said_by_seed(folder: Folder) -> None:
    folder.run("slow", 3, 2.0)
    folder.run("slow", 4, 2.0)
    folder.run("ref", 4, 2.0, status="diverged", reason="the loss is nan")
    time = folder.time("slow")
    assert time["seeds"] == [0, 1, 2]
    assert reasons(time) == {3: "ref has no run at this seed", 4: "ref has no completed run at this seed"}
    assert "4.00 (0.71 to 22.38), 3 of 5 seeds" in folder.build().files["table.md"]


def test_a_failed_run_is_among_the_failures_and_has_no_time(folder: Folder) -> None:
    folder.run("slow", 3, 2.0, status="diverged", reason="the loss is nan")
    folder.run("ref", 3, 2.0)
    built = folder.build()
    entry = next(each for each in json.loads(built.files["table.json"])["entries"] if each["method"] == "slow")
    assert entry["time"]["seeds"] == [0, 1, 2] and entry["time"]["unpaired"] == []
    assert [failed["seed"] for failed in entry["failed"]] == [3]
    assert "whose time has no ratio" not in built.files["table.md"]


def test_a_reference_whose_scores_are_refused_makes_no_pair(folder: Folder) -> None:
    record = folder.run("ref", 0, 1.0)
    (record.parent / "after.jsonl.gz").unlink()
    assert reasons(folder.time("slow")) == {0: "ref has no completed run at this seed"}


def test_a_board_whose_reference_has_no_runs_says_so_in_each_cell(folder: Folder) -> None:
    built = folder.build(timed={**RULE, "reference": "nobody"})
    assert built.files["table.md"].count("| no ratio: nobody has no run at this seed |") == 2
    assert all("time_ratio" not in entry["costs"] and entry["time"]["ratio"] is None
               for entry in json.loads(built.files["table.json"])["entries"])


def test_records_of_before_sittings_and_interrupted_ones_have_no_ratio(folder: Folder) -> None:
    folder.run("slow", 0, 2.0, sitting=None)
    folder.run("slow", 1, 2.0, times={"resumed": 1})
    folder.run("slow", 2, 2.0, hardware={})
    time = folder.time("slow")
    assert time["ratio"] is None and time["seconds"] is None
    assert reasons(time) == {0: "its record does not say in which sitting it was made",
                             1: "it was interrupted and went on, so its time is of two sittings",
                             2: "its record does not say on which machine it was made"}
    folder.run("slow", 0, 2.0)
    folder.run("ref", 0, 2.0, sitting=None)
    assert reasons(folder.time("slow"))[0] == "of ref's run: its record does not say in which sitting it was made"
    assert reasons(folder.time("ref")) == {0: "its record does not say in which sitting it was made"}


def test_a_reference_in_two_settings_is_refused(folder: Folder) -> None:
    folder.run("ref", 0, 1.0, lr=0.5)
    with pytest.raises(UserError, match="in 2 settings"):
        folder.build(division="open")
    assert folder.build(division="open", settings={"ref": {"lr": 0.001}}).left_out.total() == 1


# ------------------------------------------------------------------------------------------------------ hostile numbers


@pytest.mark.parametrize("value", ["0", "0.0", "1e-9", "5e-324", "1e29"])
def test_seconds_that_no_training_takes_make_no_ratio(folder: Folder, value: str) -> None:
    for method in ("slow", "ref"):
        record = folder.run(method, 0, 7.5)
        record.write_text(record.read_text().replace('"cpu_seconds": 7.5', f'"cpu_seconds": {value}'))
        assert reasons(folder.time(method))[0] == f"training cannot take {float(value):g} s"
        assert folder.time("slow")["ratio"]["mean"] == pytest.approx(math.sqrt(32))
        folder.run(method, 0, 1.0)


@pytest.mark.parametrize("value", ["-1.0", "NaN", "Infinity", "1e308", "1e999", '"7"', "true", "null", "[]", "{}"])
def test_seconds_that_are_no_amount_are_no_record(folder: Folder, value: str) -> None:
    record = folder.run("slow", 0, 7.5)
    record.write_text(record.read_text().replace('"cpu_seconds": 7.5', f'"cpu_seconds": {value}'))
    assert [path for path, _ in board.read(folder.results).unreadable] == [record]
    assert folder.time("slow")["seeds"] == [1, 2]


def test_a_ledger_without_the_measure_has_no_ratio(folder: Folder) -> None:
    record = folder.run("slow", 0, 7.5)
    record.write_text(record.read_text().replace('"seconds": 30.0', '"minutes": 0.5'))
    time = folder.time("slow", timed={**RULE, "measure": "seconds"})
    assert reasons(time) == {0: "its ledger has no seconds"}


def test_the_widest_ratios_stay_numbers(folder: Folder) -> None:
    for seed, cpu in enumerate((1e-3, 1e9)):
        folder.run("ref", seed, 1e12 / 1e3 if seed == 0 else 1e-3)
        folder.run("slow", seed, cpu)
    ratio = folder.time("slow")["ratio"]
    assert ratio["mean"] > 0 and all(math.isfinite(bound) for bound in ratio.values())


@pytest.mark.parametrize("sitting", ["", "x" * 12, "1" * 13, "1" * 12 + "\\n", "<script>", "A" * 12])
def test_a_sitting_is_twelve_digits(folder: Folder, sitting: str) -> None:
    record = folder.run("slow", 0, 2.0)
    record.write_text(record.read_text().replace(ONE, sitting))
    with pytest.raises(UserError, match="sitting"):
        read_record(record)


# ------------------------------------------------------------------------------------------------------------ the forms


def test_every_form_shows_ratios_in_place_of_seconds(folder: Folder) -> None:
    folder.run("slow", 2, 2.0, sitting=TWO)
    files = folder.build().files
    head = next(line for line in files["table.md"].splitlines() if line.startswith("| rank"))
    assert "| CPU s, ref = 1 |" in head and "| CPU s |" not in head
    assert "CPU s of training, as a ratio to those of ref, whose runs take 2.67 s in the mean" in files["table.md"]
    assert "- `slow`, seed 2: ref was run in another sitting" in files["table.md"]
    assert "CPU s, ref = 1" in files["table.tex"] and "2 of 3 seeds" in files["table.tex"]
    line = next(each for each in csv.DictReader(io.StringIO(files["table.csv"])) if each["method"] == "slow")
    assert "cpu_seconds" not in line and float(line["time_ratio_mean"]) == pytest.approx(math.sqrt(8))
    assert line["time_seeds"] == "2" and line["time_unpaired"] == "seed 2: ref was run in another sitting"
    costs = [entry["costs"] for entry in json.loads(files["table.json"])["entries"]]
    assert all("cpu_seconds" not in cost and cost["time_ratio"] > 0 for cost in costs)
    assert "Time, reference = 1" in files["pareto.svg"] and "CPU seconds" not in files["pareto.svg"]


def test_a_board_without_the_rule_is_as_it_was(folder: Folder) -> None:
    files = folder.build(timed=None).files
    assert "time" not in json.loads(files["table.json"])["entries"][0] and "ratio" not in files["table.md"]
    assert "CPU seconds" in files["pareto.svg"] and "reference = 1" not in files["pareto.svg"]


def test_a_references_name_is_escaped(folder: Folder) -> None:
    files = folder.build(timed={**RULE, "reference": NASTY}).files
    for name in ("table.md", "pareto.svg"):
        assert "<script>" not in files[name]
    assert r"\`a\`" in files["table.md"] and r"\&" in files["table.tex"] and r"\_b" in files["table.tex"]


@pytest.mark.parametrize(("timed", "word"), [
    ({"reference": "ref"}, "timed.measure"), ({**RULE, "measure": "minutes"}, "timed.measure"),
    ({**RULE, "refrence": "x"}, "unknown key"), ({**RULE, "reference": ""}, "timed.reference"), ("ref", "timed")])
def test_a_rule_that_is_none_is_refused(tmp_path: Path, timed: Any, word: str) -> None:
    with pytest.raises(UserError, match=word):
        read_board(write_board(tmp_path, timed=timed))


def test_a_board_over_several_tasks_has_no_such_rule(tmp_path: Path) -> None:
    rules = {"title": "T", "tasks": {"toy@1": {"suite": "classical"}}, "timed": RULE}
    (tmp_path / "board.yaml").write_text(json.dumps(rules))
    with pytest.raises(UserError, match="unknown key 'timed'"):
        read_board(tmp_path)


# ---------------------------------------------------------------------------------------------- what a timed suite asks


@pytest.mark.parametrize(("change", "expected"), [
    (lambda record: None, True), (lambda record: setattr(record.times, "sitting", TWO), False),
    (lambda record: setattr(record.times, "sitting", None), False),
    (lambda record: setattr(record.times, "resumed", 2), False),
    (lambda record: record.hardware.update(cores=3), False)])
def test_runs_are_together_in_one_sitting(folder: Folder, change: Callable[[Record], None], expected: bool) -> None:
    records = [read_record(folder.run(method, 0, 1.0)) for method in ("ref", "slow", "third")]
    change(records[2])
    assert together(records) is expected and together(records[:2]) and together([])
