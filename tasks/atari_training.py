"""Atari for training teachers with Stable-Baselines3: rewards are clipped to their signs, and a lost life ends an
episode for the learner while the game goes on, as in Mnih et al. 2015."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from opdbench.rl.environments import Environments
from opdbench.tasks.atari_env import AtariSimulators, Rules


class AtariVecEnv(VecEnv):
    """All copies at once. The stack goes on over a lost life; what is reported of an episode is the whole game's
    unclipped return, in `info["episode"]` as SB3's monitor has it. The time limit counts as an end."""

    def __init__(self, rules: Rules, n: int, seed: int) -> None:
        self._simulators = AtariSimulators(rules)
        self._environments = Environments(self._simulators, seed)
        super().__init__(n, Box(0, 255, self._simulators.observation_shape, np.uint8),
                         Discrete(self._simulators.n_actions))
        self._action_n: NDArray[np.int64] = np.zeros(n, np.int64)
        self._return_n, self._length_n = np.zeros(n), np.zeros(n, np.int64)

    def reset(self) -> Any:
        self._environments.grow(self.num_envs)
        return self._environments.observation_n.copy()

    def step_async(self, actions: NDArray[np.int64]) -> None:
        self._action_n = actions

    def step_wait(self) -> Any:
        lives_n = self._simulators.lives_n.copy()
        step = self._environments.step(self._action_n)
        over_n = step.terminated_b | step.truncated_b
        self._return_n += step.reward_b
        self._length_n += 1
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for index in np.flatnonzero(over_n).tolist():
            infos[index]["episode"] = {"r": self._return_n[index], "l": int(self._length_n[index]), "t": 0.0}
        self._return_n[over_n], self._length_n[over_n] = 0, 0
        done_n = over_n | (self._simulators.lives_n < lives_n)
        for index in np.flatnonzero(done_n).tolist():
            infos[index]["terminal_observation"] = self._environments.observation_n[index].copy()
        return self._environments.observation_n.copy(), np.sign(step.reward_b).astype(np.float32), done_n, infos

    def close(self) -> None:
        """Nothing is held but memory."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError(f"the copies have no attribute {attr_name!r} to set")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise AttributeError(f"the copies have no method {method_name!r}")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Sequence[bool]:  # type: ignore[override]
        return [False] * self.num_envs
