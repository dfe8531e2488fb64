"""`opdbench run recipe:NAME`: runs in sequence, and the scores that the recipe is about; type it again to go on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import fmean

from opdbench.cli.arguments import seed_range
from opdbench.cli.suite import refuse_settings
from opdbench.schema.record import Record, Score
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
        return [_greedy(ended[seed][line.stage].record, line.phase).mean for seed in seeds]

    def written(line: Line) -> list[str]:
        shares = all(_greedy(ended[seed][line.stage].record, line.phase).interval == "wilson" for seed in seeds)
        factor, sign = (100, "%") if shares else (1, "")
        return [line.label, f"{factor * fmean(scores(line)):.1f}{sign}",
                " ".join(f"{factor * score:.1f}" for score in scores(line))]

    if args.json:
        print_json({"recipe": name, "seeds": seeds, "status": "completed",
                    "report": [{**line.model_dump(), "scores": scores(line), "mean": fmean(scores(line))}
                               for line in recipe.report],
                    "records": {stage: [str(ended[seed][stage].folder) for seed in seeds] for stage in recipe.stages}})
        return 0
    scored = table(["", "greedy", f"seeds {seeds[0]} to {seeds[-1]}"], [written(line) for line in recipe.report])
    print(f"{recipe.title}\n\n{scored}\n\nrecords in {results}")
    return 0


def _greedy(record: Record, phase: str) -> Score:
    score: Score = getattr(record, phase)["greedy"]
    return score
