"""DistiLLM-2: pull the student up where the teacher speaks, push it down where the student does."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student, Teacher
from opdbench.advantages import masked
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import mixture, reverse_kl, skew_kl, skew_reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows

TEACHER_PART, STUDENT_PART = 0, 1


class DistiLLM2(Distiller):
    """Each loss has a kind of data that suits it: skew KL the teacher's responses, skew reverse KL the student's own.

        L = (2 - b) E_{y ~ p} SKL(alpha_y)(y) + b E_{y ~ q} SRKL(alpha_y)(y)
        alpha_y = clip(1 - (1 - alpha_0) m / gap_y, alpha_min, alpha_0)
        gap_y = exp(mean_t log p(y_t)) - exp(mean_t log q(y_t)) on teacher responses, its negative on student responses

    m is the mean of gap_y over all steps so far, for each kind of response apart: easy responses (small gap) get a
    small alpha, hard ones a larger and gentler one. b rises linearly from `b_start` to `b_end` over the budget.

    Deviations from the paper:
        Responses are sampled anew at every step, each kind for half of the batch and for different prompts; the paper
        collects pairs once an epoch. As expectations the two terms do not need pairs.
        `--preset code` is the released code, which has both schedules switched off, holds the mixture of SRKL fixed
        (another gradient, see `divergences.skew_reverse_kl`) and samples at 0.8 (its top-p of 0.95 is not imitated).
    """

    name: ClassVar[str] = "distillm2"
    paper: ClassVar[str] = "Ko et al., ICML 2025 (arXiv 2503.07067), section 3, contrastive loss and curriculum"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"code": {
        "adaptive": False, "b_end": 1.0, "moving_mixture": False, "temperature": 0.8, "teacher_temperature": 0.8,
        "reduction": "sequence"}}

    class Params(Distiller.Params):
        alpha: float = Field(0.1, gt=0, lt=1, description="alpha_0, the skew before it adapts, and its largest value")
        alpha_min: float = Field(0.01, gt=0, lt=1, description="the smallest skew")
        adaptive: bool = Field(True, description="adapt the skew to each response")
        b_start: float = Field(1.0, gt=0, lt=2, description="b at the start: weight of the student's responses")
        b_end: float = Field(1.5, gt=0, lt=2, description="b when the budget is spent")
        moving_mixture: bool = Field(True, description="differentiate the mixture of SRKL; false holds it fixed")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.gap_sums, self.n_steps = [0.0, 0.0], 0

    def collect(self, ctx: Context) -> Rollouts:
        n_teacher = max(1, ctx.training.batch // 2)
        return Rollouts.cat_parts([
            ctx.rollout(Teacher(ctx.training.teacher_temperature), n=n_teacher),
            ctx.rollout(Student(ctx.training.temperature), n=max(1, ctx.training.batch - n_teacher))])

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        alpha_b = torch.full(rollouts.length_b.shape, self.params.alpha, dtype=torch.float64)
        if self.params.adaptive:
            alpha_b = self.adapted(self.gaps(rollouts, ctx), rollouts.columns["part"])
        return rollouts.with_columns(per_trajectory={"alpha": alpha_b.to(rollouts.length_b.device)})

    def gaps(self, rollouts: Rollouts, ctx: Context) -> Tensor:
        """gap_y of each trajectory [B]."""
        rows_b = rollouts.mask_bt.sum(1).clamp(min=1)
        logps_bt2 = ctx.per_row(rollouts, lambda rows: torch.stack(
            [rows.teacher_logp_n, rows.student.logp(rows.action_n)], -1))
        teacher_b, student_b = ((masked(logp_bt, rollouts.mask_bt).sum(1) / rows_b).exp().double()
                                for logp_bt in logps_bt2.unbind(-1))
        return torch.where(rollouts.columns["part"] == TEACHER_PART, teacher_b - student_b, student_b - teacher_b)

    def adapted(self, gap_b: Tensor, part_b: Tensor) -> Tensor:
        """alpha_y [B], after taking the gaps into their running mean m."""
        params = self.params
        self.n_steps += 1
        for part in (TEACHER_PART, STUDENT_PART):
            self.gap_sums[part] += float(gap_b[part_b == part].mean())
        mean_b = torch.tensor(self.gap_sums, dtype=gap_b.dtype, device=gap_b.device)[part_b] / self.n_steps
        alpha_b: Tensor = 1 - (1 - params.alpha) * mean_b / gap_b
        return alpha_b.nan_to_num(nan=params.alpha).clamp(params.alpha_min, max(params.alpha_min, params.alpha))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        params, alpha_n = self.params, rows.columns["alpha"]
        b = params.b_start + (params.b_end - params.b_start) * ctx.progress
        teacher, student = rows.pair()
        pull_n = skew_kl(teacher, student, alpha_n)
        if params.moving_mixture:
            push_n = skew_reverse_kl(teacher, student, alpha_n)
        else:
            push_n = reverse_kl(mixture(teacher, student, 1 - alpha_n), student)
        by_teacher_n = rows.columns["part"] == TEACHER_PART
        return Loss(torch.where(by_teacher_n, (2 - b) * pull_n, b * push_n), {"alpha": alpha_n})

    def state_dict(self) -> dict[str, Any]:
        return {"gap_sums": list(self.gap_sums), "n_steps": self.n_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.gap_sums, self.n_steps = [float(value) for value in state["gap_sums"]], int(state["n_steps"])
