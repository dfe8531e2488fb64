"""f-distillation: f-divergences between whole sequences, bounded by step-wise ones on both sides' samples."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from opdbench.actors import Actor, Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, reverse_kl, skew_kl, skew_reverse_kl, total_variation
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows

TEACHER_PART, STUDENT_PART = 0, 1


class FDistill(Distiller):
    """A symmetric divergence, on samples of both sides, neither averages the teacher's modes nor drops them.

        tvd:   L = 1/2 E_{y ~ p} sum_t TV(p, q)(y_<t) + 1/2 E_{y ~ q} sum_t TV(p, q)(y_<t),   TV = 1/2 sum_v |p - q|
        js:    L = 1/2 E_{y ~ p} sum_t KL(p || m)(y_<t) + 1/2 E_{y ~ q} sum_t KL(q || m)(y_<t),   m = (p + q) / 2
        kl:    L = E_{y ~ p} sum_t KL(p || q)(y_<t)            rkl:   L = E_{y ~ q} sum_t KL(q || p)(y_<t)

    kl, rkl and (with m a mixture of sequences) js are the sequence-level divergences taken apart by the chain rule;
    for tvd the step-wise sum is an upper bound. No gradient flows through the sampling of y.

    Deviations from the paper:
        Half of each batch is written by the teacher and half by the student, on different prompts, where a divergence
        needs both; each half is averaged by itself. Teacher samples are fresh, the paper's are labelled beforehand.
        The mixture m is of next-token distributions in a common prefix, as in the paper's code. The code samples with
        beams and top-k 30; here from the whole distribution, as the equations say. `states` gives the one-sided
        ablations.
    """

    name: ClassVar[str] = "fdistill"
    paper: ClassVar[str] = "Wen, Li, Du and Mou, ACL 2023 (arXiv 2307.15190), section 2.2 and 2.3"
    needs: ClassVar[Needs] = Needs.FULL
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        divergence: Literal["tvd", "js", "kl", "rkl"] = Field("tvd", description="the f-divergence, as above")
        states: Literal["own", "teacher", "student"] = Field(
            "own", description="who writes: both or the one that the divergence is an expectation over, or always one")

    def writers(self) -> tuple[str, ...]:
        """Whose samples a batch is made of."""
        own = {"tvd": ("teacher", "student"), "js": ("teacher", "student"), "kl": ("teacher",), "rkl": ("student",)}
        return own[self.params.divergence] if self.params.states == "own" else (self.params.states,)

    def collect(self, ctx: Context) -> Rollouts:
        actors: dict[str, Actor] = {"teacher": Teacher(ctx.training.teacher_temperature),
                                    "student": Student(ctx.training.temperature)}
        writers = self.writers()
        if len(writers) == 1:
            return ctx.rollout(actors[writers[0]])
        n_teacher = max(1, ctx.training.batch // 2)
        return Rollouts.cat_parts([ctx.rollout(actors["teacher"], n=n_teacher),
                                   ctx.rollout(actors["student"], n=max(1, ctx.training.batch - n_teacher))])

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        share = 1 / len(self.writers())  # parts are averaged apart and then summed
        divergence, (teacher, student) = self.params.divergence, rows.pair()
        if divergence == "tvd":
            return Loss(share * total_variation(teacher, student))
        if divergence != "js":
            return Loss((forward_kl if divergence == "kl" else reverse_kl)(teacher, student))
        to_mixture_n = skew_kl(teacher, student, 0.5)
        from_mixture_n = skew_reverse_kl(teacher, student, 0.5)
        if share == 1:
            return Loss((to_mixture_n + from_mixture_n) / 2)
        by_teacher_n = rows.columns["part"] == TEACHER_PART
        return Loss(share * torch.where(by_teacher_n, to_mixture_n, from_mixture_n))
