"""Records: validate them, ask them questions in SQL, or write them in the formats of others."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from opdbench.cli.arguments import add_json, one_of
from opdbench.errors import CHECK_FAILED, UsageError
from opdbench.text import print_json, table
from opdbench.untrusted import inert

WHAT = ("validate", "query", "export")
FORMATS = ("hf", "eee")
DESCRIPTION = """
validate          every record below --results: schema, checksums, scores made of raw outcomes; exits 3 on any fault
query SQL         over the table runs: opdbench results query "SELECT method, avg(gap_greedy) FROM runs GROUP BY method"
                  (SELECT * FROM runs LIMIT 1 shows its columns)
export RECORD     --to hf --dataset OWNER/NAME: a file for .eval_results/ of the student's repository on the hub
                  --to eee --organization WHO --model OWNER/NAME: JSON for every_eval_ever, schema 0.3.0
"""


class Fault(NamedTuple):
    path: str
    problem: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, DESCRIPTION
    parser.add_argument("what", metavar="validate|query|export", type=one_of("choice", WHAT))
    parser.add_argument("argument", nargs="?", metavar="SQL|RECORD", help="the question, or the record to export")
    parser.add_argument("--results", default="results", metavar="DIR", help="where the records are (default ./results)")
    parser.add_argument("--to", type=one_of("format", FORMATS), metavar="hf|eee", help="format to export")
    parser.add_argument("--out", metavar="DIR", help="write the exported file below this folder (default: stdout)")
    for flag, meaning in (("--dataset", "hf: the benchmark's id on the hub"), ("--task-id", "hf: its task"),
                          ("--revision", "hf: of the data set"), ("--source", "hf: address of the record or board"),
                          ("--organization", "eee: who made the run"), ("--model", "eee: the student's OWNER/NAME")):
        parser.add_argument(flag, metavar="TEXT", help=meaning)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    if args.what != "validate" and args.argument is None:
        raise UsageError(f"opdbench results {args.what} needs {'a question' if args.what == 'query' else 'a record'}",
                         "opdbench results --help")
    return {"validate": _validate, "query": _query, "export": _export}[args.what](args)


def _validate(args: argparse.Namespace) -> int:
    from opdbench.report.runs import read_records, with_outcomes
    from opdbench.store import run_path

    results = Path(args.argument or args.results)
    runs, unreadable = read_records(results)
    faults = [Fault(str(path), problem) for path, problem in unreadable]
    for run in map(with_outcomes, runs):
        if run.problem is not None:
            faults.append(Fault(str(run.path), run.problem))
        elif run.path.absolute().parts[-3:] != (place := run_path(run.record.recipe, run.record.id)).parts:
            faults.append(Fault(str(run.path), f"it belongs into {place}"))
    counts = Counter(run.record.recipe_sha256 for run in runs)
    faults += [Fault(str(run.path), "there is another record of this run") for run in runs
               if counts[run.record.recipe_sha256] > 1]
    if args.json:
        print_json({"records": len(runs) + len(unreadable), "faults": [fault._asdict() for fault in faults]})
    else:
        print(inert("\n".join([*(f"{fault.path}: {fault.problem}" for fault in faults),
                               f"{len(runs) + len(unreadable)} records, {len(faults) or 'no'} faults"])))
    return CHECK_FAILED if faults else 0


def _query(args: argparse.Namespace) -> int:
    from opdbench.report.index import as_objects, as_rows, query

    answer = query(Path(args.results), args.argument)
    if args.json:
        print_json(as_objects(answer))
    else:
        print(inert(table(answer.columns, as_rows(answer))) if answer.columns else "")
    return 0


def _export(args: argparse.Namespace) -> int:
    from opdbench.regrade import folders
    from opdbench.report.export import check_one, every_eval_ever, hugging_face
    from opdbench.report.runs import with_outcomes

    needed = {"hf": ("dataset",), "eee": ("organization", "model"), None: ("to",)}[args.to]
    for name in needed:
        if getattr(args, name) is None:
            raise UsageError(f"opdbench results export needs --{name}", "opdbench results --help")
    run = with_outcomes(check_one(folders([Path(args.argument)])))
    if args.to == "hf":
        text = hugging_face(run, args.dataset, task_id=args.task_id, revision=args.revision, source=args.source)
        file = f".eval_results/{run.path.parent.parent.name}.yaml"
    else:
        file, content = every_eval_ever(run, args.organization, args.model)
        file, text = f"data/{file}", json.dumps(content, indent=1) + "\n"
    if args.out is None:
        print(inert(text), end="")
        return 0
    from opdbench.store import write_atomically

    write_atomically(Path(args.out) / file, text.encode())
    print(f"wrote {Path(args.out) / file}")
    return 0
