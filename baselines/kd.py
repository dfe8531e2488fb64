"""Word-level knowledge distillation: the whole distribution of the teacher, in the teacher's own states."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from opdbench.actors import Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class KD(Distiller):
    """A soft label says more about a state than the action that was sampled there.

        L = tau^2 E_{s ~ D} KL(p_tau(. | s) || q_tau(. | s)),   p_tau = softmax(teacher logits / tau), q_tau likewise

    D is off-policy: states that the teacher visits, or those of reference solutions. tau is `loss_temperature`, and the
    factor tau^2 keeps gradients of one size as it changes (Hinton et al. 2015, section 2.1).

    Deviations from the paper:
        No cross-entropy with the true label is added (Hinton's second term): MiniLLM's baseline mixes it in at one
        half, DistiLLM's not at all. Demonstrations are drawn fresh from the teacher at each step.
    """

    name: ClassVar[str] = "kd"
    paper: ClassVar[str] = "Hinton, Vinyals and Dean 2015 (arXiv 1503.02531), section 2; Sanh et al. 2019"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        data: Literal["teacher", "solutions"] = Field(
            "teacher", description="states: the teacher's own samples, or the task's reference solutions")

    def collect(self, ctx: Context) -> Rollouts:
        if self.params.data == "solutions":
            return ctx.demonstrations()
        return ctx.rollout(Teacher(ctx.training.teacher_temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(ctx.training.loss_temperature**2 * forward_kl(*rows.pair()))
