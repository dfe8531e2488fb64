"""Student-driven distillation on an Atari game beside sb3_distill's loop: `python -m benchmarks.sb3_distill`.

The same game, rules, teacher, student, initial weights, copies, steps a round, passes and minibatches. sb3_distill is
on no package index, so its loop is implemented again on Stable-Baselines3 (benchmarks/workers/sb3_distill_loop.py),
which needs `pip install -e '.[atari,rl]' opencv-python-headless` in the environment of this command. The teacher has
random weights: what it says costs the same. What is compared is CPU time for every environment step, updates included,
of one thread but for ALE's own; both take turns, in processes of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.pipe import Worker, interleave
from benchmarks.sb3_distill_setting import Setting
from benchmarks.timing import Spread, table

BAR = 2.0  # times sb3_distill's environment steps for a CPU second
SETTINGS = {"student-distill": {"copies": 16, "horizon": 5, "epochs": 1, "minibatch": 80, "rounds": 8},
            "ppd": {"copies": 16, "horizon": 64, "epochs": 4, "minibatch": 512, "rounds": 1}}
TINY = {"copies": 2, "horizon": 4, "epochs": 2, "minibatch": 4, "rounds": 1}
Reports = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    ratios = [_compare(method, given) for method in given.methods.split(",")]
    return 0 if min(ratios) >= BAR or not given.strict else 3


def _compare(method: str, given: argparse.Namespace) -> float:
    """Prints one method's table; how many times sb3_distill's steps opdbench makes in a CPU second."""
    sizes = TINY if given.tiny else SETTINGS[method] | ({"rounds": given.rounds} if given.rounds else {})
    setting = Setting(method, given.game, given.teacher, given.student, **sizes)
    modules = ["sb3_distill_opdbench", *([] if given.no_peer else ["sb3_distill_loop"])]
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(sys.executable, f"benchmarks.workers.{module}", asdict(setting)))
                   for module in modules]
        reports = interleave(workers, warmup=1, repeats=given.repeats)
        names = [worker.about["name"] for worker in workers]
        versions = "; ".join(f"{worker.about['name']}: {worker.about['version']}" for worker in workers)
    passes = f"{setting.epochs} passes in minibatches of {setting.minibatch}" if method == "ppd" else "one update"
    print(f"{method} on {setting.game}: teacher `{setting.teacher}`, student `{setting.student}`, a round of "
          f"{setting.copies} copies x {setting.horizon} steps and {passes}; {given.repeats} turns of "
          f"{setting.steps():,} steps.\n")
    header = (method, "CPU µs a step", "collecting", "teacher and updates", "steps a CPU second", "KL to the teacher",
              "peak memory, MB")
    print(table(header, [_row(name, own) for name, own in zip(names, reports, strict=True)]))
    ratio = _cpu(reports[-1]).median / _cpu(reports[0]).median
    if not given.no_peer:
        print(f"\nopdbench makes {ratio:.2f} times the environment steps of sb3_distill's loop for a CPU second (the "
              f"bar: {BAR:.0f}).")
    print(f"\nVersions: {versions}.\n")
    return ratio


def _row(name: str, reports: Reports) -> list[str]:
    cpu, peak = _cpu(reports), max(report["peak"] for report in reports)
    parts = [median(1e6 * report["parts"][part] / report["steps"] for report in reports)
             for part in ("collect", "train")]
    return [name, f"{cpu.median:,.0f} ({cpu.low:,.0f} to {cpu.high:,.0f})", *(f"{part:,.0f}" for part in parts),
            f"{1e6 / cpu.median:,.0f}", f"{reports[0]['loss']:.3f}", f"{peak / 1e6:,.0f}"]


def _cpu(reports: Reports) -> Spread:
    return Spread.of([1e6 * report["cpu"] / report["steps"] for report in reports])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sb3_distill", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default="student-distill,ppd")
    parser.add_argument("--game", default="pong")
    parser.add_argument("--teacher", default="teacher", help="its network; Mnih's by default")
    parser.add_argument("--student", default="net3", help="its network")
    parser.add_argument("--rounds", type=int, help="of collecting and updating in a turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns that count")
    parser.add_argument("--tiny", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--no-peer", action="store_true", help="opdbench alone")
    parser.add_argument("--strict", action="store_true", help="fail (exit code 3) below the bar")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
