"""Train the teacher, or the starting student, that ships with a task: `opdbench teacher train TASK`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench import registry
from opdbench.cli.arguments import add_json, add_plugin, one_of
from opdbench.cli.output import print_json
from opdbench.errors import UsageError, UserError

if TYPE_CHECKING:
    from opdbench.task import Task

LINE_SECONDS = 5.0  # between progress lines
ROLES = ("teacher", "student")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", type=one_of("action", ["train"]), metavar="train", help="what to do: train")
    parser.add_argument("task", metavar="TASK", help="a task that has a recipe for its models")
    parser.add_argument("--role", default="teacher", type=one_of("role", ROLES), metavar="teacher|student",
                        help="which model (default: teacher)")
    parser.add_argument("--out", metavar="DIR", help="folder for the model (default: models/TASK/ROLE)")
    parser.add_argument("--steps", type=int, metavar="N", help="training steps (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    add_plugin(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    if args.seed < 0 or (args.steps is not None and args.steps < 1):
        raise UsageError("--seed must be 0 or more, and --steps 1 or more")
    task = registry.load("task", args.task, args.plugin)()
    out = Path(args.out).expanduser() if args.out else Path("models") / task.name / args.role
    manifest = _train(task, args.role, out, args.steps, args.seed)
    if args.json:
        print_json({"folder": str(out), "manifest": manifest})
    else:
        print(f"{task.id} {args.role}: {out}\n{manifest_score(manifest)}\n"
              f"next: opdbench run --method METHOD --task {task.name} --{args.role} {out}")
    return 0


def _train(task: Task, role: str, out: Path, steps: int | None, seed: int) -> dict[str, Any]:
    import torch

    # Small models: a second thread costs more than it gives, and one makes the result independent of the machine.
    torch.set_num_threads(1)
    if task.domain == "rl":
        from opdbench.rl import train_teacher as rl

        if role == "student":
            raise UserError(f"the student of {task.name} is a fresh network, which each run makes from its seed",
                            "leave out --role student")
        return rl.train(task, out, steps=steps, seed=seed, progress=Progress())  # type: ignore[arg-type]
    from opdbench.lm import train_teacher as lm

    return lm.train(task, role, out, steps=steps, seed=seed, progress=Progress())


class Progress:
    """A line on stderr now and then."""

    def __init__(self) -> None:
        self._began = self._last = time.perf_counter()

    def __call__(self, done: int, total: int, figure: float) -> None:
        now = time.perf_counter()
        if now - self._last >= LINE_SECONDS or done >= total:
            self._last = now
            left = (now - self._began) / max(done, 1) * max(total - done, 0)
            print(f"{done:,} of {total:,} steps, {figure:.4g}, {left:.0f} s left", file=sys.stderr)


def manifest_score(manifest: dict[str, Any]) -> str:
    from opdbench.cli.show import leaves

    return "measured: " + ", ".join(leaves(manifest.get("score", {})))
