"""Small Markov decision processes as tables, and what dynamic programming says about them exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MDP:
    """S states and A actions.

    Attributes:
        transition_sas: [S, A, S'], the probability of going on in S'; what is missing to 1 ends the episode.
        reward_sa: [S, A], the expected reward of an action, the one of ending included.
        start_s: [S], the distribution of first states.
    """

    transition_sas: Floats
    reward_sa: Floats
    start_s: Floats

    @property
    def n_states(self) -> int:
        return len(self.start_s)

    def values(self, policy_sa: Floats, discount: float) -> Floats:
        """V [S] of a policy given by its probabilities [S, A]: one linear system."""
        reward_s = (policy_sa * self.reward_sa).sum(1)
        return np.linalg.solve(np.eye(self.n_states) - discount * self._flow(policy_sa), reward_s)

    def action_values(self, value_s: Floats, discount: float) -> Floats:
        """Q [S, A] of one action, after which the values are `value_s`."""
        return self.reward_sa + discount * self.transition_sas @ value_s

    def optimal_action_values(self, discount: float) -> Floats:
        """Q* [S, A] by policy iteration, which ends after finitely many exact steps."""
        best_s = np.zeros(self.n_states, np.int64)
        while True:
            q_sa = self.action_values(self.values(np.eye(self.reward_sa.shape[1])[best_s], discount), discount)
            own_s = q_sa[np.arange(self.n_states), best_s]
            better_s = q_sa.max(1) > own_s + 1e-9  # rounding must not make two equal actions take turns
            if not better_s.any():
                return q_sa
            best_s = np.where(better_s, q_sa.argmax(1), best_s)

    def visits(self, policy_sa: Floats, discount: float = 1.0) -> Floats:
        """Expected (discounted) number of visits [S] in one episode."""
        visits_s: Floats = np.linalg.solve(np.eye(self.n_states) - discount * self._flow(policy_sa).T, self.start_s
                                           ).astype(np.float64)
        return visits_s

    def expected_return(self, policy_sa: Floats, discount: float = 1.0) -> float:
        """Of one episode. Undiscounted, every episode must end: a policy that never ends has no such number."""
        return float(self.start_s @ self.values(policy_sa, discount))

    def _flow(self, policy_sa: Floats) -> Floats:
        """[S, S'] under a policy."""
        flow_ss: Floats = np.einsum("sa,sat->st", policy_sa, self.transition_sas)
        return flow_ss


def boltzmann(q_sa: Any, temperature: float) -> Floats:
    """softmax(Q / temperature) [S, A]."""
    logits_sa = np.asarray(q_sa, np.float64) / temperature
    weight_sa: Floats = np.exp(logits_sa - logits_sa.max(1, keepdims=True))
    p_sa: Floats = weight_sa / weight_sa.sum(1, keepdims=True)
    return p_sa
