"""Leaderboards: build their tables from the records, check that the committed ones are what the records give, list
them, make the static site of them, or serve it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from opdbench.cli import site
from opdbench.cli.arguments import add_json, one_of
from opdbench.errors import CHECK_FAILED, UsageError
from opdbench.text import print_json, table
from opdbench.untrusted import inert

if TYPE_CHECKING:
    from opdbench.report.board import All
    from opdbench.report.unchanged import Facts

WHAT = ("build", "check", "list", "site", "serve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="build|check|list|site|serve", type=one_of("choice", WHAT),
                        help="build writes tables and charts; check exits 3 when they are not what the records give; "
                        "site writes pages of all boards, methods, tasks, papers and records; serve shows them")
    parser.add_argument("name", nargs="?", metavar="NAME", help="a board; all of them without a name")
    parser.add_argument("--results", default="results", metavar="DIR", help="where the records are (default ./results)")
    parser.add_argument("--leaderboards", default="leaderboards", metavar="DIR",
                        help="where the boards are (default ./leaderboards)")
    site.add_arguments(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    from opdbench.report import board

    leaderboards = Path(args.leaderboards)
    wanted = board.names(leaderboards) if args.name is None else [board.folder_of(leaderboards, args.name).name]
    if not wanted:
        raise UsageError(f"there are no boards in {leaderboards}", "name their folder with --leaderboards DIR")
    if args.what == "list":
        return _list(leaderboards, wanted, args)
    if args.what in ("site", "serve"):
        return site.build(args) if args.what == "site" else site.serve(args)
    if args.what == "build":
        return _build(leaderboards, wanted, args)
    return _check(board.build_all(leaderboards, wanted, Path(args.results)), args)


def _list(leaderboards: Path, names: Sequence[str], args: argparse.Namespace) -> int:
    from opdbench.schema.board import read_board

    boards = [(name, read_board(leaderboards / name)) for name in names]
    if args.json:
        print_json([{"name": name, **board.model_dump(mode="json", exclude_defaults=True)} for name, board in boards])
    else:
        print(table(["board", "division", "tasks", "title"],
                    [[name, board.division, ", ".join(board.task_ids), board.title]
                     for name, board in boards]))
    return 0


def _build(leaderboards: Path, wanted: Sequence[str], args: argparse.Namespace) -> int:
    """Build, or find that all boards are what they should be."""
    from opdbench.report import board, unchanged

    inputs = "" if args.name else unchanged.inputs_of(Path(args.results), leaderboards)
    if not args.fresh and (made := unchanged.made_of(leaderboards, inputs)) is not None:
        _print_built([(facts, []) for facts in made], leaderboards, args)
        return 0
    built = board.build_all(leaderboards, wanted, Path(args.results))
    written = [(unchanged.facts(each), board.write(each)) for each in built.tables]
    if inputs and not built.unreadable:  # which is said each time
        unchanged.remember(leaderboards, inputs, built.tables)
    _print_built(written, leaderboards, args)
    if not args.json:
        _print_unreadable(built)
    return 0


def _print_built(written: Sequence[tuple[Facts, list[str]]], leaderboards: Path, args: argparse.Namespace) -> None:
    if args.json:
        print_json([{**facts.model_dump(), "changed": changed} for facts, changed in written])
        return
    for facts, changed in written:
        reasons = ", ".join(f"{count} with {rule}" for rule, count in facts.left_out.items())
        print(inert(f"{leaderboards / facts.board}: {facts.entries} entries; changed {', '.join(changed) or 'nothing'}"
                    + (f"; left out: {reasons}" if reasons else "")))


def _check(built: All, args: argparse.Namespace) -> int:
    from opdbench.report.board import differing, first_difference
    from opdbench.report.unchanged import facts

    found = {board.name: [first_difference(board, file) for file in differing(board)] for board in built.tables}
    failed = any(found.values())
    if args.json:
        print_json({"passed": not failed, "boards": [{**facts(board).model_dump(), "differences": found[board.name]}
                                                     for board in built.tables]})
        return CHECK_FAILED if failed else 0
    for board in built.tables:
        print(f"{board.folder}: " + ("not what the records give" if found[board.name] else "what the records give"))
        for difference in found[board.name]:
            print(f"  {difference}")
        if found[board.name]:
            print(f"  fix: opdbench board build {board.name}")
    _print_unreadable(built)
    return CHECK_FAILED if failed else 0


def _print_unreadable(built: All) -> None:
    for path, problem in built.unreadable:
        print(inert(f"not read: {path}: {problem}"))
