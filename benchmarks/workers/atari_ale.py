"""ALE's own vector environment with random actions, some hundred steps of all its copies on every command."""

from __future__ import annotations

import time

import ale_py
import numpy as np
from ale_py.vector_env import AtariVectorEnv

from benchmarks.pipe import Channel, arguments
from benchmarks.timing import peak_bytes


def main() -> None:
    channel, given = Channel(), arguments()
    n, steps = given["copies"], given["steps"]
    env = AtariVectorEnv(given["rom"], n, repeat_action_probability=0.25, noop_max=0, use_fire_reset=False,
                         reward_clipping=False)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    channel.send({"name": "AtariVectorEnv", "version": f"ale-py {ale_py.__version__}"})
    while channel.wait():
        action_tn = rng.integers(0, env.single_action_space.n, (steps, n))
        wall, cpu = time.perf_counter(), time.process_time()
        for action_n in action_tn:
            env.step(action_n)
        channel.send({"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "steps": n * steps,
                      "peak": peak_bytes("cpu")})


if __name__ == "__main__":
    main()
