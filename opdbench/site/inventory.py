"""What there is to show: the boards as they were built, the methods and tasks that are installed, and the papers."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opdbench import registry
from opdbench.errors import UserError
from opdbench.page import Page as MethodText
from opdbench.page import read_page
from opdbench.report.board import names
from opdbench.report.writing import plain
from opdbench.site.pages import board_path
from opdbench.source import ClassSource, SourceError, SourceFile, classes_in

TABLE = "table.json"
COPIES = ("table.csv", "table.json", "table.md", "table.tex")


class Member(NamedTuple):
    """A setting of a method on one task, as a board's entry holds it; a board over several tasks holds one for each."""

    task: str
    method: str
    content: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        return self.method, self.content["setting_id"]


class Standing(NamedTuple):
    """Where a setting stands on a board."""

    board: Board
    entry: Mapping[str, Any]
    member: Member


class Board(NamedTuple):
    """A board's tables as they lie in its folder."""

    name: str
    content: Mapping[str, Any]  # of table.json
    copies: Mapping[str, bytes]  # the files that the page offers, by name

    @property
    def title(self) -> str:
        return str(self.content["title"])

    @property
    def path(self) -> str:
        return board_path(self.name)

    @property
    def tasks(self) -> list[str]:
        """The ids of its tasks."""
        rules = self.content["rules"]
        return [rules["task"]] if "task" in rules else list(self.content["tasks"])

    def members(self, entry: Mapping[str, Any]) -> list[Member]:
        if "tasks" not in entry:
            return [Member(self.tasks[0], entry["method"], entry)]
        return [Member(task, entry["algorithm"], found) for task, found in entry["tasks"].items()]


class Method(NamedTuple):
    """A method as its file describes it; without a description it is known from records only."""

    name: str
    description: registry.Description | None
    text: MethodText


class TaskText(NamedTuple):
    """A task likewise. `id` is "name@version"."""

    id: str
    description: registry.Description | None
    facts: Mapping[str, str]


def read_boards(leaderboards: Path) -> list[Board]:
    """Every board of a folder.

    Raises:
        UserError: one of them has not been built.
    """
    return [_read_board(leaderboards / name) for name in names(leaderboards)]


def _read_board(folder: Path) -> Board:
    try:
        content = json.loads((folder / TABLE).read_bytes())
        board = Board(folder.name, content, {})
        [board.members(entry) for entry in content["entries"]], board.tasks, board.title
    except FileNotFoundError:
        raise UserError(f"there is no {folder / TABLE}", f"opdbench board build {folder.name}") from None
    except (ValueError, TypeError, KeyError, RecursionError, OSError):
        raise UserError(f"{folder / TABLE} is no board's table", f"opdbench board build {folder.name}") from None
    copies = {file: (folder / file).read_bytes() for file in COPIES if (folder / file).is_file()}
    return Board(folder.name, content, copies)


def standings(boards: Sequence[Board]) -> dict[tuple[str, str], list[Standing]]:
    """By method and setting, the places on boards."""
    found: dict[tuple[str, str], list[Standing]] = {}
    for board in boards:
        for entry in board.content["entries"]:
            for member in board.members(entry):
                found.setdefault(member.key, []).append(Standing(board, entry, member))
    return found


def methods(known: Sequence[str]) -> list[Method]:
    """The installed methods, and those that only records know."""
    installed = {found.name: found for found in registry.descriptions("method")}
    return [_method(name, installed.get(name)) for name in sorted({*installed, *known})]


def tasks(known: Sequence[str]) -> list[TaskText]:
    """The installed tasks, and those ("name@version") that only records know."""
    installed = {f"{found.name}@{found.version}": found for found in registry.descriptions("task")}
    return [_task(name, installed.get(name)) for name in sorted({*installed, *known})]


def _method(name: str, description: registry.Description | None) -> Method:
    source = None if description is None else _class(description)
    docstring = None if source is None else ast.get_docstring(source.node, clean=False)
    return Method(name, description, read_page(docstring))


def _task(name: str, description: registry.Description | None) -> TaskText:
    source = None if description is None else _class(description)
    facts = {} if source is None else {label: str(source.value(attribute) or "") for label, attribute in
                                       (("protocol", "protocol"), ("score", "metric"), ("licence", "license"))}
    return TaskText(name, description, facts)


def _class(description: registry.Description) -> ClassSource | None:
    """The class that gives itself the description's name, without importing its file."""
    if description.path is None or description.problem:
        return None
    try:
        found = classes_in(SourceFile.of_file(description.path, description.path.stem))
    except SourceError:
        return None
    return next((source for source in found if source.own_value("name") == description.name), None)


def refused(boards: Sequence[Board]) -> dict[tuple[str, str, int], str]:
    """By method, setting and seed: why a board did not take a run's scores for what its raw outcomes give."""
    return dict(found for board in boards for found in _refused(board))


def _refused(board: Board) -> Iterator[tuple[tuple[str, str, int], str]]:
    for entry in board.content["entries"]:
        for failure in entry["failed"]:
            if failure["status"] == "refused":
                yield (entry["method"], entry["setting_id"], failure["seed"]), failure["reason"]


def written(method: str) -> str:
    """A method's name as boards write it."""
    return plain(method)
