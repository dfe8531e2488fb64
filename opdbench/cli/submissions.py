"""Verify what somebody submitted: a bundle, or a submission's folder in a checkout. None of it is executed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench.cli.arguments import add_json, one_of
from opdbench.errors import CHECK_FAILED
from opdbench.text import print_json, table
from opdbench.untrusted import inert

if TYPE_CHECKING:
    from opdbench.submissions.verify import Place, Verdict



def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="verify", type=one_of("choice", ("verify",)), help="exits 3 when a check fails")
    parser.add_argument("bundle", metavar="BUNDLE|submissions/NAME", help="a zip, or a folder with a manifest")
    parser.add_argument("--base", metavar="REF", help="the branch that it is to join: it may only add to it")
    add_places(parser)
    add_json(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """What a submission is compared with."""
    parser.add_argument("--results", default="results", metavar="DIR", help="reference records (default ./results)")
    parser.add_argument("--leaderboards", default="leaderboards", metavar="DIR",
                        help="the boards' rules (default ./leaderboards)")
    parser.add_argument("--repository", default=".", metavar="DIR", help="the git checkout (default: this folder)")
    parser.add_argument("--data", metavar="DIR", help="where a task's data are")
    parser.add_argument("--execute-code", action="store_true",
                        help="also grade tasks whose grading runs programs that models wrote (in a sandbox)")


def place_of(args: argparse.Namespace) -> Place:
    from opdbench.regrade import Grader
    from opdbench.submissions.verify import Place

    return Place(Path(args.results), Path(args.leaderboards), Grader((), args.data, args.execute_code),
                 getattr(args, "base", None), Path(args.repository))


def execute(args: argparse.Namespace) -> int:
    from opdbench.cli.show import offline
    from opdbench.submissions.bundle import opened
    from opdbench.submissions.verify import verify

    with offline(), opened(Path(args.bundle)) as bundle:
        verdict = verify(bundle, place_of(args))
    if args.json:
        print_json(verdict_json(verdict))
    else:
        print_verdict(verdict, "")
    return 0 if verdict.passed else CHECK_FAILED


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {"passed": verdict.passed, "checks": [check._asdict() for check in verdict.checks],
            "comparison": verdict.comparison}


def print_verdict(verdict: Verdict, end: str) -> None:
    rows = [[check.name, "pass" if check.passed else "FAIL", check.message] for check in verdict.checks]
    failed = sum(not check.passed for check in verdict.checks)
    parts = [table(["check", "", ""], rows), verdict.comparison,
             f"{failed} of {len(rows)} checks failed" if failed else "every check passed", end]
    print(inert("\n\n".join(part for part in parts if part)))
