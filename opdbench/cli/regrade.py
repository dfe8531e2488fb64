"""Grade the stored outputs of runs again with the grader that is installed here, and say how far that confirms them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.cli.arguments import add_json, add_plugin
from opdbench.errors import CHECK_FAILED, UserError
from opdbench.text import print_json, table
from opdbench.untrusted import inert

if TYPE_CHECKING:
    from opdbench.regrade import Regraded
    from opdbench.report.runs import Run



def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("records", nargs="+", metavar="RECORD|DIR", help="records, or folders that hold some")
    parser.add_argument("--write", action="store_true", help="write the level of trust beside each record")
    parser.add_argument("--rerun", metavar="DIR", help="records of the same recipes, run again by somebody else")
    parser.add_argument("--data", metavar="DIR", help="where a task's data are")
    parser.add_argument("--execute-code", action="store_true",
                        help="also grade tasks whose grading runs programs that models wrote (in a sandbox)")
    add_plugin(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    from opdbench.cli.show import offline
    from opdbench.regrade import Grader, folders

    runs = folders([Path(record) for record in args.records])
    with offline():
        grader = Grader(args.plugin, args.data, args.execute_code)
        found = [grader.regrade(run) for run in runs]
    if args.rerun is not None:
        found = _reproduced(found, folders([Path(args.rerun)]))
    if args.write:
        _write(found)
    _print(found, args)
    return CHECK_FAILED if any(one.wrong for one in found) else 0


def _reproduced(found: Sequence[Regraded], rerun: Sequence[Run]) -> list[Regraded]:
    """What was run again, setting by setting."""
    from opdbench.regrade import REPRODUCED, again
    from opdbench.report.runs import by_setting

    of_run = {one.run.path: one for one in found}
    for group in by_setting([one.run for one in found if not one.wrong and one.run.usable]).values():
        try:
            again(group, rerun)
            change: dict[str, Any] = {"level": REPRODUCED, "problem": None}
        except UserError as error:
            change = {"problem": error.problem, "wrong": error.problem.startswith("running it again")}
        of_run.update({run.path: of_run[run.path]._replace(**change) for run in group})
    return list(of_run.values())


def _write(found: Sequence[Regraded]) -> None:
    from opdbench.regrade import grader_in_words
    from opdbench.store import RECORD, read_whole
    from opdbench.trust import SELF_REPORTED, TRUST, give

    for one in found:
        if one.level != SELF_REPORTED:
            give(one.run.path, one.level, read_whole(one.run.path / RECORD).sha256, grader_in_words())
        elif one.wrong:
            (one.run.path / TRUST).unlink(missing_ok=True)


def _print(found: Sequence[Regraded], args: argparse.Namespace) -> None:
    if args.json:
        print_json([{"record": str(one.run.path), "trust": one.level, "graded": one.graded, "wrong": one.wrong,
                     "problem": one.problem} for one in found])
        return
    print(inert(table(["record", "trust", "texts", "remark"],
                      [[str(one.run.path), one.level, f"{one.graded:,}", one.problem or ""] for one in found])))
    wrong = sum(one.wrong for one in found)
    print(f"\n{len(found)} records, {wrong or 'none'} contradicted")
