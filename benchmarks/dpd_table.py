"""Who should act while a policy is distilled: the six objectives on random grid worlds, scored exactly.

    OMP_NUM_THREADS=1 python -m benchmarks.dpd_table --grids 10 --jobs 2

After every round the student's expected return is computed from the world's tables, so that nothing is an estimate. Its
share of the gap is (return - return of the uniform policy) / (teacher's return - return of the uniform policy).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np
import torch

from opdbench.baselines.dpd import DPD
from opdbench.context import Context
from opdbench.ledger import Ledger
from opdbench.loop import Trainer
from opdbench.rl.table import TablePolicy
from opdbench.rl.world import ControlWorld, fresh_student
from opdbench.schema.spec import Budget, Execution, Training
from opdbench.stats.compare import mean_ratio
from opdbench.tasks.grid_world import GridWorld

VARIANTS: dict[str, dict[str, Any]] = {
    "teacher": {"variant": "teacher"},
    "on-policy": {"variant": "on-policy"},
    "entropy-regularised": {"variant": "entropy-regularised", "student_entropy": True, "baseline": "mean"},
    "n-distill": {"variant": "n-distill", "baseline": "mean"},
    "expected-entropy-regularised": {"variant": "expected-entropy-regularised", "student_entropy": True,
                                     "baseline": "mean"},
    "teacher-value": {"variant": "teacher-value"},
    "n-distill + R": {"variant": "n-distill", "baseline": "mean", "reward": 1.0},
    "on-policy, value gate": {"variant": "on-policy", "value_gate": True},
}


class Setting(NamedTuple):
    """What all variants have in common."""

    size: int
    corrupted: float
    rounds: int
    batch: int
    horizon: int
    lr: float


def curves_of(grid: int, names: Sequence[str], setting: Setting) -> dict[str, list[float]]:
    """Every objective's curve on one grid."""
    torch.set_num_threads(1)
    return {name: curve(grid, VARIANTS[name], setting) for name in names}


def curve(grid: int, params: dict[str, Any], setting: Setting) -> list[float]:
    """The share of the gap after 0, 1, 2, ... rounds."""
    task = GridWorld(params=GridWorld.Params(grid=grid, size=setting.size, corrupted=setting.corrupted))
    student, teacher = fresh_student(task, 0), task.exact_teacher()
    assert isinstance(student, TablePolicy) and isinstance(teacher, TablePolicy)
    mdp = task.grid.mdp()
    start, best = (mdp.expected_return(_probabilities(policy)) for policy in (student, teacher))
    training = Training(lr=setting.lr, schedule="linear", batch=setting.batch, horizon=setting.horizon)
    context = Context(ControlWorld(task, student, teacher, seed=0), training, Budget(steps=setting.rounds),
                      Execution(), Ledger(), seed=0)
    trainer, shares = Trainer(DPD(DPD.Params(**params)), context), [0.0]
    for _ in range(setting.rounds):
        trainer.step()
        shares.append((mdp.expected_return(_probabilities(student)) - start) / (best - start))
    return shares


def _probabilities(policy: TablePolicy) -> np.ndarray:
    return policy.table.detach().double().softmax(-1).numpy()


def steps_until(shares: list[float], level: float, per_round: int) -> float:
    """Environment steps until the share first reaches `level`; infinite when it never does."""
    reached = [number for number, share in enumerate(shares) if share >= level]
    return reached[0] * per_round if reached else math.inf


def table(curves: dict[str, list[list[float]]], per_round: int) -> list[str]:
    """Markdown: medians over grids of the steps until half and 90% of the gap; how many times fewer than teacher-driven
    distillation needs to 90%, as geometric mean over the grids where both get there; and the mean share at the end."""
    lines = ["| objective | steps to 50% | steps to 90% | grids that got there "
             "| times faster than `teacher` to 90% (95%) | share at the end (worst) |",
             "| --- | --: | --: | --: | --: | --: |"]
    until = {name: [[steps_until(run, level, per_round) for run in runs] for level in (0.5, 0.9)]
             for name, runs in curves.items()}
    for name, runs in curves.items():
        half, most = until[name]
        ends, got_there = [run[-1] for run in runs], sum(map(math.isfinite, most))
        lines.append(f"| {name} | {_steps(median(half))} | {_steps(median(most))} | {got_there} of {len(runs)} "
                     f"| {_faster(until['teacher'][1], most) if 'teacher' in until else '-'} "
                     f"| {fmean(ends):.2f} ({min(ends):.2f}) |")
    return lines


def _faster(than: list[float], steps: list[float]) -> str:
    ratios = [theirs / ours for theirs, ours in zip(than, steps, strict=True)
              if math.isfinite(theirs) and math.isfinite(ours)]
    if not ratios or than is steps:
        return "-"
    mean, low, high, _ = mean_ratio(ratios)
    return f"{mean:.2f} ({low:.2f} to {high:.2f})" if len(ratios) > 1 else f"{mean:.2f}"


def _steps(steps: float) -> str:
    return f"{steps:,.0f}" if math.isfinite(steps) else "never"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, default=10, help="how many random grids, from number 0 on")
    parser.add_argument("--size", type=int, default=20)
    parser.add_argument("--corrupted", type=float, default=0.0, help="share of cells in which the teacher is wrong")
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--horizon", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--only", action="append", choices=VARIANTS, help="this objective (repeatable)")
    parser.add_argument("--jobs", type=int, default=1, help="grids at a time")
    parser.add_argument("--out", type=Path, help="write all curves as JSON")
    given = parser.parse_args(argv)
    setting = Setting(given.size, given.corrupted, given.rounds, given.batch, given.horizon, given.lr)
    names = given.only or list(VARIANTS)
    curves: dict[str, list[list[float]]] = {name: [] for name in names}
    with ProcessPoolExecutor(given.jobs) as pool:
        for number, found in enumerate(pool.map(partial(curves_of, names=names, setting=setting), range(given.grids))):
            print(f"grid {number}", file=sys.stderr)
            for name in names:
                curves[name].append(found[name])
    if given.out is not None:
        given.out.write_text(json.dumps({"setting": setting._asdict(), "curves": curves}) + "\n")
    print("\n".join([f"{given.grids} grids, {setting}", "", *table(curves, setting.batch * setting.horizon)]))


if __name__ == "__main__":
    main()
