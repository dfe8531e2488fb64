"""Boards on disk: `leaderboards/<board>/board.yaml` and the tables that its rules make of the records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from opdbench.errors import UserError, unknown
from opdbench.parallel import mapped
from opdbench.report import suite_tables
from opdbench.report.charts import CHART, figure
from opdbench.report.entries import Entry, select
from opdbench.report.files import differing, first_difference, write
from opdbench.report.runs import FEW, Packed, Run, Unreadable, pack, read_below, read_records
from opdbench.report.standings import Standing, standings
from opdbench.report.tables import render
from opdbench.schema.board import RULES, AnyBoard, Board, SuiteBoard, read_board
from opdbench.stamps import places

__all__ = ["All", "Built", "Records", "Tables", "build", "build_all", "differing", "first_difference", "folder_of",
           "names", "read", "write"]


class Tables(NamedTuple):
    """What is written of a board."""

    name: str
    folder: Path
    files: Mapping[str, str]  # content by file name
    entries: int
    left_out: Counter[str]  # runs of its task by the rule that they break


class Built(NamedTuple):
    """A board as the records give it."""

    name: str
    folder: Path
    board: AnyBoard
    entries: Sequence[Entry] | Sequence[Standing]  # the latter for a board over several tasks
    files: Mapping[str, str]
    left_out: Counter[str]

    @property
    def tables(self) -> Tables:
        return Tables(self.name, self.folder, self.files, len(self.entries), self.left_out)


class Records:
    """What was read of a folder of records."""

    def __init__(self, runs: Iterable[Run], unreadable: Sequence[Unreadable], results: Path) -> None:
        self.unreadable, self.results = unreadable, results  # what suites chose lies there too
        self.by_task: dict[str, list[Run]] = {}
        for run in runs:
            self.by_task.setdefault(run.record.recipe.task, []).append(run)

    def of(self, tasks: Iterable[str]) -> list[Run]:
        """The runs of these tasks, each in the order of their paths."""
        return [run for task in tasks for run in self.by_task.get(task, ())]

    @property
    def runs(self) -> list[Run]:
        return self.of(self.by_task)


class All(NamedTuple):
    """What is written of several boards, in the order of their names, and the records that could not be read for it."""

    tables: list[Tables]
    unreadable: list[Unreadable]


def names(leaderboards: Path) -> list[str]:
    """Boards in a folder: its subfolders that hold rules."""
    return sorted(path.parent.name for path in leaderboards.glob(f"*/{RULES}"))


def folder_of(leaderboards: Path, name: str) -> Path:
    """
    Raises:
        UserError: there is no such board (names the nearest).
    """
    valid = names(leaderboards)
    if name not in valid:
        raise unknown("board", name, valid, see="opdbench board list") if valid else UserError(
            f"there are no boards in {leaderboards}", "name their folder with --leaderboards DIR")
    return leaderboards / name


def build_all(leaderboards: Path, names: Sequence[str], results: Path) -> All:
    """What the files of several boards should be.

    A process reads the records of one folder after another, and builds of each the boards over one task that it has
    runs of. That was right wherever all runs of a task lie in one folder, which is where `opdbench run` puts them. Only
    what other boards need is brought together here: the runs of boards over several tasks, and of several folders.
    """
    if not results.is_dir():
        raise UserError(f"there is no folder {results}", "name the folder of records with --results DIR")
    boards = {name: read_board(folder_of(leaderboards, name)) for name in names}
    many = len(places(str(results), 2)) > FEW
    given, found = (leaderboards, boards, results), places(str(results), 1)
    parts = list(mapped(_build_part, given, found) if many else (_build_part(given, place) for place in found))
    folders = Counter(task for part in parts for task in part.tasks)
    built = {name: tables for part in parts for name, tables in part.built.items()
             if folders[boards[name].task_ids[0]] == 1}
    rest = [name for name in names if name not in built]
    if any(folders[boards[name].task_ids[0]] > 1 for name in rest if isinstance(boards[name], Board)):
        runs = read_records(results)[0]
    else:
        runs = [each.run() for part in parts for each in part.packed]
    others = leaderboards, Records(runs, (), results)
    built.update(zip(rest, mapped(_build, others, rest) if many else (_build(others, name) for name in rest),
                     strict=True))
    return All([built[name] for name in names], [each for part in parts for each in part.unreadable])


class _Part(NamedTuple):
    """What a process made of the records of one folder."""

    tasks: set[str]
    built: dict[str, Tables]  # boards over one of these tasks
    packed: list[Packed]  # runs for boards over several
    unreadable: list[Unreadable]


def _build_part(given: tuple[Path, Mapping[str, AnyBoard], Path], place: str) -> _Part:
    leaderboards, boards, results = given
    runs, unreadable = read_below([place])
    records = Records(runs, unreadable, results)
    alone = [name for name, board in boards.items() if isinstance(board, Board) and board.task in records.by_task]
    shared = {task for board in boards.values() if not isinstance(board, Board) for task in board.task_ids}
    return _Part(set(records.by_task), {name: _build((leaderboards, records), name) for name in alone},
                 [pack(run) for task in shared for run in records.of([task])], unreadable)


def _build(given: tuple[Path, Records], name: str) -> Tables:
    leaderboards, records = given
    return build(leaderboards, name, records).tables


def build(leaderboards: Path, name: str, records: Records) -> Built:
    """What a board's files should be; writes nothing."""
    folder = folder_of(leaderboards, name)
    board = read_board(folder)
    runs = records.of(board.task_ids)
    if isinstance(board, SuiteBoard):
        found = standings(board, runs, records.results)
        files = suite_tables.render(board, found, f"opdbench board build {name}")
        return Built(name, folder, board, found.lines, _with_chart(board, files), found.left_out)
    entries, left_out = select(board, runs)
    files = render(board, entries, f"opdbench board build {name}")
    return Built(name, folder, board, entries, _with_chart(board, files), left_out)


def _with_chart(board: AnyBoard, files: Mapping[str, str]) -> dict[str, str]:
    """The tables, and the chart of score beside cost that is drawn of the same numbers."""
    return {**files, CHART: figure(board.title, json.loads(files["table.json"]))}


def read(results: Path) -> Records:
    return Records(*read_records(results), results)
