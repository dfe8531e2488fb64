"""Train the teacher, or the starting student, that ships with a task: `opdbench teacher train TASK`."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opdbench import registry
from opdbench.cli.arguments import add_json, add_plugin, one_of
from opdbench.cli.show import score_words
from opdbench.errors import UsageError, UserError
from opdbench.text import print_json

if TYPE_CHECKING:
    from opdbench.lm.lessons import Role
    from opdbench.task import Task

LINE_SECONDS = 5.0  # between progress lines
ROLES = ("teacher", "student", "bpe-teacher")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", type=one_of("action", ["train"]), metavar="train", help="what to do: train")
    parser.add_argument("task", metavar="TASK", help="a task that has a recipe for its models")
    parser.add_argument("--role", default="teacher", type=one_of("role", ROLES), metavar="teacher|student|bpe-teacher",
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
        print(f"{task.id} {args.role}: {out}\nmeasured: {score_words(manifest.get('score', {}))}\n"
              f"next: opdbench run --method METHOD --task {task.name} --{args.role.removeprefix('bpe-')} {out}")
    return 0


def _train(task: Task, role: Role, out: Path, steps: int | None, seed: int) -> dict[str, Any]:
    import torch

    from opdbench.task import ControlTask, LanguageTask

    # Small models: a second thread costs more than it gives, and one makes the result independent of the machine.
    torch.set_num_threads(1)
    if isinstance(task, ControlTask):
        from opdbench.rl import train_teacher as control

        if role == "bpe-teacher":
            raise UserError(f"{task.name} has no text, and no tokenizer to differ in", "leave out --role bpe-teacher")
        if role == "student":
            raise UserError(f"the student of {task.name} is a fresh network, which each run makes from its seed",
                            "leave out --role student")
        taught = isinstance(getattr(task, "teacher_recipe", None), control.TaughtRecipe)
        figure = "KL to its guide" if taught else "mean return"
        return control.train(task, out, steps=steps, seed=seed, progress=Progress(figure))
    from opdbench.lm import train_teacher as language

    assert isinstance(task, LanguageTask)
    return language.train(task, role, out, steps=steps, seed=seed, progress=Progress("loss"))


class Progress:
    """A line on stderr now and then."""

    def __init__(self, figure: str) -> None:
        self._figure = figure
        self._began = self._last = time.perf_counter()
        self._first: int | None = None  # steps at the first call: a resumed training had done many before

    def __call__(self, done: int, total: int, figure: float) -> None:
        now = time.perf_counter()
        if self._first is None:
            self._first, self._began, self._last = done, now, now
        if now - self._last >= LINE_SECONDS or done >= total:
            self._last = now
            left = (now - self._began) / max(done - self._first, 1) * max(total - done, 0)
            print(f"{done:,} of {total:,} steps, {self._figure} {figure:.4g}, {left:.0f} s left", file=sys.stderr)
