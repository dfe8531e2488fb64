"""imitation's DAgger on CartPole, one whole training run on every command.

`SimpleDAggerTrainer` and `BC` at their defaults, with 8 environments, no progress bar and no extra logging rollouts. It
runs in an environment of its own: imitation 1.0.1 needs older versions of gymnasium and Stable-Baselines3.
"""

from __future__ import annotations

import logging
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from imitation.algorithms import bc
from imitation.algorithms.dagger import SimpleDAggerTrainer
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper

from benchmarks.dagger_rules import Rules, reached
from benchmarks.pipe import Channel, arguments
from benchmarks.timing import Parts

N_ENVIRONMENTS = 8


class Reached(Exception):
    """Ends `train` from within, with the final score."""


class CountSteps(VecEnvWrapper):
    """Counts environment steps, those of unfinished episodes included."""

    steps = 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        self.steps += self.num_envs
        return self.venv.step_wait()


class Timed(SimpleDAggerTrainer):  # type: ignore[misc]
    """Evaluates after every round, off the clock, and stops at the target."""

    def watch(self, parts: Parts, rules: Rules) -> None:
        self.parts, self.rules = parts, rules
        self.test_venv = make_venv(seed=10_000)

    def extend_and_update(self, bc_train_kwargs: Any = None) -> int:
        with self.parts.measure("train"):
            round_number = super().extend_and_update(bc_train_kwargs)
        with self.parts.measure("evaluation"):
            score = reached(self._evaluate, self.rules)
        if score is not None or round_number >= self.rules.max_rounds:
            raise Reached(score)
        return int(round_number)

    def _evaluate(self, episodes: int) -> float:
        mean, _ = evaluate_policy(self.policy, self.test_venv, n_eval_episodes=episodes, warn=False)
        return float(np.mean(mean))


def make_venv(seed: int) -> DummyVecEnv:
    venv = DummyVecEnv([lambda: gymnasium.make("CartPole-v1") for _ in range(N_ENVIRONMENTS)])
    venv.seed(seed)
    return venv


def load_teacher(path: Path, venv: VecEnv) -> ActorCriticPolicy:
    """The same teacher as opdbench's, from plain arrays, in the class that Stable-Baselines3 would have it in."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(path, allow_pickle=False).items()}
    widths = [len(arrays["layers.0.bias"]), len(arrays["layers.1.bias"])]
    policy = ActorCriticPolicy(venv.observation_space, venv.action_space, lambda _: 0.0, net_arch=widths)
    network = policy.mlp_extractor.policy_net
    for name, layer in (("layers.0", network[0]), ("layers.1", network[2]), ("head", policy.action_net)):
        layer.load_state_dict({kind: arrays[f"{name}.{kind}"] for kind in ("weight", "bias")})
    return policy


def run(teacher: Path, rules: Rules, seed: int) -> dict[str, Any]:
    """Train until the student is good enough."""
    torch.manual_seed(seed)
    rng, venv = np.random.default_rng(seed), CountSteps(make_venv(seed))
    parts, updates, score = Parts(), [0], None

    def count_update() -> None:
        updates[0] += 1

    cloning = bc.BC(observation_space=venv.observation_space, action_space=venv.action_space, rng=rng, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Timed(venv=venv, scratch_dir=scratch, expert_policy=load_teacher(teacher, venv), bc_trainer=cloning,
                        rng=rng)
        trainer.watch(parts, rules)
        try:
            with parts.measure("collect"):
                trainer.train(10**9, bc_train_kwargs={"progress_bar": False, "log_rollouts_venv": None,
                                                      "on_batch_end": count_update})
        except Reached as end:
            score = end.args[0]
    counted = parts.pop()
    counted.pop("evaluation")
    return {"cpu": sum(counted.values()), "parts": counted, "score": score, "rounds": trainer.round_num,
            "updates": updates[0], "env_steps": venv.steps}


def main() -> None:
    channel, given = Channel(), arguments()
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {version(name)}" for name in ("imitation", "stable-baselines3", "gymnasium", "torch"))
    channel.send({"name": "imitation", "version": versions})
    seed = 0
    while channel.wait():
        channel.send(run(Path(given["teacher_arrays"]), Rules(**given["rules"]), seed))
        seed += 1


if __name__ == "__main__":
    main()
