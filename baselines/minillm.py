"""MiniLLM: the policy gradient of the reverse KL between whole sequences, with three devices against its variance."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench import advantages
from opdbench.actors import Blend, Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, negative_log_likelihood, reverse_kl
from opdbench.policy_gradient import ppo_clip
from opdbench.replay import epochs
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows

SAMPLED_PART, DATA_PART = 0, 1


class MiniLLM(Distiller):
    """Minimising the reverse KL of sequences, later steps included, makes a student careful where it is weak.

        y ~ p~ = alpha p + (1 - alpha) q, token by token;   w_t = q(y_t) / p~(y_t),   r_t = log p(y_t) - log q(y_t)
        grad L = E_y sum_t w_t grad KL(q || p)(y_<t)  -  E_y sum_t w_t R_{t+1} grad log q(y_t)  +  grad L_data
        R_{t+1} = 1 / (T - t - 1) sum_{t' > t} r_{t'}

    The first sum is the exact derivative of the next step's reward over the whole vocabulary, the second carries what
    comes later. The ratio q / p~ is clipped to 1 +- clip as in PPO, over `epochs` passes. With alpha = 0, no length
    normalisation, no clipping and one pass this is the exact gradient of KL(q || p) between sequences; with alpha > 0
    it needs `importance=prefix` for that: each reward weighted by the product of the ratios up to its own step. The
    paper gives products up for their variance (and writes them up to t only, where later rewards stay uncorrected).

    Deviations from the paper:
        L_data is on a pre-training corpus in the paper, which no task has: by default there is none (the official
        *no_pt* scripts), and `data` takes solutions or teacher samples in its place.
        `--preset code` is the official code: discount 0.95, the step's own reward counted in R too (so twice, with the
        exact term), R whitened over the batch, the exact term without w, and half of L_data a forward KL. The code
        whitens over padding as well, which is not imitated, and clips rewards at 100.
        TRL's MiniLLM has no blend, no w and no L_data, discounts by absolute position and differentiates the
        advantage; its defaults come closest to `opd` with `estimator=full` and `sampled` added up, and get no preset.
    """

    name: ClassVar[str] = "minillm"
    paper: ClassVar[str] = "Gu, Dong, Wei and Huang, ICLR 2024 (arXiv 2306.08543), section 2.2, algorithm 1"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"code": {
        "discount": 0.95, "own_reward": True, "whiten": True, "weigh_exact_term": False, "data_distillation": 0.5}}

    class Params(Distiller.Params):
        alpha: float = Field(0.2, ge=0, lt=1, description="the teacher's share of the sampling distribution")
        importance: Literal["token", "prefix"] = Field(
            "token", description="weights: the ratio at step t alone, or products of all ratios so far (unbiased)")
        clip: float = Field(0.2, gt=0, description="of the ratio q / p~, as in PPO")
        epochs: int = Field(4, ge=1, description="passes over each batch")
        minibatches: int = Field(4, ge=1, description="optimizer steps a pass")
        length_normalised: bool = Field(True, description="R is the mean of later rewards, and not their sum")
        discount: float = Field(1.0, ge=0, le=1, description="of later rewards, per step")
        own_reward: bool = Field(False, description="R begins with the step's own reward")
        whiten: bool = Field(False, description="R gets mean 0 and variance 1 over the batch")
        weigh_exact_term: bool = Field(True, description="the exact next-step term is weighted by w_t too")
        data: Literal["none", "solutions", "teacher"] = Field(
            "none", description="what L_data is on: nothing, reference solutions, or teacher samples")
        data_weight: float = Field(1.0, gt=0, description="factor of L_data")
        data_distillation: float = Field(0.0, ge=0, le=1, description="share of forward KL in L_data")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.vanishes_at_teacher = params.data == "none"

    def collect(self, ctx: Context) -> Rollouts:
        sampled = ctx.rollout(self.sampler(ctx))
        if self.params.data == "none":
            return sampled
        data = (ctx.demonstrations() if self.params.data == "solutions"
                else ctx.rollout(Teacher(ctx.training.teacher_temperature)))
        return Rollouts.cat_parts([sampled, data])

    def sampler(self, ctx: Context) -> Blend | Student:
        """p~, each side at its own sampling temperature."""
        alpha, training = self.params.alpha, ctx.training
        if alpha == 0:
            return Student(training.temperature)

        def blend(student_logits_ba: Tensor, teacher_logits_ba: Tensor) -> Tensor:
            logq_ba = (student_logits_ba.float() / training.temperature).log_softmax(-1)
            logp_ba = (teacher_logits_ba.float() / training.teacher_temperature).log_softmax(-1)
            return torch.logaddexp(logp_ba + math.log(alpha), logq_ba + math.log1p(-alpha))

        return Blend(blend)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        part_b = rollouts.columns.get("part", torch.zeros_like(rollouts.length_b))
        mask_bt = rollouts.mask_bt & (part_b == SAMPLED_PART)[:, None]
        logps_bt2 = ctx.per_row(rollouts, _both_logps)
        logp_bt, logq_bt = logps_bt2[..., 0], logps_bt2[..., 1]
        log_weight_bt = advantages.masked(logq_bt - rollouts.behaviour_logp_bt, mask_bt)
        reward_bt = advantages.log_ratio(logp_bt, logq_bt, mask_bt)
        if self.params.importance == "token":
            advantage_bt = self.advantage(reward_bt, mask_bt, rollouts.done_bt)
        else:  # a later reward depends on all actions up to its own, those after step t included
            log_weight_bt = log_weight_bt.cumsum(1)
            weighted_bt = self.advantage(log_weight_bt.exp() * reward_bt, mask_bt, rollouts.done_bt)
            advantage_bt = weighted_bt / log_weight_bt.exp()
        return rollouts.with_columns(per_trajectory={"part": part_b}, per_step={
            "advantage": advantage_bt, "weight": log_weight_bt.exp(),
            "sampler_logp": logq_bt - log_weight_bt})  # q / this = w_t times how far q has moved since

    def advantage(self, reward_bt: Tensor, mask_bt: Tensor, done_bt: Tensor) -> Tensor:
        """R [B, T]."""
        params = self.params
        if params.length_normalised:
            value_bt = advantages.mean_reward_to_go(reward_bt, mask_bt, done_bt, discount=params.discount,
                                                    after=not params.own_reward)
        else:
            value_bt = advantages.reward_to_go(reward_bt, mask_bt, done_bt, discount=params.discount)
            value_bt = value_bt if params.own_reward else value_bt - reward_bt
        return advantages.whitened(value_bt, mask_bt) if params.whiten else value_bt

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        return epochs(rollouts, self.params.epochs, self.params.minibatches, ctx.rng("minibatches"))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        params, student = self.params, rows.student
        logq_n, weight_n = student.logp(rows.action_n), rows.columns["weight"]
        later_n = ppo_clip(logq_n, rows.columns["sampler_logp"], rows.columns["advantage"], params.clip, params.clip)
        teacher, compared = rows.pair()
        exact_n = reverse_kl(teacher, compared)
        value_n = later_n + (weight_n * exact_n if params.weigh_exact_term else exact_n)
        if params.data != "none":
            share = params.data_distillation
            data_n = (1 - share) * negative_log_likelihood(student, rows.action_n)
            if share > 0:
                data_n = data_n + share * forward_kl(teacher, compared)
            value_n = torch.where(rows.columns["part"] == SAMPLED_PART, value_n, params.data_weight * data_n)
        return Loss(value_n, {"importance_weight": weight_n})


def _both_logps(rows: Rows) -> Tensor:
    """Log-probabilities of the actions taken, the teacher's and the student's [N, 2]."""
    return torch.stack([rows.teacher_logp_n, rows.student.logp(rows.action_n)], -1)
