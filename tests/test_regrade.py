"""`opdbench regrade`: what grading again finds, what it makes a record worth, and how that is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opdbench.cli.main import main
from opdbench.errors import UserError
from opdbench.regrade import Grader, again
from opdbench.report.runs import Run, read_records
from opdbench.schema.spec import Execution
from opdbench.trust import TRUST
from tests.hostile import samples
from tests.report.synthetic import write_run


def runs(results: Path) -> list[Run]:
    return read_records(results)[0]


def shown(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for seed in range(3):
        samples.write_run(tmp_path / "results", samples.recipe("0" * 64, seed))
    return tmp_path / "results"


def test_texts_that_grade_as_recorded_are_re_graded(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regrade", str(results), "--json"]) == 0
    assert [(one["trust"], one["graded"]) for one in shown(capsys)] == [("re-graded", 48)] * 3
    assert {run.trust for run in runs(results)} == {"self-reported"}  # nothing is written unless it is asked for
    assert main(["regrade", str(results), "--write"]) == 0
    assert {run.trust for run in runs(results)} == {"re-graded"}


def test_a_level_is_lost_with_the_record_that_it_was_given_to(results: Path) -> None:
    main(["regrade", str(results), "--write"])
    record = runs(results)[0].path / "record.json"
    record.write_text(record.read_text() + "\n")
    assert [run.trust for run in runs(results)] == ["self-reported", "re-graded", "re-graded"]
    (record.parent / TRUST).write_text('{"level": "certified"}')
    assert "gives no level of trust" in read_records(results)[1][0].problem


def test_a_contradicted_record_fails_and_loses_its_level(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["regrade", str(results), "--write"])
    first = runs(results)[0].path
    (first / "after.jsonl.gz").write_bytes((first / "before.jsonl.gz").read_bytes())
    capsys.readouterr()
    assert main(["regrade", str(first), "--write"]) == 3
    assert "checksum differs" in capsys.readouterr().out and not (first / TRUST).exists()


def test_running_it_again_reproduces_it_or_not(
        results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        samples.write_run(tmp_path / "rerun", samples.recipe("0" * 64, seed), execution=Execution(threads=7))
    assert main(["regrade", str(results), "--rerun", str(tmp_path / "rerun"), "--write", "--json"]) == 0
    assert {one["trust"] for one in shown(capsys)} == {"reproduced"}
    assert {run.trust for run in runs(results)} == {"reproduced"}
    with pytest.raises(UserError, match="no second run of seed 2"):
        again(runs(results), runs(tmp_path / "rerun")[:-1])


def test_another_result_is_no_reproduction(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path / "one", "same", seed, after=0.9, examples=200)
        write_run(tmp_path / "two", "same", seed, after=0.5, examples=200)
    with pytest.raises(UserError, match="running it again gives"):
        again(runs(tmp_path / "one"), runs(tmp_path / "two"))


def test_what_cannot_be_graded_again_is_not_contradicted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "one", 0, task="toy@1")
    assert main(["regrade", str(tmp_path), "--json"]) == 0
    (found,) = shown(capsys)
    assert found["trust"] == "self-reported" and "unknown task 'toy'" in str(found["problem"])
    assert main(["regrade", str(tmp_path / "none")]) == 1 and "there is no folder" in capsys.readouterr().err


def test_programs_that_models_wrote_run_only_when_asked(tmp_path: Path) -> None:
    recipe = samples.recipe("0" * 64, 0, task="humaneval@1", task_params={"execute_code": True})
    samples.write_run(tmp_path, recipe)
    found = Grader().regrade(runs(tmp_path)[0])
    assert found.problem == "grading humaneval@1 runs programs that models wrote" and not found.wrong
