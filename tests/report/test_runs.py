"""Reading records back: arrays over seeds x examples, and what is done with records that do not add up."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opdbench.errors import UserError
from opdbench.report.runs import Run, by_setting, changed, read_records, study, with_outcomes
from tests.report.synthetic import EXAMPLES, write_run


def read(results: Path) -> list[Run]:
    runs, unreadable = read_records(results)
    assert not unreadable
    return [with_outcomes(run) for run in runs]


def only(results: Path) -> Run:
    (run,) = read(results)
    return run


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def forge(folder: Path, lines: list[str]) -> None:
    """Replace the outcomes after, with a checksum that fits: what a careful forger would do."""
    content = gzip.compress("".join(line + "\n" for line in lines).encode())
    (folder / "after.jsonl.gz").write_bytes(content)
    edit(folder / "record.json",
         lambda record: record["outcomes"]["after"].update(sha256=hashlib.sha256(content).hexdigest()))


def test_outcomes_become_arrays_over_seeds_and_examples(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        write_run(tmp_path, "one", seed)
    found = study(read(tmp_path))
    assert found is not None and found.seeds == (0, 1, 2) and found.shared and found.modes == ("greedy", "sampled")
    for run, row in zip(read(tmp_path), found.score_se["after", "sampled"], strict=True):
        assert row.mean() == pytest.approx(run.record.after["sampled"].mean)
    assert found.score_se["before", "greedy"].shape == (3, EXAMPLES)
    assert (found.score_se["before", "greedy"] == found.score_se["before", "greedy"][0]).all()


def test_episodes_are_each_seeds_own_and_fresh_networks_one_setting(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "one", seed, text=False)
    runs = read(tmp_path)
    assert len(by_setting(runs)) == 1
    found = study(runs)
    assert found is not None and not found.shared


def test_settings_are_recipes_without_their_seed(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path, "one", seed)
        write_run(tmp_path, "one", seed, lr=0.01)
        write_run(tmp_path, "two", seed)
    groups = by_setting(read(tmp_path))
    assert [(setting.method, len(runs)) for setting, runs in groups.items()] == [("one", 2), ("one", 2), ("two", 2)]
    assert {str(changed(runs[0].record)) for runs in groups.values()} == {"{}", "{'lr': 0.01}"}


def test_an_example_sampled_several_times_counts_by_its_mean(tmp_path: Path) -> None:
    from opdbench.scores import Outcome
    from tests.report.synthetic import write_phase

    folder = write_run(tmp_path, "one", 0)
    record = folder.read_record()
    assert record is not None
    outcomes = [Outcome(f"toy-{index}", mode, float(sample < 1), 5, False, "text", {})
                for mode in ("greedy", "sampled") for index in range(EXAMPLES) for sample in range(4)]
    write_phase(folder, record, "after", outcomes)
    folder.write_record(record)
    found = study(read(tmp_path))
    assert found is not None and (found.score_se["after", "greedy"] == 0.25).all()


def outcome(**changes: Any) -> str:
    return json.dumps({"id": "toy-0", "mode": "greedy", "score": 1.0, "length": 5, "truncated": False, "output": "",
                       "extra": {}} | changes)


@pytest.mark.parametrize("lines", [
    [outcome()], [], ["{}"], ["[]"], ["not json"], [outcome(score="1")], [outcome(score=float("nan"))],
    [outcome(score=10 ** 400)], [outcome(score=True)], [outcome(id=["x"])], [outcome(extra=3)], [outcome(more=1)],
    ["[" * 100_000],
], ids=range(13))
def test_outcomes_that_do_not_make_the_stated_scores_are_refused(tmp_path: Path, lines: list[str]) -> None:
    forge(write_run(tmp_path, "one", 0).path, lines)
    run = only(tmp_path)
    assert run.problem is not None and "raw outcomes after" in run.problem
    assert not run.usable and study([run]) is None


@pytest.mark.parametrize("change", [
    lambda record: record["after"]["greedy"].update(mean=0.99),
    lambda record: record["after"].pop("sampled"),
    lambda record: record["teacher"]["greedy"].update(low=0.5),
    lambda record: record["outcomes"].pop("after"),
    lambda record: record["outcomes"]["after"].update(file="../../../etc/passwd"),
    lambda record: record["recipe"].update(seed=7),
    lambda record: record["recipe"]["training"].update(lr=0.5),
    lambda record: record.update(id="0" * 12),
], ids=range(8))
def test_a_record_that_was_changed_by_hand_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    folder = write_run(tmp_path, "one", 0)
    assert only(tmp_path).usable
    edit(folder.path / "record.json", change)
    assert not only(tmp_path).usable and only(tmp_path).problem


def test_altered_outcomes_are_refused(tmp_path: Path) -> None:
    path = write_run(tmp_path, "one", 0).path / "after.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    assert "checksum differs" in str(only(tmp_path).problem)
    path.unlink()
    assert "cannot read" in str(only(tmp_path).problem)


def test_what_is_no_record_is_named_and_stops_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, "one", 0)
    for index, content in enumerate((b"", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 2}')):
        (tmp_path / f"bad{index}").mkdir()
        (tmp_path / f"bad{index}" / "record.json").write_bytes(content)
    runs, unreadable = read_records(tmp_path)
    assert len(runs) == 1 and len(unreadable) == 5 and all(problem for _, problem in unreadable)


def test_a_copy_of_a_run_is_no_further_seed(tmp_path: Path) -> None:
    write_run(tmp_path / "here", "one", 0)
    write_run(tmp_path / "there", "one", 0)
    with pytest.raises(UserError, match="a seed twice"):
        study(read(tmp_path))


def test_runs_of_other_examples_do_not_mix(tmp_path: Path) -> None:
    write_run(tmp_path, "one", 0)
    write_run(tmp_path, "one", 1, examples=50)
    with pytest.raises(UserError, match="not tested on the same examples"):
        study(read(tmp_path))


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        read_records(tmp_path / "absent")


@pytest.mark.parametrize("lines", [
    ['{"x": [{}', '{}]}, {"y": 1}'],  # together a list of two values, and neither line is one
    ['{"x": 1}, {"x": 2}'], ['{"x": 1', '"y": 2}'], [""]])
def test_lines_are_values_each_by_itself(tmp_path: Path, lines: list[str]) -> None:
    folder = write_run(tmp_path, "one", 0).path
    forge(folder, lines)
    assert "has a line that is not JSON" in str(only(tmp_path).problem)


@pytest.mark.parametrize("twice", ['"id": "a", "id": "a"', '"mode": "greedy", "mode" : "greedy"'])
def test_a_key_that_is_there_twice_is_seen(tmp_path: Path, twice: str) -> None:
    folder = write_run(tmp_path, "one", 0).path
    lines = gzip.decompress((folder / "after.jsonl.gz").read_bytes()).decode().splitlines()
    name = twice.split(":")[0]
    lines[0] = lines[0].replace(f"{name}: {json.dumps(json.loads(lines[0])[json.loads(name)])}", twice, 1)
    forge(folder, lines)
    assert "has a key twice" in str(only(tmp_path).problem)
