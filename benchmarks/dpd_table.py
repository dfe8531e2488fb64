"""Who should act while a policy is distilled: the six objectives on random grid worlds, scored exactly.

    python -m benchmarks.dpd_table --grids 10

After every round the student's expected return is computed from the world's tables, so that nothing is an estimate. Its
share of the gap is (return - return of the uniform policy) / (teacher's return - return of the uniform policy).
"""

from __future__ import annotations

import argparse
import json
import math
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
    """Markdown: medians over grids of the steps until half and 90% of the gap, and the mean share at the end."""
    lines = ["| objective | steps to 50% | steps to 90% | grids that got there | share at the end (worst) |",
             "| --- | --: | --: | --: | --: |"]
    for name, runs in curves.items():
        half, most = ([steps_until(run, level, per_round) for run in runs] for level in (0.5, 0.9))
        got_there = sum(math.isfinite(steps) for steps in most)
        ends = [run[-1] for run in runs]
        lines.append(f"| {name} | {_steps(median(half))} | {_steps(median(most))} | {got_there} of {len(runs)} "
                     f"| {fmean(ends):.2f} ({min(ends):.2f}) |")
    return lines


def _steps(steps: float) -> str:
    return f"{steps:,.0f}" if math.isfinite(steps) else "never"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, default=10, help="how many random grids, from number 0 on")
    parser.add_argument("--size", type=int, default=20)
    parser.add_argument("--corrupted", type=float, default=0.0, help="share of cells in which the teacher is wrong")
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--horizon", type=int, default=64)
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--out", type=Path, help="write all curves as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    setting = Setting(arguments.size, arguments.corrupted, arguments.rounds, arguments.batch, arguments.horizon,
                      arguments.lr)
    curves = {name: [curve(grid, params, setting) for grid in range(arguments.grids)]
              for name, params in VARIANTS.items()}
    if arguments.out is not None:
        arguments.out.write_text(json.dumps({"setting": setting._asdict(), "curves": curves}) + "\n")
    print("\n".join([f"{arguments.grids} grids, {setting}", "", *table(curves, setting.batch * setting.horizon)]))


if __name__ == "__main__":
    main()
