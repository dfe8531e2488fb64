"""DAgger on CartPole beside imitation: `python -m benchmarks.dagger_cartpole --imitation-python PYTHON`.

The same teacher, the same student network (two layers of 32), each tool's own defaults for everything else, trained
until the student averages at least 475 over 100 greedy episodes; evaluation is off the clock. What is compared is CPU
time for every environment step, training included, and CPU time to the target. One thread each; whole runs in turns.

imitation 1.0.1 needs an environment of its own:

    python3.11 -m venv imitation-env
    imitation-env/bin/pip install torch==2.13.0 gymnasium==0.29.1 stable-baselines3==2.2.1 imitation==1.0.1
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.dagger_rules import Rules
from benchmarks.pipe import REPOSITORY, Worker, interleave
from benchmarks.timing import Spread, table

TEACHER = REPOSITORY / "tasks" / "models" / "cartpole" / "teacher"
Reports = Sequence[Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    given = _parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        arrays = Path(folder) / "teacher.npz"
        _write_arrays(arrays)
        passed = {"teacher": str(TEACHER), "teacher_arrays": str(arrays), "rules": asdict(Rules())}
        workers = [stack.enter_context(Worker(sys.executable, "benchmarks.workers.dagger_opdbench", passed))]
        if given.imitation_python is not None:
            workers.append(stack.enter_context(
                Worker(given.imitation_python, "benchmarks.workers.dagger_imitation", passed)))
        names = [worker.about["name"] for worker in workers]
        print(f"{given.seeds} runs each of {' and '.join(names)}, after one that does not count", file=sys.stderr)
        reports = interleave(workers, warmup=1, repeats=given.seeds)
        versions = "; ".join(f"{worker.about['name']}: {worker.about['version']}" for worker in workers)
    print(_report(dict(zip(names, reports, strict=True)), versions))
    return 0


def _write_arrays(path: Path) -> None:
    """The teacher as plain arrays, which imitation's environment can read without safetensors."""
    import numpy as np
    from safetensors.numpy import load_file

    arrays: dict[str, Any] = load_file(TEACHER / "policy.safetensors")
    np.savez(path, **arrays)


def _report(reports: Mapping[str, Reports], versions: str) -> str:
    header = ("DAgger on CartPole-v1, median (range) of runs", "CPU µs an environment step", "collecting", "training",
              "CPU s to the target", "environment steps", "updates", "return")
    lines = [table(header, [_row(name, own) for name, own in reports.items()]), ""]
    if len(reports) > 1:
        ours, theirs = (_per_step(own).median for own in reports.values())
        to_target = [median(report["cpu"] for report in own) for own in reports.values()]
        lines += [f"imitation needs {theirs / ours:.0f} times the CPU time of opdbench for an environment step, and "
                  f"{to_target[1] / to_target[0]:.0f} times to the target.", ""]
    return "\n".join([*lines, f"Versions: {versions}."])


def _row(name: str, reports: Reports) -> list[str]:
    if missed := [index for index, report in enumerate(reports) if report["score"] is None]:
        raise RuntimeError(f"{name} never reached the target in runs {missed}: there is nothing to compare")
    spread, to_target = _per_step(reports), Spread.of([report["cpu"] for report in reports])
    parts = [median(1e6 * report["parts"][part] / report["env_steps"] for report in reports)
             for part in ("collect", "train")]
    counts = [f"{median(report[name] for report in reports):,.0f}" for name in ("env_steps", "updates", "score")]
    return [name, f"{spread.median:.1f} ({spread.low:.1f} to {spread.high:.1f})", *(f"{part:.1f}" for part in parts),
            str(to_target), *counts]


def _per_step(reports: Reports) -> Spread:
    return Spread.of([1e6 * report["cpu"] / report["env_steps"] for report in reports])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dagger_cartpole", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--imitation-python", metavar="PYTHON", help="its environment's interpreter; without it "
                                                                     "opdbench runs alone")
    parser.add_argument("--seeds", type=int, default=5, help="counted runs of each")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
