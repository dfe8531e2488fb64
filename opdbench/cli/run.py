"""Train a student with a method on a task, and record what it cost and scored."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from opdbench import registry
from opdbench.cli.arguments import add_json, add_plugin, seed_range
from opdbench.errors import UsageError, UserError
from opdbench.probes import PROBES

if TYPE_CHECKING:
    from opdbench.resolve import Request
    from opdbench.schema.record import Record
    from opdbench.store import RunFolder


class Ended(NamedTuple):
    """How one run ended."""

    record: Record
    place: str  # where the record is
    exit_code: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="suite:NAME|recipe:NAME",
                        help="all runs of a suite, or the stages of a recipe (shipped ones, or YAML files), instead of "
                             "one run")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs of a suite at a time (default 1)")
    parser.add_argument("--only", action="append", default=[], metavar="WORD",
                        help="of a suite: only this task, arm or task/arm (repeatable)")
    parser.add_argument("--method", metavar="M", help="a method (opdbench list methods)")
    parser.add_argument("--task", metavar="T", help="a task (opdbench list tasks)")
    parser.add_argument("--profile", default="auto", metavar="NAME",
                        help="a hardware profile; auto looks at the machine")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, default=0, metavar="N", help="the run's seed (default 0)")
    seeds.add_argument("--seeds", metavar="A:B", help="one run for each seed from A up to, not including, B")
    parser.add_argument("--budget", action="append", default=[], metavar="AXIS=N",
                        help="stop at steps=, tokens=, student_tokens=, teacher_tokens= or seconds= "
                             "(default: the task's)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings",
                        help="set any documented parameter (repeatable)")
    parser.add_argument("--preset", metavar="NAME", help="the method as the paper has it (paper, the default), or as "
                                                         "other code does (opdbench show METHOD lists them)")
    parser.add_argument("--probe", action="append", default=[], metavar="NAME",
                        help=f"watch something besides: {', '.join(PROBES)} (repeatable)")
    parser.add_argument("--student", metavar="MODEL", help="starting student: shipped name, local folder or hub id; on "
                                                           "a control task also fresh:64x64, a new network")
    parser.add_argument("--teacher", metavar="MODEL", help="teacher: shipped name, local folder, hub id, SB3 zip, or a "
                                                           "server's address (http://HOST:PORT/v1#MODEL)")
    parser.add_argument("--trust-pickle", action="store_true",
                        help="unpickle an SB3 zip that needs it (a pickle can run any code)")
    parser.add_argument("--data", metavar="DIR", help="folder or hub id with the task's data")
    parser.add_argument("--results", default="results", metavar="DIR", help="where records go (default ./results)")
    parser.add_argument("--fresh", action="store_true", help="run again even if this run is finished or under way")
    parser.add_argument("--dry-run", action="store_true",
                        help="show the resolved plan and its estimated cost; start nothing")
    add_plugin(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    if args.target is not None:
        return _suite(args)
    _check_named(args)
    seeds = _seeds(args)
    # A misspelt name is answered from the source, before torch is imported.
    registry.describe("method", args.method, args.plugin)
    registry.describe("task", args.task, args.plugin)
    if args.dry_run:
        return _dry_run(args, seeds)
    ended: list[Ended] = []
    for seed in seeds:
        ended.append(_run(args, seed))
        if ended[-1].record.status == "cancelled":  # whoever stops one seed means all of them
            break
    if args.json:
        _print_json(args, ended)
    elif len(ended) > 1:
        from opdbench.report.summary import over_seeds

        print("\n" + over_seeds([run.record for run in ended]))
    return max(run.exit_code for run in ended)


def _seeds(args: argparse.Namespace) -> list[int]:
    if args.seeds is None:
        if args.seed < 0:
            raise UsageError(f"--seed {args.seed} is negative", "use 0 or a positive number")
        return [args.seed]
    return seed_range(args.seeds)


def _suite(args: argparse.Namespace) -> int:
    from opdbench.cli import outer, suite

    if args.target.startswith(outer.PREFIX):
        return outer.execute(args)
    if not args.target.startswith(suite.PREFIX):
        raise UsageError(f"{args.target!r} is no suite and no recipe", f"write opdbench run {suite.PREFIX}NAME, "
                         f"{outer.PREFIX}NAME, or opdbench run --method M --task T")
    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs} is not a positive number", "write --jobs 2 for two runs at a time")
    return suite.execute(args)


def _check_named(args: argparse.Namespace) -> None:
    missing = [flag for flag, value in (("--method", args.method), ("--task", args.task)) if value is None]
    if missing:
        raise UsageError(f"opdbench run: the following arguments are required: {', '.join(missing)}",
                         "opdbench run --help")


def _request(args: argparse.Namespace, seed: int) -> Request:
    from opdbench.resolve import Request

    return Request(method=args.method, task=args.task, profile=args.profile, seed=seed, budget=tuple(args.budget),
                   settings=tuple(args.settings), student=args.student, teacher=args.teacher, data=args.data,
                   plugins=tuple(args.plugin), trust_pickle=args.trust_pickle, preset=args.preset,
                   probes=tuple(args.probe))


def _run(args: argparse.Namespace, seed: int) -> Ended:
    """One run, its progress on stderr and, unless --json, its summary on stdout."""
    from opdbench import run
    from opdbench.cli.progress import Display
    from opdbench.report.summary import advice, summary
    from opdbench.resolve import resolve
    from opdbench.signals import Cancelled
    from opdbench.store import RECORD, read_record

    unit = "tokens" if registry.describe("task", args.task, args.plugin).domains == ("lm",) else "steps"
    with Display(f"{args.method} on {args.task}, seed {seed}", unit) as display:
        display.phase("resolving")
        plan = resolve(_request(args, seed))
        folder = run.run_folder(Path(args.results), plan.spec.recipe)
        place = str(folder.path / RECORD)
        display.note(f"profile {plan.spec.execution.profile}: {plan.profile_reason}")
        if not args.fresh and (finished := _finished(folder)) is not None:
            _check_watched(args, finished)
            display.note("this run is finished; its record follows (add --fresh to run it again)" + _made_by(finished))
        try:
            record = run.execute(plan, folder, display, fresh=args.fresh)
            exit_code = 0 if record.status == "completed" else 1
        except Cancelled as signal:
            record, exit_code = read_record(folder.path / RECORD), 128 + signal.number  # as shells report it
    if not args.json:
        print(f"{summary(record, place)}\n\nnext: {advice(record, place)}")
    elif record.status != "completed":
        print(f"opdbench: {record.status}: {record.reason}\n  fix: {advice(record, place)}", file=sys.stderr)
    return Ended(record, place, exit_code)


def _finished(folder: RunFolder) -> Record | None:
    """The record of a run that has come to its end."""
    record = folder.read_record() if folder.path.exists() else None
    return record if record is not None and record.status == "completed" else None


def _check_watched(args: argparse.Namespace, record: Record) -> None:
    if unseen := set(args.probe) - set(record.probes):
        raise UserError(f"this run is finished, and nobody watched its {', '.join(sorted(unseen))}",
                        "add --fresh to run it again")


def _made_by(record: Record) -> str:
    """A word when another commit made a record: only the method's own code counts in a recipe. Nothing where either is
    not known, as in a wheel."""
    from opdbench import provenance

    made, now = record.provenance.get("commit"), provenance.checkout().commit
    if made is None or now is None or made == now:
        return ""
    return f"; it was made at commit {made[:12]}, and this is {now[:12]}"


def _print_json(args: argparse.Namespace, ended: list[Ended]) -> None:
    """One JSON object: the run's, or with --seeds one that lists them all."""
    from opdbench.report.summary import as_json
    from opdbench.text import print_json

    values = [as_json(record, place) for record, place, _ in ended]
    print_json(values[0] if args.seeds is None else {
        "status": "completed" if all(value["status"] == "completed" for value in values) else "failed", "runs": values})


def _dry_run(args: argparse.Namespace, seeds: list[int]) -> int:
    from opdbench.estimate import estimate
    from opdbench.report.plan import as_json, as_text
    from opdbench.resolve import resolve
    from opdbench.text import print_json

    plan = resolve(_request(args, seeds[0]))
    cost = estimate(plan)
    if args.json:
        print_json(as_json(plan, cost, seeds, args.results))
    else:
        print(as_text(plan, cost, seeds, args.results))
    return 0
