"""ViCuR in text: self-distillation from a teacher that is told what could be read off the prompt."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.baselines.opsd import OPSD
from opdbench.context import Context
from opdbench.distiller import Needs
from opdbench.privilege import told
from opdbench.rollouts import Rollouts
from opdbench.task import NoteKind


class ViCuR(OPSD):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """What a teacher is told should be recoverable from what the student sees, or the student cannot learn to see it.

        L = E_{y ~ q(. | x)} sum_t D( p(. | x, cues(x), y_<t) || q(. | x, y_<t) )

    with D and p those of OPSD, or with `teacher=world` p the task's own teacher, as in OPD. Nothing but the teacher's
    prompt differs from either.

    Deviations from the paper:
        The paper's cues are of images, and its student has an attention of its own to the image's tokens; here cues are
        text (`LanguageTask.notes`), and the student is as it is. Its loss has no clip, like the first version of OPSD.
    """

    name: ClassVar[str] = "vicur"
    paper: ClassVar[str] = "ViCuR 2026 (arXiv 2606.05718), loss; official code"
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    notes: ClassVar[tuple[NoteKind, ...]] = ("cues",)
    vanishes_at_teacher = False  # a teacher that is told more is another one

    class Params(OPSD.Params):  # type: ignore[misc]
        divergence: Literal["forward_kl", "reverse_kl", "jsd", "sampled"] = Field(
            "jsd", description="D; `sampled` is a policy gradient with the log-ratio as advantage, unclipped")
        clip: float | None = Field(None, gt=0, description="the most that one action adds to D; None: no limit")
        teacher: Literal["self", "world"] = Field("self", description="who is told: the student, or the task's teacher")

    def requires(self) -> Needs:
        return Needs.NOTHING if self.params.teacher == "self" else Needs.FULL

    def asks(self, ctx: Context) -> Needs:
        return Needs.NOTHING  # `prepare` asks, under the other prompt

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        if self.params.teacher == "self":
            scored: Rollouts = super().prepare(rollouts, ctx)
            return scored
        return ctx.score_under(rollouts, told(ctx, rollouts, *self.notes), thinking=self.params.thinking)
