"""Run the conformance suite on one method or task, or on everything that a file defines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from opdbench import registry
from opdbench.cli.arguments import add_json, add_plugin
from opdbench.errors import CHECK_FAILED, UserError, unknown
from opdbench.registry import Kind
from opdbench.text import print_json, table


class Result(NamedTuple):
    """One check of one method or task."""

    kind: Kind
    name: str
    check: str
    passed: bool
    message: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME|FILE", help="a method or task by name, or a .py file that defines some")
    parser.add_argument("--data", metavar="DIR", help="where a task's data are")
    add_plugin(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    plugins = list(args.plugin)
    if args.name.endswith(".py"):
        plugins.append(args.name)
        subjects = registry.defined_in(Path(args.name))
        if not subjects:
            raise UserError(f"{args.name} defines no method and no task",
                            "give the class a `name`, and derive it from Distiller or from a Task")
    else:
        subjects = [(kind, args.name) for kind in registry.kinds_of(args.name, plugins)]
        if not subjects:
            valid = [name for kind in registry.KINDS for name in registry.names(kind, plugins)]
            raise unknown("method or task", args.name, valid, see="opdbench list")
    results = [result for kind, name in subjects for result in _check(kind, name, plugins, args.data)]
    failed = [result for result in results if not result.passed]
    if args.json:
        print_json({"passed": not failed, "checks": [result._asdict() for result in results]})
    else:
        print(_text(results))
    return CHECK_FAILED if failed else 0


def _check(kind: Kind, name: str, plugins: list[str], data: str | None) -> Iterator[Result]:
    from opdbench import conformance

    cls = registry.load(kind, name, plugins)
    checks = conformance.check_method(cls) if kind == "method" else conformance.check_task(cls, data=data)
    for check in checks:
        yield Result(kind, name, check.name, check.passed, check.message)


def _text(results: list[Result]) -> str:
    """Every failure on its own line; what passed once for all the settings that it was tried with."""
    failed = [result for result in results if not result.passed]
    rows = [[result.name, "FAIL", result.check, result.message] for result in failed]
    for (name, check), settings in _passed(results).items():
        remarks = sorted({result.message for result in settings if result.message})
        tried = f"{len(settings)} settings" if len(settings) > 1 else ""
        rows.append([name, "pass", check, "; ".join(part for part in (tried, *remarks) if part)])
    verdict = f"{len(failed)} of {len(results)} checks failed" if failed else f"all {len(results)} checks passed"
    return table(["name", "", "check", "remark"], rows) + f"\n\n{verdict}"


def _passed(results: list[Result]) -> dict[tuple[str, str], list[Result]]:
    """What passed, by subject and check; a check's settings stand in brackets behind its name."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        if result.passed:
            groups.setdefault((result.name, result.check.partition(" [")[0]), []).append(result)
    return groups
