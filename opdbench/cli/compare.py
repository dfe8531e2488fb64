"""Compare two methods, or two groups of records, on one task: the paired difference with its interval, and what size of
difference the runs could have shown."""

from __future__ import annotations

import argparse
from pathlib import Path

from opdbench.cli.arguments import add_json
from opdbench.text import print_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for which in ("first", "second"):
        parser.add_argument(which, metavar=which.upper(),
                            help="METHOD, METHOD:SETTING where it has several, or a folder of records")
    parser.add_argument("--task", metavar="T", help="the task, when the records are of several")
    parser.add_argument("--results", default="results", metavar="DIR", help="where the records are (default ./results)")
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    from opdbench.report import comparison

    first, second = (comparison.side(name, args.task, Path(args.results)) for name in (args.first, args.second))
    found = comparison.compare(first, second)
    if args.json:
        print_json(comparison.as_json(first, second, found))
    else:
        print(comparison.as_text(first, second, found))
    return 0
