"""DistiLLM: skewed KLs, and student samples only as far as they help, many of them from a buffer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import skew_kl, skew_reverse_kl
from opdbench.replay import Aggregate
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class DistiLLM(Distiller):
    """A skewed KL has bounded gradients, and stale student samples will do: most of on-policy's gain at less cost.

        SKL:  L = KL(p || alpha p + (1 - alpha) q)        SRKL: L = KL(q || (1 - alpha) p + alpha q)
        u ~ U(0, 1):  u < phi lambda(t): new student samples, kept in a buffer;  u < phi: a draw from the buffer;
        else data.    phi <- min(1, phi + step) whenever the validation loss has risen by more than the tolerance

    lambda(t) falls from 1 to 0 over the budget (`replay=decreasing`). The buffer is first in, first out, and until it
    is full u < phi always makes new samples. Validation is L on teacher samples that are held out from the first step.

    Deviations from the paper:
        phi starts at 0 and moves only when validation gets worse: where data are the teacher's fresh samples, and not a
        fixed set passed over many times, that may never happen, and the method is then off-policy SKL; `initial` and
        `data=solutions` change that. Validation happens every `validate_every` steps rather than every epoch, and its
        prompts come from the training problems, which later epochs use again (for other samples).
        A rise is measured from the last validation; the code (`--preset code`) measures it from the last one that moved
        phi. The language-modelling loss on a pre-training corpus is left out: no task has one.
        The released code stores student samples with labels off by one and drops their end token; not imitated.
    """

    name: ClassVar[str] = "distillm"
    paper: ClassVar[str] = "Ko, Kim, Chen and Yun, ICML 2024 (arXiv 2402.03898), eqs. 3 to 5, algorithm 1"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"code": {"rise_since": "last_move"}}

    class Params(Distiller.Params):
        divergence: Literal["skl", "srkl"] = Field("skl", description="skew KL or skew reverse KL")
        alpha: float = Field(0.1, gt=0, lt=1, description="skew: the share of its own first argument in the mixture")
        data: Literal["teacher", "solutions"] = Field(
            "teacher", description="the data: the teacher's samples, or the task's reference solutions")
        initial: float = Field(0.0, ge=0, le=1, description="phi at the start: the share of student samples")
        step: float = Field(0.1, gt=0, le=1, description="by which phi rises")
        tolerance: float = Field(0.1, ge=0, description="rise of the validation loss in nats a token, let pass")
        rise_since: Literal["last_validation", "last_move"] = Field(
            "last_validation", description="what the validation loss is compared with")
        replay: Literal["decreasing", "constant", "increasing"] = Field(
            "decreasing", description="lambda(t), the share of new ones among student samples: 1 - t, 0.5 or t")
        capacity: int = Field(1000, ge=1, description="trajectories in the buffer")
        validate_every: int = Field(20, ge=1, description="steps between validations")
        validation: int = Field(64, ge=1, description="held-out trajectories")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.buffer, self.held_out = Aggregate(params.capacity), Aggregate()
        self.phi, self.compared = params.initial, float("nan")

    def fresh_share(self, progress: float) -> float:
        """lambda(t)."""
        return {"decreasing": 1 - progress, "constant": 0.5, "increasing": progress}[self.params.replay]

    def collect(self, ctx: Context) -> Rollouts:
        if not len(self.held_out):
            self.held_out.add(ctx.score(self.fixed_data(ctx, self.params.validation), self.needs))
            self.compared = self.validation_loss(ctx)
        chance = ctx.rng("writer").random()
        full = len(self.buffer) >= self.params.capacity
        if chance < self.phi * self.fresh_share(ctx.progress) or (chance < self.phi and not full):
            return _marked(ctx.rollout(Student(ctx.training.temperature)), fresh=True)
        if chance < self.phi:
            return _marked(self.buffer.sample(ctx.training.batch, ctx.rng("replay")), fresh=False)
        return _marked(self.fixed_data(ctx, ctx.training.batch), fresh=False)

    def fixed_data(self, ctx: Context, n: int) -> Rollouts:
        if self.params.data == "solutions":
            return ctx.demonstrations(n=n)
        return ctx.rollout(Teacher(ctx.training.teacher_temperature), n=n)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        if bool(rollouts.columns["fresh"].all()):
            self.buffer.add(rollouts)
        return rollouts

    def divergence(self, rows: Rows) -> Tensor:
        skewed = skew_kl if self.params.divergence == "skl" else skew_reverse_kl
        return skewed(*rows.pair(), self.params.alpha)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        value_n = self.divergence(rows)
        return Loss(value_n, {"phi": torch.full_like(value_n, self.phi)})

    def validation_loss(self, ctx: Context) -> float:
        held_out = self.held_out.all()
        return float(ctx.per_row(held_out, self.divergence).sum() / held_out.n_rows)

    def after_step(self, ctx: Context) -> None:
        params = self.params
        if (ctx.step + 1) % params.validate_every:
            return
        loss = self.validation_loss(ctx)
        risen = loss >= self.compared + params.tolerance
        if risen:
            self.phi = min(1.0, self.phi + params.step)
        if risen or params.rise_since == "last_validation":
            self.compared = loss

    def state_dict(self) -> dict[str, Any]:
        return {"buffer": self.buffer.state_dict(), "held_out": self.held_out.state_dict(), "phi": self.phi,
                "compared": self.compared}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.buffer.load_state_dict(state["buffer"])
        self.held_out.load_state_dict(state["held_out"])
        self.phi, self.compared = float(state["phi"]), float(state["compared"])


def _marked(rollouts: Rollouts, *, fresh: bool) -> Rollouts:
    """With column `fresh`: new samples of the student, which the buffer does not have yet."""
    return rollouts.with_columns(per_trajectory={"fresh": torch.full_like(rollouts.length_b, int(fresh))})
