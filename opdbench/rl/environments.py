"""Persistent environments for rollouts: automatic reset with derived seeds, and an exact, cheap resume.

Episode number e of environment i is reset with a seed that depends on nothing but (run seed, i, e). So the state in the
middle of an episode is (e, actions so far): to resume, they are replayed. Where several episodes follow one seed
(`Simulators.episodes_per_seed`), the replay begins with the first of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from opdbench.errors import UserError
from opdbench.rl.simulators import Actions, Observations, Simulators
from opdbench.seeds import derive


class Step(NamedTuple):
    """What B actions led to. An action's reward and end are its own: no transition spans a reset."""

    reward_b: NDArray[np.float64]
    terminated_b: NDArray[np.bool_]
    truncated_b: NDArray[np.bool_]


class Environments:
    """Environments that go on from call to call.

    Attributes:
        observation_n: [N, *observation], what every environment shows now; after an episode's last action it is
            already the first observation of the next episode. The next step may write to it or replace it.
    """

    def __init__(self, simulators: Simulators, seed: int) -> None:
        self.simulators = simulators
        self.seed = seed
        self.observation_n: Observations = np.zeros((0, *simulators.observation_shape), simulators.observation_dtype)
        self._episode_n = np.zeros(0, np.int64)
        self._action_nt = simulators.no_actions(0, 64)  # since the last seed was set
        self._logged_n = np.zeros(0, np.int64)

    @property
    def n(self) -> int:
        return len(self._episode_n)

    def grow(self, n: int) -> None:
        """Make sure that there are at least `n` environments; those that exist go on where they are."""
        first, missing = self.n, n - self.n
        if missing <= 0:
            return
        self.simulators.grow(n)
        self.observation_n, self._episode_n, self._action_nt, self._logged_n = (
            np.concatenate([old, np.zeros((missing, *old.shape[1:]), old.dtype)])
            for old in (self.observation_n, self._episode_n, self._action_nt, self._logged_n))
        for index in range(first, n):
            self._reset(index)

    def step(self, action_b: Actions) -> Step:
        """Take one step in the first B environments; those whose episode ended are reset."""
        return self._advance(np.arange(len(action_b)), action_b)

    def _advance(self, index_k: NDArray[np.int64], action_k: NDArray[np.int64]) -> Step:
        self._log(index_k, action_k)
        after = self.simulators.step(index_k, action_k)
        if len(index_k) == self.n:
            self.observation_n = after.observation_k
        else:
            self.observation_n[index_k] = after.observation_k
        for index in index_k[after.terminated_k | after.truncated_k].tolist():
            self._episode_n[index] += 1
            self._reset(index)
        return Step(after.reward_k, after.terminated_k, after.truncated_k)

    def state_dict(self) -> dict[str, Any]:
        """Episode numbers [N]; steps [N] and actions [N, longest, ...] since the last seed (of the running episode,
        where each has its own); observations [N, ...]."""
        step_n = self._logged_n
        longest = int(step_n.max(initial=0))
        # Beyond its length a row still holds an earlier episode's actions; a state says nothing but what it means.
        action_nt = self._action_nt[:, :longest].copy()
        action_nt[np.arange(longest) >= step_n[:, None]] = 0
        arrays = {"episode": self._episode_n, "step": step_n, "action": action_nt,
                  "observation": self.observation_n}
        return {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replay the running episodes of `state`, in fresh environments of the same task and seed.

        Raises:
            UserError: the environments did not arrive where they were.
        """
        assert self.n == 0, "state is loaded into fresh environments"
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        n, longest = arrays["action"].shape[:2]
        self.simulators.grow(n)
        self._episode_n = arrays["episode"] - arrays["episode"] % self.simulators.episodes_per_seed
        self._logged_n = np.zeros(n, np.int64)
        self._action_nt = self.simulators.no_actions(n, max(64, longest))
        self.observation_n = np.zeros_like(arrays["observation"])
        # All arrive together: simulators may step copies in company only.
        left_n = arrays["step"]
        for left in range(longest, -1, -1):
            for index in np.flatnonzero(left_n == left).tolist():
                self._reset(index)
            index_k = np.flatnonzero(left_n >= max(left, 1))
            if left:
                self._advance(index_k, arrays["action"][index_k, left_n[index_k] - left])
        if not np.array_equal(self.observation_n, arrays["observation"]):
            raise UserError(f"environment {self.simulators.name} did not arrive where it was when its actions were "
                            "replayed: it is not deterministic, or its version or the seed has changed",
                            "run again from the start, without the checkpoint")

    def _reset(self, index: int) -> None:
        episode = int(self._episode_n[index])
        if episode % self.simulators.episodes_per_seed:
            self.observation_n[index] = self.simulators.follow(index)
        else:
            self._logged_n[index] = 0
            self.observation_n[index] = self.simulators.reset(index, derive(self.seed, "episode", index, episode))

    def _log(self, index_k: NDArray[np.int64], action_k: Actions) -> None:
        step_k = self._logged_n[index_k]
        if step_k.max() >= self._action_nt.shape[1]:
            self._action_nt = np.concatenate([self._action_nt, np.zeros_like(self._action_nt)], axis=1)
        self._action_nt[index_k, step_k] = action_k
        self._logged_n[index_k] = step_k + 1
