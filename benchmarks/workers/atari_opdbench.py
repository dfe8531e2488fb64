"""opdbench's rollouts of an Atari game by its student, some hundred steps of all environments on every command."""

from __future__ import annotations

import time

import torch

from benchmarks.pipe import Channel, arguments
from benchmarks.timing import peak_bytes
from opdbench import registry, seeds, worlds
from opdbench.actors import Student
from opdbench.rl.world import ControlWorld, fresh_student
from opdbench.schema.spec import Execution


def main() -> None:
    channel, given = Channel(), arguments()
    worlds.set_threads(Execution(threads=1))
    task_class = registry.load("task", given["task"])
    task = task_class(params=task_class.Params(network=given["network"]))
    world = ControlWorld(task, fresh_student(task, 0), None, seed=0)
    n, steps, number = given["copies"], given["steps"], 0
    world.rollout(Student(), n=n, horizon=1, generator=seeds.generator(0, "warm"))  # makes the copies
    channel.send({"name": f"opdbench, {given['network']}", "version": f"torch {torch.__version__}"})
    while channel.wait():
        generator = seeds.generator(0, "benchmark", number)
        wall, cpu = time.perf_counter(), time.process_time()
        rollouts = world.rollout(Student(), n=n, horizon=steps, generator=generator)
        report = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "steps": rollouts.n_rows}
        channel.send(report | {"peak": peak_bytes("cpu")})
        number += 1


if __name__ == "__main__":
    main()
