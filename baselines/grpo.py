"""Group-relative policy optimisation: learning from the task's own reward, the yardstick without a teacher."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field

from opdbench import policy_gradient
from opdbench.actors import Student
from opdbench.advantages import group_normalised, masked, reward_to_go, whitened
from opdbench.context import Context
from opdbench.copies import FrozenCopy
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.replay import epochs
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class GRPO(Distiller):
    """The mean reward of a few answers to one prompt is baseline enough: no value network, and no teacher.

        A_i = (r_i - mean(r_1..r_G)) / std(r_1..r_G),   rho = q(y_t) / q_old(y_t)
        L = - E sum_t min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i) + beta k3(q, q_ref)(y_t)

    A group whose answers are all right or all wrong teaches nothing; `informative` in the record is the share of rows
    with an advantage. A control task cannot go back to a state, so there the group is the whole batch, and the
    advantage of a step is its reward-to-go, whitened over the batch.

    Deviations from the paper:
        q_ref is the starting student, never renewed. The paper averages within an answer first: `--set
        reduction=sequence`; the default is the mean over tokens (DAPO's). `--preset trl` drops the reference model, as
        TRL's defaults do.
    """

    name: ClassVar[str] = "grpo"
    paper: ClassVar[str] = "Shao et al. 2024, DeepSeekMath (arXiv 2402.03300), section 4.1, eqs. 3 and 4"
    needs: ClassVar[Needs] = Needs.NOTHING
    presets: ClassVar[dict[str, dict[str, Any]]] = {"trl": {"kl_coefficient": 0.0}}
    vanishes_at_teacher = False

    class Params(Distiller.Params):
        group: int = Field(8, ge=2, description="G, answers to each prompt (the paper's is 64); divides the batch")
        scale: bool = Field(True, description="divide by the group's standard deviation; false is Dr. GRPO")
        clip_low: float = Field(0.2, gt=0, description="eps below 1")
        clip_high: float = Field(0.2, gt=0, description="eps above 1; larger is DAPO's clip-higher")
        kl_coefficient: float = Field(0.04, ge=0, description="beta, of the penalty to the starting student")
        epochs: int = Field(1, ge=1, description="passes over each batch")
        minibatches: int = Field(1, ge=1, description="optimizer steps a pass")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.reference = FrozenCopy()

    def collect(self, ctx: Context) -> Rollouts:
        actor = Student(ctx.training.temperature)
        if ctx.world.domain == "rl":
            return ctx.rollout(actor)
        return ctx.rollout(actor, repeat=self.params.group)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        columns = {"advantage": self.advantage(rollouts, ctx)}
        if self.params.kl_coefficient > 0:
            columns["reference_logp"] = ctx.per_row(
                rollouts, lambda rows: rows.student.logp(rows.action_n), policy=self.reference.of(ctx.student))
        return rollouts.with_columns(per_step=columns)

    def advantage(self, rollouts: Rollouts, ctx: Context) -> torch.Tensor:
        """[B, T]."""
        mask_bt = rollouts.mask_bt
        if ctx.world.domain == "rl":
            return whitened(reward_to_go(rollouts.reward_bt, mask_bt, rollouts.done_bt), mask_bt)
        outcome_b = masked(rollouts.reward_bt, mask_bt).sum(1)
        advantage_b = group_normalised(outcome_b, rollouts.columns["group"], scale=self.params.scale)
        return masked(advantage_b[:, None].expand(mask_bt.shape), mask_bt)

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        return epochs(rollouts, self.params.epochs, self.params.minibatches, ctx.rng("minibatches"))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        params, advantage_n = self.params, rows.columns["advantage"]
        value_n = policy_gradient.grpo(
            rows.student.logp(rows.action_n), rows.behaviour_logp_n, advantage_n, low=params.clip_low,
            high=params.clip_high, reference_logp_n=rows.columns.get("reference_logp"),
            kl_coefficient=params.kl_coefficient)
        return Loss(value_n, {"informative": (advantage_n != 0).double()})

    def state_dict(self) -> dict[str, Any]:
        return {"reference": self.reference.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.reference.load_state_dict(state["reference"])
