"""Deep Q-learning: learning from the environment's reward alone, off policy, and what `qdagger` adds a teacher to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from opdbench import advantages
from opdbench.actors import EpsilonGreedy
from opdbench.context import Context
from opdbench.copies import FrozenCopy
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.errors import UserError
from opdbench.replay import Aggregate
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class DQN(Distiller):
    """Q values learnt from replayed steps, against a copy of the network that lags behind, are stable enough to act on.

        y = sum_{k < n} discount^k r_{t+k} + discount^n max_a Q_target(s_{t+n}, a)
        L = E_{(s_t, a_t) ~ D} huber(Q(s_t, a_t) - y)

    The student's logits are its Q values, so its greedy score is the one that counts. The yardstick without a teacher,
    and the base of `qdagger`, which is this method, to the bit, when its teacher's weight is 0.

    Deviations from the paper:
        AdamW in place of RMSProp. Training starts with the first round. A state whose successor is unseen (last of
        a segment, a time limit) is not learnt from, and n steps are cut short there: see `opdbench.advantages`.
    """

    name: ClassVar[str] = "dqn"
    paper: ClassVar[str] = "Mnih et al., Nature 2015, algorithm 1; n-step: Hessel et al., AAAI 2018 (arXiv 1710.02298)"
    needs: ClassVar[Needs] = Needs.NOTHING
    domains: ClassVar[frozenset[str]] = frozenset({"rl"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"gym": {  # near the RL Zoo's for classic control
        "lr": 2.3e-3, "grad_clip": 10.0, "minibatch": 64, "steps_per_update": 2.0, "target_update": 500,
        "exploration": 0.16, "epsilon": 0.04}}
    vanishes_at_teacher = False

    class Params(Distiller.Params):
        discount: float = Field(0.99, gt=0, le=1, description="gamma, of later rewards")
        n_step: int = Field(1, ge=1, description="n, rewards before bootstrapping")
        epsilon: float = Field(0.1, ge=0, le=1, description="share of random actions, after the exploration")
        exploration: float = Field(0.02, ge=0, le=1, description="share of the budget over which it falls from 1")
        capacity: int = Field(1_000_000, ge=1, description="states in the replay")
        steps_per_update: float = Field(4.0, gt=0, description="environment steps for each update")
        minibatch: int = Field(32, ge=1, description="states a minibatch")
        target_update: int = Field(10_000, ge=1, description="environment steps between copies of the target network")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.data, self.target = Aggregate(params.capacity), FrozenCopy()
        self._updates = 0

    def random_share(self, progress: float) -> float:
        """epsilon when `progress` of the budget is spent."""
        left = max(0.0, 1 - progress / self.params.exploration) if self.params.exploration > 0 else 0.0
        return float(self.params.epsilon + left * (1 - self.params.epsilon))

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(EpsilonGreedy("student", self.random_share(ctx.progress)))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        unseen_bt = advantages.unseen_ahead(rollouts.mask_bt, rollouts.done_bt, rollouts.columns.get("truncated"))
        ahead = advantages.n_step_returns(rollouts.reward_bt, rollouts.done_bt, unseen_bt, n=self.params.n_step,
                                          discount=self.params.discount)
        row_b1 = torch.arange(rollouts.n_trajectories, device=unseen_bt.device)[:, None]
        next_bt = rollouts.input_bt[row_b1, ahead.at_bt]
        states = ctx.separable(rollouts.with_columns(per_step={
            "return": ahead.return_bt, "weight": ahead.weight_bt, "next_input": next_bt}))
        seen = (~unseen_bt[rollouts.mask_bt]).nonzero()[:, 0]
        if not len(seen):
            raise UserError(f"no state of step {ctx.step + 1} has a successor: there is nothing to bootstrap from",
                            "let segments be longer, such as --set horizon=32")
        self.data.add(states.select(seen))
        return rollouts

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        rng = ctx.rng("minibatches")
        between = max(1, round(self.params.target_update / self.params.steps_per_update))
        for _ in range(max(1, round(rollouts.n_rows / self.params.steps_per_update))):
            if self._updates % between == 0:
                self.target = FrozenCopy()
            self._updates += 1
            yield self._with_targets(self.data.sample(self.params.minibatch, rng), ctx)

    @torch.no_grad()
    def _with_targets(self, batch: Rollouts, ctx: Context) -> Rollouts:
        target = self.target.of(ctx.student)
        features_nh = target.features(batch.columns["next_input"], batch.length_b)[:, 0]
        best_n = target.project(features_nh).max(-1).values
        ctx.ledger.add_flops("target", target.forward_flops(len(best_n), 1))
        value_bt = batch.columns["return"] + batch.columns["weight"] * best_n[:, None]
        return batch.with_columns(per_step={"target": value_bt})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        q_n = rows.student.logits_na.gather(-1, rows.action_n[:, None])[:, 0]
        error_n: Tensor = smooth_l1_loss(q_n, rows.columns["target"].to(q_n.dtype), reduction="none")
        return Loss(error_n, {"q": q_n})

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.data.state_dict(), "target": self.target.state_dict(), "updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data.load_state_dict(state["data"])
        self.target.load_state_dict(state["target"])
        self._updates = state["updates"]
