"""Published tables and claims beside what our records say: list, show, plan the runs, run them, build files."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from opdbench.cli.arguments import add_json, one_of
from opdbench.errors import CHECK_FAILED, UsageError
from opdbench.text import fields, number, print_json, table

if TYPE_CHECKING:
    from opdbench.paper_plan import Need
    from opdbench.report.paper_files import Built
    from opdbench.report.papers import Reproduction

WHAT = ("list", "show", "plan", "run", "build")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="list|show|plan|run|build", type=one_of("choice", WHAT),
                        help="show prints the tables; plan the runs they need, with their cost; run makes those that "
                             "this machine can; build writes the files")
    parser.add_argument("key", nargs="?", metavar="KEY", help="a paper (opdbench paper list)")
    parser.add_argument("--all", action="store_true", help="with build: every paper")
    parser.add_argument("--check", action="store_true", help="with build: write nothing; exit 3 when the files on disk "
                                                             "are not what the records give")
    parser.add_argument("--table", metavar="ID", help="with show, plan and run: only this table")
    parser.add_argument("--profile", default="auto", metavar="NAME", help="with plan: the hardware profile to price")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="with run: runs at a time (default 1)")
    parser.add_argument("--results", default="results", metavar="DIR", help="where the records are (default ./results)")
    parser.add_argument("--papers", default="papers", metavar="DIR", help="where built files go (default ./papers)")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    if args.what == "list":
        return _list(args)
    if args.what == "build":
        return _build(args)
    if args.key is None:
        raise UsageError(f"opdbench paper {args.what} needs the key of a paper", "opdbench paper list")
    return {"show": _show, "plan": _plan, "run": _run}[args.what](args)


def _list(args: argparse.Namespace) -> int:
    from opdbench.schema.paper import names, read

    papers = [read(name) for name in names()]
    rows = [{"key": paper.key, "tables": len(paper.tables), "cells": sum(len(row.values) for found in paper.tables
                                                                        for row in found.rows),
             "claims": len(paper.claims), "venue": paper.venue, "title": paper.title} for paper in papers]
    if args.json:
        print_json(rows)
    else:
        print(table(["paper", "tables", "cells", "claims", "venue", "title"],
                    [[str(value) for value in row.values()] for row in rows]))
    return 0


def _show(args: argparse.Namespace) -> int:
    from opdbench.report.evidence import Evidence
    from opdbench.report.paper_tables import as_json, render
    from opdbench.report.papers import reproduce
    from opdbench.schema.paper import read

    paper = read(args.key)
    if args.table is not None:
        paper = paper.model_copy(update={"tables": [paper.table(args.table)], "claims": []})
    found = reproduce(paper, Evidence(Path(args.results)))
    if args.json:
        print_json(as_json(found))
    else:
        print(render(found, f"opdbench paper build {args.key}")["table.md"], end="")
    return 0


def _plan(args: argparse.Namespace) -> int:
    needed = _needed(args)
    if args.json:
        print_json([{**need.place._asdict(), "command": need.place.command, "there": need.there, "runs": need.runs,
                     "cost_of_one": None if need.cost is None else need.cost._asdict(), "problem": need.problem}
                    for need in needed])
        return 0
    if not needed:
        print(_no_runs(args))
        return 0
    print(table(["command", "there", "to run", "FLOPs each", "time each", "memory"], map(_row, needed)))
    print("\n" + fields([("runs", f"{sum(need.runs for need in needed)} to make, "
                                  f"{sum(need.there for need in needed)} there"), ("training", _time(needed))]))
    return 0


def _time(needed: list[Need]) -> str:
    known = [need.seconds for need in needed if need.seconds is not None]
    if not known:
        return "unknown: the profile's device is not on this machine"
    lines = "" if len(known) == len(needed) else f" for {len(known)} of {len(needed)} lines"
    return f"about {number(sum(known) / 60)} minutes{lines} on this machine; start-up and evaluation come on top"


def _run(args: argparse.Namespace) -> int:
    """Every suite that is named, with only the arms that are missing and can run here."""
    from opdbench.cli import suite

    needed = [need for need in _needed(args) if need.runs]
    for need in needed:
        if need.problem:
            print(f"not run: {need.place.command}: {need.problem}")
    able = [need.place for need in needed if not need.problem and need.seconds is not None]
    if not able:
        print(_no_runs(args) if not _needed_at_all(args) else "there is nothing to run here")
        return 0
    codes = []
    for name in dict.fromkeys(place.suite for place in able):
        only = [f"{place.task}/{place.arm}" for place in able if place.suite == name]
        codes.append(suite.execute(argparse.Namespace(
            target=f"{suite.PREFIX}{name}", only=only, jobs=args.jobs, results=args.results, seeds=None, fresh=False,
            dry_run=False, json=args.json, method=None, task=None, settings=[], budget=[], preset=None, student=None,
            teacher=None, data=None)))
    return max(codes)


def _build(args: argparse.Namespace) -> int:
    from opdbench.report.evidence import Evidence
    from opdbench.report.paper_files import build
    from opdbench.schema.paper import names

    if (args.key is None) != args.all:
        raise UsageError("opdbench paper build takes the key of a paper, or --all", "opdbench paper list")
    evidence = Evidence(Path(args.results))
    built = [build(Path(args.papers), key, evidence) for key in (names() if args.all else [args.key])]
    return _check(built, args) if args.check else _write(built, args)


def _write(built: list[Built], args: argparse.Namespace) -> int:
    from opdbench.report.files import write

    changed = {str(each.folder): write(each) for each in built}
    if args.json:
        print_json([{"paper": each.found.paper.key, **_counts(each.found), "changed": changed[str(each.folder)]}
                    for each in built])
        return 0
    for each in built:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in _counts(each.found)["cells"].items() if count)
        print(f"{each.folder}: {counts or 'no cells'}; changed {', '.join(changed[str(each.folder)]) or 'nothing'}")
    return 0


def _check(built: list[Built], args: argparse.Namespace) -> int:
    from opdbench.report.files import differing, first_difference

    found = {each.found.paper.key: [first_difference(each, file) for file in differing(each)] for each in built}
    failed = any(found.values())
    if args.json:
        print_json({"passed": not failed, "papers": found})
        return CHECK_FAILED if failed else 0
    for key, differences in found.items():
        for difference in differences:
            print(difference)
        if differences:
            print(f"  fix: opdbench paper build {key}")
    print(f"{sum(map(bool, found.values()))} of {len(found)} papers are not what the records give")
    return CHECK_FAILED if failed else 0


def _needed(args: argparse.Namespace) -> list[Need]:
    from opdbench.paper_plan import needs
    from opdbench.report.evidence import Evidence
    from opdbench.schema.paper import read

    paper = read(args.key)
    if args.table is not None:
        paper.table(args.table)
    return list(needs(paper, Evidence(Path(args.results)), args.profile, args.table))


def _needed_at_all(args: argparse.Namespace) -> bool:
    from opdbench.paper_plan import places
    from opdbench.schema.paper import read

    return bool(places(read(args.key), args.table))


def _no_runs(args: argparse.Namespace) -> str:
    from opdbench.schema.paper import read

    return f"no run of ours stands beside {args.table or args.key}: {read(args.key).not_run}"


def _row(need: Need) -> list[str]:
    cost = need.cost
    if cost is None:
        return [need.place.command, str(need.there), str(need.runs), "-", "-", need.problem]
    return [need.place.command, str(need.there), str(need.runs), "-" if cost.flops is None else f"{cost.flops:.2g}",
            "unknown" if cost.seconds is None else f"{number(cost.seconds)} s",
            f"{cost.memory_bytes / 2**20:,.0f} MiB"]


def _counts(found: Reproduction) -> dict[str, dict[str, int]]:
    return {"cells": dict(Counter(cell.verdict for cells in found.cells.values() for cell in cells.values())),
            "claims": dict(Counter(claim.verdict for claim in found.claims))}
