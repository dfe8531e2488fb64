"""`opdbench run suite:NAME`: all runs of a suite, N at a time; type it again to go on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from opdbench.cli.arguments import seed_range
from opdbench.errors import UsageError, unknown
from opdbench.text import print_json, table

PREFIX = "suite:"


def execute(args: argparse.Namespace) -> int:
    """Tune, run, and say what failed. Settings of a suite are its own: of the run's options only --seeds, --results,
    --jobs, --only, --dry-run, --json and --fresh (tune anew; a timed suite runs all anew) mean something to it."""
    from opdbench import suite as suites
    from opdbench.schema.suite import read

    name, suite = read(args.target.removeprefix(PREFIX))
    refuse_settings(args, "suite")
    if suite.timed and args.jobs > 1:
        raise UsageError(f"suite {name} is timed, and runs beside each other take longer", "leave --jobs out")
    seeds, results = seed_range(args.seeds or suite.seeds), Path(args.results)
    places = _chosen(suite.places(), args.only)
    if args.dry_run:
        rows = [[task, arm, " ".join(suites.job(suite, task, arm, seeds[0], None, results).command)]
                for task, arm in places]
        print(table(["task", "arm", "first run"], rows))
        return 0
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    choices, file = {}, results / "suites" / f"{name}.json"
    if suite.tune is not None:
        known = json.loads(file.read_text()) if file.exists() and not args.fresh else {}
        choices = suites.tune(suite, results.with_name(f"{results.name}-tuning"), places, jobs=args.jobs, known=known,
                              say=say)
        kept = {tuple(place.split("/", 1)): suites.Choice(entry["value"], entry["scores"])
                for place, entry in known.get("choices", {}).items()}
        suites.save_choices(file, suite, {**kept, **choices})
    untuned = [place for place in places if suite.tune is not None and place not in choices]
    wanted = [suites.job(suite, task, arm, seed, choices[task, arm].value if (task, arm) in choices else None, results)
              for task, arm in places if (task, arm) not in untuned for seed in seeds]
    ended = (suites.run_timed(wanted, fresh=args.fresh, say=say) if suite.timed else
             suites.run_all(wanted, jobs=args.jobs, say=say))
    failed = [done for done in ended if done.status != "completed"]
    if args.json:
        print_json({"suite": name, "runs": len(ended), "tuning": str(file) if choices else None,
                    "failed": [{"run": done.job.title, "status": done.status, "reason": done.reason}
                               for done in failed],
                    "untuned": ["/".join(place) for place in untuned]})
    else:
        print(f"{len(ended) - len(failed)} of {len(ended)} runs completed; records in {results}")
        for done in failed:
            print(f"  {done.job.title}: {done.status}: {done.reason}")
        for task, arm in untuned:
            print(f"  {arm} on {task}: every run of the grid failed")
    return 1 if failed or untuned else 0


def _chosen(places: list[tuple[str, str]], only: list[str]) -> list[tuple[str, str]]:
    """The (task, arm) pairs that `--only` names by task, arm or task/arm; all without one."""
    known = {word for task, arm in places for word in (task, arm, f"{task}/{arm}")}
    for word in only:
        if word not in known:
            raise unknown("task or arm of this suite:", word, known)
    return [(task, arm) for task, arm in places
            if not only or {task, arm, f"{task}/{arm}"} & set(only)]


def refuse_settings(args: argparse.Namespace, kind: str) -> None:
    """What is given as data takes no settings."""
    given = {"--method": args.method, "--task": args.task, "--set": args.settings, "--budget": args.budget,
             "--preset": args.preset, "--probe": args.probe, "--student": args.student,
             "--teacher": args.teacher, "--data": args.data}
    for flag, value in given.items():
        if value:
            raise UsageError(f"a {kind} says itself what it runs: {flag} means nothing to it",
                             f"leave it out, or copy the {kind}'s YAML file, change it and run {kind}:FILE.yaml")
