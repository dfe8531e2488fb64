"""PPO beside Stable-Baselines3's on CartPole, for equal return: `python -m benchmarks.ppo_parity --seeds 5`.

The same hyperparameters (the RL Zoo's, `--preset cartpole`), the same networks (two layers of 64 each for policy and
values), the same first weights of the policy (Stable-Baselines3's: orthogonal, the head a hundredth of that), the same
number of environment steps, and the same evaluator: greedy returns of the same 100 episodes, after every quarter of
training, off the clock. Intervals are for new seeds and new episodes (opdbench/stats/crossed.py); the difference is
paired.

Adam's epsilon is 1e-8 in both; Stable-Baselines3's own default is 1e-5 (`--epsilon 1e-5`).
What is not the same, see baselines/ppo.py: where a segment ends in the middle of an episode, and at the time limit,
Stable-Baselines3 bootstraps from the next state's value, and here the advantage is 0; its value network starts from
weights of its own.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.timing import table
from opdbench.baselines.ppo import PPO
from opdbench.context import Context
from opdbench.ledger import Ledger
from opdbench.loop import Trainer
from opdbench.policy import Policy
from opdbench.rl.world import ControlWorld, evaluate
from opdbench.schema.spec import Budget, Execution, Training
from opdbench.stats.crossed import Estimate, crossed
from opdbench.tasks.control import CartPole

if TYPE_CHECKING:
    from stable_baselines3 import PPO as SB3
    from stable_baselines3.common.callbacks import BaseCallback

HIDDEN = (64, 64)
QUARTERS = 4
EPISODES = 100
SHARED = PPO.presets["cartpole"]
EPSILON = 1e-8  # of Adam: torch's default, and the loop's


class Run(NamedTuple):
    """One training run.

    Attributes:
        score_qe: [4, E] greedy returns after every quarter of the steps.
        cpu: seconds of training.
    """

    score_qe: NDArray[np.float64]
    cpu: float


class Looker:
    """Evaluates when another quarter of the steps is done, and keeps the clock of everything else."""

    def __init__(self, steps: int) -> None:
        self._steps, self._scores = steps, list[list[float]]()
        self._cpu, self._since = 0.0, time.process_time()

    def look(self, done: int, policy: Callable[[], Policy]) -> None:
        """To be called when `done` environment steps have been learnt from."""
        if done * QUARTERS < self._steps * (len(self._scores) + 1):
            return
        self._cpu += time.process_time() - self._since
        outcomes = evaluate(CartPole(), policy(), mode="greedy", n=EPISODES)
        self._scores.append([outcome.score for outcome in outcomes])
        self._since = time.process_time()

    def run(self) -> Run:
        return Run(np.array(self._scores), self._cpu)


def ours(seed: int, steps: int) -> Run:
    task, params = CartPole(), {name: value for name, value in SHARED.items() if name in PPO.Params.model_fields}
    training = Training(schedule="linear", **{name: value for name, value in SHARED.items() if name not in params})
    world = ControlWorld(task, _actor(_sb3(seed)), None, seed=seed)  # its first weights
    ctx = Context(world, training, Budget(tokens=steps), Execution(), Ledger(), seed)
    trainer, looker = Trainer(PPO(PPO.Params(**params)), ctx), Looker(steps)
    while not trainer.finished:
        trainer.step()
        looker.look(ctx.ledger.tokens, lambda: world.student)
    return looker.run()


def theirs(seed: int, steps: int, epsilon: float = EPSILON) -> Run:
    model, looker = _sb3(seed, epsilon), Looker(steps)
    model.learn(steps, callback=_between_rounds(lambda: looker.look(model.num_timesteps, lambda: _actor(model))))
    looker.look(steps, lambda: _actor(model))
    return looker.run()


def _sb3(seed: int, epsilon: float = EPSILON) -> SB3:
    """Stable-Baselines3's PPO before it has learnt anything."""
    from stable_baselines3 import PPO as SB3
    from stable_baselines3.common.env_util import make_vec_env

    copies, horizon, lr = SHARED["batch"], SHARED["horizon"], SHARED["lr"]
    return SB3("MlpPolicy", make_vec_env(CartPole().make, copies, seed=seed), seed=seed, device="cpu",
               learning_rate=lambda remaining: lr * max(0.0, remaining), n_steps=horizon,
               batch_size=copies * horizon // SHARED["minibatches"], n_epochs=SHARED["epochs"],
               gamma=SHARED["discount"], gae_lambda=SHARED["gae"], clip_range=PPO.Params().clip, ent_coef=0.0,
               vf_coef=PPO.Params().value_weight, max_grad_norm=SHARED["grad_clip"],
               policy_kwargs={"net_arch": list(HIDDEN), "activation_fn": torch.nn.Tanh,
                              "optimizer_kwargs": {"eps": epsilon}})


