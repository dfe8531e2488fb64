"""`opdbench board build` twice: the second finds nothing to do, and what it looks at can put nothing on a board."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from opdbench.cli.main import main
from opdbench.errors import UsageError, UserError
from opdbench.report import board
from opdbench.report.runs import read_records, with_outcomes
from opdbench.report.unchanged import MADE
from tests.report.synthetic import write_board, write_run


class Folder:
    """Records and a board, with the commands that one types."""

    def __init__(self, top: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.results, self.boards, self.capsys = top / "results", top / "boards", capsys
        for seed in range(3):
            for method, after in (("one", 0.9), ("two", 0.6)):
                write_run(self.results, method, seed, after=after)
        write_board(self.boards, "toy", min_seeds=2)

    def __call__(self, what: str, *more: str) -> tuple[int, str]:
        code = main(["board", what, "--results", str(self.results), "--leaderboards", str(self.boards), *more])
        return code, self.capsys.readouterr().out

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.boards / "toy").iterdir()}


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Folder:
    return Folder(tmp_path, capsys)


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> board.All:
        raise AssertionError("records were read")

    monkeypatch.setattr(board, "build_all", read)


def test_an_unchanged_rebuild_reads_no_record(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "changed table.json" in folder("build")[1]
    first, again = folder.files(), folder("build", "--json", "--fresh")[1]
    forbid_reading(monkeypatch)
    assert folder("build", "--json") == (0, again) and json.loads(again)[0]["changed"] == []
    assert "changed nothing" in folder("build")[1] and folder.files() == first


def test_whatever_changes_is_built_again(folder: Folder) -> None:
    folder("build")
    first = folder.files()
    (folder.boards / "toy" / "table.md").write_text("forged")
    assert "changed table.md" in folder("build")[1] and folder.files() == first
    write_board(folder.boards, "toy", min_seeds=2, title="Another")
    assert "table.json" in folder("build")[1]
    write_run(folder.results, "one", 3, after=0.9)
    assert "table.json" in folder("build")[1]
    (folder.boards / MADE).unlink()
    assert "changed nothing" in folder("build")[1]


def test_a_forged_note_puts_nothing_on_a_board_and_is_seen_by_check(folder: Folder) -> None:
    folder("build")
    made = json.loads((folder.boards / MADE).read_text())
    (folder.boards / "toy" / "table.md").write_text("forged")
    (folder.boards / MADE).write_text(json.dumps({**made, "files": {}, "boards": [
        {"board": "\x1b[31mtoy", "entries": 99, "left_out": {}}]}))
    code, said = folder("build")
    assert code == 0 and "\x1b" not in said and (folder.boards / "toy" / "table.md").read_text() == "forged"
    assert folder("check")[0] == 3
    for content in ("", "[]", "{}", '{"inputs": 1}', json.dumps({**made, "inputs": "another"})):
        (folder.boards / MADE).write_text(content)
        (folder.boards / "toy" / "table.md").write_text("forged")
        assert "changed table.md" in folder("build")[1]
    assert folder("check")[0] == 0


def test_what_cannot_be_read_is_said_each_time(folder: Folder) -> None:
    (folder.results / "bad").mkdir()
    (folder.results / "bad" / "record.json").write_text("{")
    assert all("not read" in folder("build")[1] for _ in range(2))


def test_boards_by_several_processes_are_the_same(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    write_board(folder.boards, "other", min_seeds=2, title="Another")
    names = ["other", "toy"]
    alone = board.build_all(folder.boards, names, folder.results)
    monkeypatch.setattr("opdbench.report.board.FEW", 0)
    monkeypatch.setattr("opdbench.report.runs.FEW", 0)
    monkeypatch.setattr("opdbench.report.runs._CHUNK", 1)
    together = board.build_all(folder.boards, names, folder.results)
    assert together == alone and [built.entries for built in alone.tables] == [2, 2]
    assert alone.tables[1] == board.build(folder.boards, "toy", board.read(folder.results)).tables
    with pytest.raises(UserError, match="unknown board"):
        board.build_all(folder.boards, ["toy", "nothing"], folder.results)


def test_where_the_runs_of_a_task_lie_does_not_matter(folder: Folder) -> None:
    alone = board.build_all(folder.boards, ["toy"], folder.results)
    runs = sorted(path.parent for path in folder.results.rglob("record.json"))
    for run, place in zip(runs, ("", "deep/down/there/", "other/"), strict=False):
        (folder.results / place).mkdir(parents=True, exist_ok=True)
        run.rename(folder.results / place / "a run")
    assert board.build_all(folder.boards, ["toy"], folder.results) == alone


@pytest.mark.parametrize("error", [UserError("a", "b", exit_code=3), UsageError("a")])
def test_an_error_gets_from_one_process_to_another(error: UserError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.problem, again.fix, again.exit_code) == (
        type(error), error.problem, error.fix, error.exit_code)


def test_equal_files_are_opened_once_and_one_that_is_altered_is_its_own(folder: Folder) -> None:
    runs = [with_outcomes(run) for run in read_records(folder.results)[0]]
    assert len({id(run.tested["teacher"]) for run in runs}) == 1 < len({id(run.tested["after"]) for run in runs})
    path = runs[0].path / "teacher.jsonl.gz"
    path.write_bytes((runs[0].path / "after.jsonl.gz").read_bytes())
    again = [with_outcomes(run) for run in read_records(folder.results)[0]]
    assert "checksum differs" in str(again[0].problem) and all(run.usable for run in again[1:])
