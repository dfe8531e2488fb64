"""Proximal policy optimisation: learning from the environment's reward alone, and what others here add a teacher to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from opdbench import advantages
from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.policy_gradient import ppo_clip
from opdbench.replay import epochs
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.value_network import OBSERVATION, Critic


class PPO(Distiller):
    """Several passes over one batch are safe when a row stops pushing once its ratio has left a small interval.

        rho_t = q(a_t | s_t) / q_old(a_t | s_t),   A_t = sum_k (discount gae)^k (r_{t+k} + discount V_{t+k+1} - V_{t+k})
        L = E[ - min(rho A, clip(rho, 1 - eps, 1 + eps) A) + value_weight (V - V_old - A)^2 - entropy H(q) ]

    The yardstick without a teacher on control tasks, and the base of `kickstarting` and `ppd`, which are this method,
    to the bit, when their teacher's weight is 0.

    Deviations from the paper:
        The paper has a set of hyperparameters for each domain; the defaults here are the RL Zoo's for Atari with the
        paper's clip of 0.2. Policy and critic are two networks of one form and share no weights. Advantages are
        whitened over the batch, and not over each minibatch as Stable-Baselines3 does. Where the next state is not in
        the batch (the last step of a segment, a time limit) the advantage is 0: see `opdbench.advantages`.
    """

    name: ClassVar[str] = "ppo"
    paper: ClassVar[str] = "Schulman, Wolski, Dhariwal, Radford and Klimov 2017 (arXiv 1707.06347), eqs. 7, 9 and 11"
    needs: ClassVar[Needs] = Needs.NOTHING
    domains: ClassVar[frozenset[str]] = frozenset({"rl"})
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"cartpole": {
        "lr": 1e-3, "batch": 8, "horizon": 32, "grad_clip": 0.5, "discount": 0.98, "gae": 0.8, "epochs": 20,
        "minibatches": 1}}  # the RL Zoo's
    vanishes_at_teacher = False
    critic: Critic

    class Params(Distiller.Params):
        discount: float = Field(0.99, gt=0, le=1, description="gamma, of later rewards")
        gae: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
        clip: float = Field(0.2, gt=0, description="eps, how far a ratio may leave 1 and still push")
        epochs: int = Field(4, ge=1, description="passes over each batch")
        minibatches: int = Field(4, ge=1, description="optimizer steps a pass")
        value_weight: float = Field(0.5, gt=0, description="of the critic's squared error")
        entropy: float = Field(0.0, ge=0, description="of the bonus for the student's entropy")

    def build(self, ctx: Context) -> None:
        self.critic = Critic(ctx.student)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"critic": self.critic}

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt, done_bt = rollouts.mask_bt, rollouts.done_bt
        value_bt = self.critic.of(rollouts)
        unseen_bt = advantages.unseen_ahead(mask_bt, done_bt, rollouts.columns.get("truncated"))
        advantage_bt = advantages.generalised(rollouts.reward_bt, value_bt, mask_bt, done_bt, unseen_bt,
                                              discount=self.params.discount, decay=self.params.gae)
        self.critic.count(ctx, rollouts.n_rows, passes=self.params.epochs)
        return rollouts.with_columns(per_step={
            "advantage": advantages.whitened(advantage_bt, mask_bt), "return": advantage_bt + value_bt,
            OBSERVATION: rollouts.input_bt})

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        states = ctx.separable(rollouts)
        return epochs(states, self.params.epochs, self.params.minibatches, ctx.rng("minibatches"))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        params = self.params
        logq_n = rows.student.logp(rows.action_n)
        value_n = ppo_clip(logq_n, rows.behaviour_logp_n, rows.columns["advantage"], params.clip, params.clip)
        error_n = (self.critic(rows.columns[OBSERVATION]) - rows.columns["return"]).square()
        value_n = value_n + params.value_weight * error_n
        if params.entropy > 0:
            value_n = value_n - params.entropy * rows.student.entropy()
        return Loss(value_n, {"value_error": error_n, "importance_ratio": (logq_n - rows.behaviour_logp_n).exp()})
