"""Imitation-based distillation: DAgger for sequence models, with a share of data that falls."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from opdbench.actors import Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, negative_log_likelihood
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_ACTION, Rows


class ImitKD(Distiller):
    """Prefixes of the student's own making, labelled by the teacher, cure exposure bias.

        y ~ data with probability beta_i, else y ~ q(. | x);   beta_i = r^(i / I)
        L = E_y sum_t - log q(v*_t | y_<t, x),   v*_t = argmax_v p(v | y_<t, x)

    i / I is the share of the budget that is spent, so the share of data falls from 1 to r. One coin is tossed for each
    batch. `labels=soft` is the variant that the paper marks with a plus: the teacher's whole distribution in place of
    its most likely token.

    Deviations from the paper:
        The data are by default the teacher's fresh samples rather than the data set's references (`data=solutions`), so
        that control tasks have them too. The last student is returned, not the best on validation.
        The decay's base r is recalled, not read: 0.005. What DistiLLM's code calls ImitKD is another method: always
        student samples, through a replay buffer, with soft labels and a language-modelling loss.
    """

    name: ClassVar[str] = "imitkd"
    paper: ClassVar[str] = "Lin, Wohlwend, Chen and Lei, EMNLP 2020 (arXiv 2009.07253), algorithm 1, L_opt and L_full"
    needs: ClassVar[Needs] = Needs.ACTION
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        labels: Literal["hard", "soft"] = Field(
            "hard", description="hard: the teacher's most likely action; soft: its distribution (forward KL)")
        schedule: Literal["exponential", "linear", "never"] = Field(
            "exponential", description="share of data: r^progress, 1 - (1 - r) progress, or none at all")
        final_share: float = Field(0.005, gt=0, le=1, description="r, the share of data when the budget is spent")
        data: Literal["teacher", "solutions"] = Field(
            "teacher", description="the data: the teacher's samples, or the task's reference solutions")

    def requires(self) -> Needs:
        return Needs.ACTION if self.params.labels == "hard" else Needs.FULL

    def data_share(self, progress: float) -> float:
        """beta_i, when `progress` (0 to 1) of the budget is spent."""
        final = self.params.final_share
        shares = {"exponential": final**progress, "linear": 1 - (1 - final) * progress, "never": 0.0}
        return float(shares[self.params.schedule])

    def collect(self, ctx: Context) -> Rollouts:
        if ctx.rng("data").random() >= self.data_share(ctx.progress):
            return ctx.rollout(Student(ctx.training.temperature))
        if self.params.data == "solutions":
            return ctx.demonstrations()
        return ctx.rollout(Teacher(ctx.training.teacher_temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        if self.params.labels == "soft":
            return Loss(forward_kl(*rows.pair()))
        return Loss(negative_log_likelihood(rows.student, rows.columns[TEACHER_ACTION]))
