"""How many games are won, drawn and lost: `python -m benchmarks.win_rates [RESULTS] --task tic-tac-toe`.

Read from the raw outcomes of the records, where a score is +1, 0 or -1. Shares are over the games of all seeds of a
method and its settings, in percent, with 95% intervals that hold for other seeds and other games.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.timing import table
from opdbench import registry
from opdbench.report.runs import setting_of
from opdbench.schema.record import Record
from opdbench.stats.crossed import mean_score
from opdbench.store import read_outcomes, read_record

RESULTS = {"wins": 1.0, "draws": 0.0, "losses": -1.0}


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    scores: dict[str, list[list[float]]] = defaultdict(list)
    for path in sorted((given.results / given.task).glob("*/*/record.json")):
        record = read_record(path)
        if record.status == "completed" and "after" in record.outcomes:
            rows = [row for row in read_outcomes(path.parent, record.outcomes["after"]) if row["mode"] == given.mode]
            scores[_name(record)].append([row["score"] for row in sorted(rows, key=lambda row: str(row["id"]))])
    if not scores:
        print(f"no completed run of {given.task} has a record in {given.results}", file=sys.stderr)
        return 2
    print(table(("method", "seeds", "games", *RESULTS),
                [(name, len(score_se), len(score_se[0]), *(_share(np.array(score_se), value)
                                                           for value in RESULTS.values()))
                 for name, score_se in sorted(scores.items())]))
    return 0


def _name(record: Record) -> str:
    """The method, with its parameters that are not the default, and the number of its setting."""
    params = registry.load("method", record.recipe.method).Params().model_dump()
    own = [f"{key}={value}" for key, value in record.recipe.params.items() if params.get(key) != value]
    return " ".join([record.recipe.method, *own, f"#{setting_of(record).digest[:4]}"])


def _share(score_se: np.ndarray[tuple[int, int], np.dtype[np.float64]], value: float) -> str:
    found = mean_score((score_se == value).astype(float), shared=True)
    return f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=Path("results"))
    parser.add_argument("--task", default="tic-tac-toe")
    parser.add_argument("--mode", choices=["greedy", "sampled"], default="greedy")
    return parser


if __name__ == "__main__":
    sys.exit(main())
