"""Boards on disk: `leaderboards/<board>/board.yaml` and the tables that its rules make of the records."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from opdbench.errors import UserError, unknown
from opdbench.parallel import mapped
from opdbench.report import suite_tables
from opdbench.report.charts import CHART, figure
from opdbench.report.entries import Entry, select
from opdbench.report.files import differing, first_difference, write
from opdbench.report.runs import Packed, Run, Unreadable, read_packed
from opdbench.report.standings import Standing, standings
from opdbench.report.tables import render
from opdbench.schema.board import RULES, AnyBoard, SuiteBoard, read_board

__all__ = ["Built", "Records", "Tables", "build", "build_all", "differing", "first_difference", "folder_of", "names", "read",
           "write"]

_FEW = 1000  # records from which on a second process is worth its start


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
    """What was read of a folder of records; runs are unpacked by whoever asks for those of their tasks."""

    def __init__(self, packed: Sequence[Packed], unreadable: Sequence[Unreadable], results: Path) -> None:
        self.unreadable, self.results = unreadable, results  # what suites chose lies there too
        self._by_task: dict[str, list[Packed]] = {}
        for each in packed:
            self._by_task.setdefault(each.task, []).append(each)

    def __len__(self) -> int:
        return sum(map(len, self._by_task.values()))

    def of(self, tasks: Iterable[str]) -> list[Run]:
        """The runs of these tasks, each in the order of their paths."""
        return [each.run() for task in tasks for each in self._by_task.get(task, ())]

    @property
    def runs(self) -> list[Run]:
        return self.of(self._by_task)


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


def build_all(leaderboards: Path, names: Sequence[str], records: Records) -> Iterator[Tables]:
    """What the files of several boards should be, in the order of the names, each as soon as it is known."""
    given = leaderboards, records
    if len(records) > _FEW:
        return mapped(_build, given, names)
    return (_build(given, name) for name in names)


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
    return Records(*read_packed(results), results)
