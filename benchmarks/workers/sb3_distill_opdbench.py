"""opdbench's student-distill or ppd on an Atari game, some rounds on every command."""

from __future__ import annotations

import time

import torch

from benchmarks.pipe import Channel, arguments
from benchmarks.sb3_distill_setting import Setting, network
from benchmarks.timing import Parts, peak_bytes
from opdbench import registry, worlds
from opdbench.context import Context
from opdbench.ledger import Ledger
from opdbench.loop import Trainer
from opdbench.rl.world import ControlWorld
from opdbench.schema.spec import Budget, Execution, Training


def make_trainer(setting: Setting) -> Trainer:
    """`opdbench run` on the track without sticky actions, at the setting's sizes."""
    task_class = registry.load("task", f"atari/{setting.game}@v4-nosticky")
    task, method_class = task_class(), registry.load("method", setting.method)
    actions = task.simulators().n_actions
    student, teacher = network(setting.student, actions, "student"), network(setting.teacher, actions, "teacher")
    world = ControlWorld(task, student, teacher, seed=0)
    training = Training(lr=3e-4, batch=setting.copies, horizon=setting.horizon)
    params = {} if setting.method == "student-distill" else {
        "epochs": setting.epochs, "minibatches": setting.copies * setting.horizon // setting.minibatch}
    ctx = Context(world, training, Budget(steps=10**9), Execution(threads=1), Ledger(), 0)
    return Trainer(method_class(method_class.Params(**params)), ctx)


def main() -> None:
    channel, given = Channel(), arguments()
    setting, parts = Setting(**given), Parts()
    worlds.set_threads(Execution(threads=1))
    trainer = make_trainer(setting)
    parts.wrap(trainer.ctx, "rollout", "collect")
    parts.wrap(trainer.ctx, "score", "train")
    parts.wrap(trainer, "_update", "train")
    channel.send({"name": "opdbench", "version": f"torch {torch.__version__}"})
    while channel.wait():
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(setting.rounds):
            figures = trainer.step()
        loss = figures["teacher_kl"] if "teacher_kl" in figures else figures["loss"]
        channel.send({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "parts": parts.pop(),
                      "steps": setting.steps(), "loss": loss, "peak": peak_bytes("cpu")})


if __name__ == "__main__":
    main()