def _actor(model: SB3) -> Policy:
    """A copy of its policy as it is now."""
    from opdbench.rl.sb3 import policy_from_tensors

    return policy_from_tensors(model.policy.state_dict(), observation_shape=(4,), activation="tanh")


def _between_rounds(look: Callable[[], None]) -> BaseCallback:
    from stable_baselines3.common.callbacks import BaseCallback

    class Looking(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            look()

    return Looking()


def compare(seeds: Sequence[int], steps: int, epsilon: float = EPSILON) -> tuple[list[Run], list[Run]]:
    """Runs of both, seed after seed in turns."""
    pairs = []
    for seed in seeds:
        pairs.append((ours(seed, steps), theirs(seed, steps, epsilon)))
        curves = [", ".join(f"{score:.1f}" for score in run.score_qe.mean(1)) for run in pairs[-1]]
        print(f"seed {seed}: {'; '.join(curves)}", file=sys.stderr)
    mine, other = (list(runs) for runs in zip(*pairs, strict=True))
    return mine, other


def difference(mine: Sequence[Run], other: Sequence[Run], quarter: int = -1) -> Estimate:
    """Of the returns after a quarter (the last one by default), paired by seed and episode."""
    return crossed(np.stack([one.score_qe[quarter] - two.score_qe[quarter]
                             for one, two in zip(mine, other, strict=True)]))


def report(mine: Sequence[Run], other: Sequence[Run], steps: int) -> str:
    header = (f"greedy return over {EPISODES} episodes, {len(mine)} seeds (95% interval)",
              *(f"{(quarter + 1) * steps // QUARTERS:,} steps" for quarter in range(QUARTERS)), "CPU s a run")
    rows: list[list[Any]] = [
        [name, *(_cell(crossed(np.stack([run.score_qe[quarter] for run in runs]))) for quarter in range(QUARTERS)),
         f"{np.mean([run.cpu for run in runs]):.0f}"]
        for name, runs in (("opdbench", mine), ("Stable-Baselines3", other))]
    rows.append(["paired difference", *(_cell(difference(mine, other, quarter)) for quarter in range(QUARTERS)), ""])
    return table(header, rows)


def _cell(estimate: Estimate) -> str:
    found = estimate.interval()
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"


def main(argv: Sequence[str] | None = None) -> int:
    from importlib.metadata import version

    parser = argparse.ArgumentParser(prog="python -m benchmarks.ppo_parity", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each")
    parser.add_argument("--steps", type=int, default=51_200, help="environment steps of a run")
    parser.add_argument("--epsilon", type=float, default=EPSILON, help="of Stable-Baselines3's Adam")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    mine, other = compare(range(given.seeds), given.steps, given.epsilon)
    print(report(mine, other, given.steps))
    print(f"\nVersions: torch {torch.__version__}, stable-baselines3 {version('stable-baselines3')}, gymnasium "
          f"{version('gymnasium')}.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
