"""Six ways to distil a policy, from one equation, and what each of them really minimises."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from opdbench.actors import Student, Teacher
from opdbench.advantages import masked, reward_to_go
from opdbench.context import Context
from opdbench.critic import Critic
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_FEATURES, Rows

CROSS_ENTROPY = ("teacher", "on-policy", "n-distill")  # whose own term is H(pi_T, pi)
TRAJECTORY = ("entropy-regularised", "expected-entropy-regularised")  # E_pi[- sum log pi_T], and its expectation


class DPD(Distiller):
    """Who acts and whether later states count decide what distillation converges to, and whether it does.

        update = E_q sum_t [ - grad log pi(a_t | s_t) R_t + grad l(s_t) ],   R_t = sum_{i >= t} r_i   (section 3, eq. 1)

        variant                          q      l(s)          r_i                                     gradient field
        teacher                          pi_T   H(pi_T, pi)   0                                       yes
        on-policy                        pi     H(pi_T, pi)   0                                       no: it can cycle
        entropy-regularised              pi     0             log pi_T(a_i | s_i)                     yes
        n-distill                        pi     H(pi_T, pi)   - H(pi_T(. | s_i+1), pi(. | s_i+1))     yes (Theorem 2)
        expected-entropy-regularised     pi     H(pi, pi_T)   log pi_T(a_i+1 | s_i+1)                 yes, less variance
        teacher-value                    pi     0             r_i + V_T(s_i+1) - V_T(s_i)             yes

    `reward` adds the task's own reward to r (the paper's +R). `value_gate` multiplies H(pi_T, pi) by
    1[V_T(s) > V_pi(s)] (Proposition 2: no worse than the teacher). As the table has it, the two entropy-regularised
    variants have no entropy of the student, so that their minimum is deterministic; `student_entropy` adds
    -H(pi), which makes them the KL between trajectories, whose only minimum is the teacher.

    Deviations from the paper:
        The loss shows KL(pi_T || pi) for H(pi_T, pi): the same gradient. Rewards to go are discounted as the returns of
        the paper's grid worlds are (0.99), end with their segment, and have no baseline unless `baseline=mean`. V_T is
        the teacher's own (a task with `--teacher exact` has one); V_pi is a regression on sampled returns. AdamW.
    """

    name: ClassVar[str] = "dpd"
    paper: ClassVar[str] = "Czarnecki et al., AISTATS 2019 (arXiv 1902.02186), section 3, eq. 1 and table 1"
    needs: ClassVar[Needs] = Needs.FULL

    class Params(Distiller.Params):
        variant: Literal["teacher", "on-policy", "entropy-regularised", "n-distill", "expected-entropy-regularised",
                         "teacher-value"] = Field("expected-entropy-regularised", description="row of the table")
        reward: float = Field(0.0, ge=0, description="+R: factor of the task's own reward in r")
        value_gate: bool = Field(False, description="imitate only where the teacher's value is above the student's")
        student_entropy: bool = Field(False, description="add -H(pi), so that the teacher is the minimum")
        discount: float = Field(0.99, gt=0, le=1, description="of later terms in R_t")
        baseline: Literal["none", "mean"] = Field("none", description="subtracted from R_t; mean: over the batch")
        critic_lr: float = Field(0.1, gt=0, description="learning rate of V_pi, for value_gate")

        @model_validator(mode="after")
        def _exists(self) -> Any:
            for name, wanted in (("value_gate", CROSS_ENTROPY[1:]), ("student_entropy", TRAJECTORY),
                                 ("reward", (*CROSS_ENTROPY[1:], *TRAJECTORY))):
                if getattr(self, name) and self.variant not in wanted:
                    raise ValueError(f"{name} is for variant={' or '.join(wanted)}, and not for {self.variant}")
            return self

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        balanced = params.variant in ("teacher", "on-policy") or params.student_entropy
        self.vanishes_at_teacher = bool(balanced and not params.reward)
        self.critic = Critic(hidden=0, lr=params.critic_lr)

    def requires(self) -> Needs:
        return Needs.SAMPLED if self.params.variant == "entropy-regularised" else Needs.FULL

    def collect(self, ctx: Context) -> Rollouts:
        if self.params.variant == "teacher":
            return ctx.rollout(Teacher(ctx.training.teacher_temperature))
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        gate_bt = self._gate(rollouts, ctx) if self.params.value_gate else torch.ones_like(rollouts.mask_bt)
        return_bt = self._later(rollouts, ctx, gate_bt)
        if self.params.reward:
            return_bt = return_bt + self.params.reward * self._to_go(rollouts, rollouts.reward_bt)
        if self.params.baseline == "mean":
            return_bt = masked(return_bt - return_bt[rollouts.mask_bt].mean(), rollouts.mask_bt)
        return rollouts.with_columns(per_step={"return": return_bt, "gate": gate_bt})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        value_n, return_n = self._own(rows) * rows.columns["gate"], rows.columns["return"]
        if self.params.variant in ("teacher", "on-policy") and not self.params.reward:
            return Loss(value_n)
        return Loss(value_n - return_n * rows.student.logp(rows.action_n), {"return": return_n})

    def _own(self, rows: Rows) -> Tensor:
        """l(s) [N]."""
        if self.params.variant in CROSS_ENTROPY:
            return forward_kl(rows.teacher, rows.student)
        if self.params.variant == "expected-entropy-regularised":
            divergence_n = reverse_kl(rows.teacher, rows.student)
            return divergence_n if self.params.student_entropy else divergence_n + rows.student.entropy()
        return torch.zeros_like(rows.behaviour_logp_n)

    def _later(self, rollouts: Rollouts, ctx: Context, gate_bt: Tensor) -> Tensor:
        """R_t [B, T] of the variant alone."""
        variant = self.params.variant
        if variant in ("teacher", "on-policy"):
            return torch.zeros_like(rollouts.behaviour_logp_bt)
        if variant == "teacher-value":
            return self._shaped(rollouts, ctx)
        if variant == "n-distill":
            gain_bt = gate_bt * ctx.per_row(rollouts, lambda rows: (rows.teacher.p_na * rows.student.logp_na).sum(-1))
        else:
            gain_bt = ctx.per_row(rollouts, lambda rows: rows.teacher_logp_n - (
                rows.student.logp(rows.action_n) if self.params.student_entropy else 0.0))
        own = 0.0 if variant == "entropy-regularised" else masked(gain_bt, rollouts.mask_bt)  # l has it, differentiated
        return self._to_go(rollouts, gain_bt) - own

    def _shaped(self, rollouts: Rollouts, ctx: Context) -> Tensor:
        """Summed up, all values but the first and the last cancel. Where a segment or the time limit cuts an episode,
        the successor is unknown, and V_T stands for all that would have come, the last action's reward included."""
        value_bt, cut_bt = self._teacher_values(rollouts, ctx), rollouts.columns["truncated"].clone()
        cut_bt[:, -1] |= ~rollouts.done_bt[:, -1]
        return self._to_go(rollouts, torch.where(cut_bt, value_bt, rollouts.reward_bt.to(value_bt.dtype))) - value_bt

    def _to_go(self, rollouts: Rollouts, reward_bt: Tensor) -> Tensor:
        return reward_to_go(reward_bt, rollouts.mask_bt, rollouts.done_bt, discount=self.params.discount)

    def _gate(self, rollouts: Rollouts, ctx: Context) -> Tensor:
        """1[V_T(s) > V_pi(s)] [B, T]; then V_pi learns from the returns of this batch."""
        mask_bt, state_n = rollouts.mask_bt, rollouts.input_bt[rollouts.mask_bt]
        gate_bt = torch.zeros_like(mask_bt)
        gate_bt[mask_bt] = self._teacher_values(rollouts, ctx)[mask_bt] > self.critic.values(state_n)
        self.critic.fit(state_n, self._to_go(rollouts, rollouts.reward_bt)[mask_bt], generator=ctx.generator("critic"))
        return gate_bt

    def _teacher_values(self, rollouts: Rollouts, ctx: Context) -> Tensor:
        assert ctx.world.teacher is not None
        features_bth = rollouts.columns[TEACHER_FEATURES]
        return ctx.world.teacher.state_values(features_bth.flatten(0, 1)).view(features_bth.shape[:2])

    def state_dict(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
