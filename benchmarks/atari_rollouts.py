"""Rollouts of an Atari game beside ALE's own vector environment: `python -m benchmarks.atari_rollouts`.

The same game, track and number of copies. ALE takes random actions and gives its frames to nobody; opdbench runs its
student on every state, samples an action, and keeps frames, actions, log-probabilities and rewards. Both take turns, in
processes of their own. What is compared is CPU time for every step (of all threads); wall time stands beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.pipe import Worker, interleave
from benchmarks.timing import Spread, table

BAR = 0.7  # of ALE's own throughput
Reports = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    common = {"copies": given.copies, "steps": given.steps}
    with ExitStack() as stack:
        ale = stack.enter_context(Worker(sys.executable, "benchmarks.workers.atari_ale",
                                         common | {"rom": given.game.replace("-", "_")}))
        ours = stack.enter_context(Worker(sys.executable, "benchmarks.workers.atari_opdbench", common | {
            "task": f"atari/{given.game}@v5-sticky", "network": given.network}))
        workers = [ale, ours]
        reports = interleave(workers, warmup=1, repeats=given.repeats)
        names = [worker.about["name"] for worker in workers]
        versions = "; ".join(f"{worker.about['name']}: {worker.about['version']}" for worker in workers)
    header = (f"{given.game}, {given.copies} copies, {given.repeats} turns of {given.steps} steps", "CPU µs a step",
              "steps a CPU second", "steps a second of wall time", "peak memory, MB")
    print(table(header, [_row(name, own) for name, own in zip(names, reports, strict=True)]))
    pairs = zip(*reports, strict=True)  # turns beside each other, since a machine's speed changes within a minute
    share = Spread.of([(ale["cpu"] / ale["steps"]) / (ours["cpu"] / ours["steps"]) for ale, ours in pairs])
    print(f"\nopdbench reaches {share.median:.0%} ({share.low:.0%} to {share.high:.0%}) of ALE's throughput for a CPU "
          f"second (the bar: {BAR:.0%}).\n"
          f"\nVersions: {versions}.")
    return 0 if share.median >= BAR or not given.strict else 3


def _row(name: str, reports: Reports) -> list[str]:
    cpu, wall = _cpu(reports), Spread.of([report["steps"] / report["wall"] for report in reports])
    peak = max(report["peak"] for report in reports)
    return [name, f"{cpu.median:.0f} ({cpu.low:.0f} to {cpu.high:.0f})", f"{1e6 / cpu.median:,.0f}",
            f"{wall.median:,.0f}", f"{peak / 1e6:,.0f}"]


def _cpu(reports: Reports) -> Spread:
    return Spread.of([1e6 * report["cpu"] / report["steps"] for report in reports])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.atari_rollouts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="pong")
    parser.add_argument("--network", default="net3", help="of the student")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--steps", type=int, default=250, help="of every copy in a turn")
    parser.add_argument("--repeats", type=int, default=25, help="turns that count")
    parser.add_argument("--strict", action="store_true", help="fail (exit code 3) below the bar")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
