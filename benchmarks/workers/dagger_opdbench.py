"""opdbench's DAgger on CartPole, one whole training run on every command."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.dagger_rules import Rules, reached
from benchmarks.pipe import Channel, arguments
from benchmarks.timing import Parts
from opdbench import worlds
from opdbench.baselines.dagger import DAgger
from opdbench.context import Context
from opdbench.ledger import Ledger
from opdbench.loop import Trainer
from opdbench.rl.load import load_policy
from opdbench.rl.world import ControlWorld, fresh_student
from opdbench.schema.spec import Budget, Execution, Training
from opdbench.tasks.control import CartPole


class WiderStudent(CartPole):
    """The task with imitation's default student network, in place of a smaller one."""

    student_hidden = (32, 32)


def make_trainer(teacher: Path, seed: int) -> Trainer:
    """`opdbench run --method dagger --task cartpole` at its defaults, but for the student's width."""
    task = WiderStudent()
    world = ControlWorld(task, fresh_student(task, seed), load_policy(teacher), seed=seed)
    ctx = Context(world, Training(**task.training), Budget(steps=10**9), Execution(threads=1), Ledger(), seed)
    return Trainer(DAgger(DAgger.Params()), ctx)


def run(trainer: Trainer, rules: Rules, seed: int) -> dict[str, Any]:
    """Train until the student is good enough; evaluation is off the clock."""
    ctx, parts = trainer.ctx, Parts()
    parts.wrap(ctx, "rollout", "collect")
    parts.wrap(ctx, "score", "collect")
    parts.wrap(trainer, "_update", "train")

    def evaluate(episodes: int) -> float:
        outcomes = ctx.world.evaluate(ctx.student, split="test", mode="greedy", n=episodes, seed=seed)
        return fmean(outcome.score for outcome in outcomes)

    cpu, score = 0.0, None
    while score is None and ctx.step < rules.max_rounds:
        start = time.process_time()
        trainer.step()
        cpu += time.process_time() - start
        score = reached(evaluate, rules)
    ledger = ctx.ledger
    return {"cpu": cpu, "parts": parts.pop(), "score": score, "rounds": ledger.steps, "updates": ledger.updates,
            "env_steps": ledger.student_tokens + ledger.teacher_tokens}


def main() -> None:
    channel, given = Channel(), arguments()
    worlds.set_threads(Execution(threads=1))
    channel.send({"name": "opdbench", "version": f"torch {torch.__version__}"})
    seed = 0
    while channel.wait():
        channel.send(run(make_trainer(Path(given["teacher"]), seed), Rules(**given["rules"]), seed))
        seed += 1


if __name__ == "__main__":
    main()
