"""`opdbench run recipe:NAME`: runs in sequence, and the scores that the recipe is about; type it again to go on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

from opdbench.cli.arguments import seed_range
from opdbench.cli.suite import refuse_settings
from opdbench.schema.record import Record
from opdbench.text import print_json, table

PREFIX = "recipe:"


def execute(args: argparse.Namespace) -> int:
    """Run every stage at every seed. Of the run's options only --seed, --seeds, --results, --dry-run and --json mean
    something to a recipe."""
    from opdbench import outer
    from opdbench.schema.outer import Line, read

    name, recipe = read(args.target.removeprefix(PREFIX))
    refuse_settings(args, "recipe")
    results, seeds = Path(args.results), seed_range(args.seeds) if args.seeds else [args.seed]
    if args.dry_run:
        rows = [[stage_name, " ".join(outer.job(stage_name, stage, seeds[0], results, {}).command)]
                for stage_name, stage in recipe.stages.items()]
        print(table(["stage", "run"], rows))
        return 0
    say = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
    ended = {seed: {done.stage: done for done in outer.play(recipe, seed, results, say)} for seed in seeds}

    def scores(line: Line) -> list[float]:
        return [_greedy(ended[seed][line.stage].record, line.phase) for seed in seeds]

    if args.json:
        print_json({"recipe": name, "seeds": seeds, "status": "completed",
                    "report": [{**line.model_dump(), "scores": scores(line), "mean": fmean(scores(line))}
                               for line in recipe.report],
                    "records": {stage: [str(ended[seed][stage].folder) for seed in seeds] for stage in recipe.stages}})
        return 0
    rows = [[line.label, f"{100 * fmean(scores(line)):.1f}%", " ".join(f"{100 * score:.1f}" for score in scores(line))]
            for line in recipe.report]
    scored = table(["", "greedy", f"seeds {seeds[0]} to {seeds[-1]}"], rows)
    print(f"{recipe.title}\n\n{scored}\n\nrecords in {results}")
    return 0


def _greedy(record: Record, phase: str) -> float:
    return float(getattr(record, phase)["greedy"].mean)
