"""MOPD with peers: each attempt is judged by the student itself, shown how a sibling succeeded and one that failed."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.copies import SelfTeacher
from opdbench.distiller import Loss, Standing
from opdbench.divergences import generalized_jsd, reverse_kl
from opdbench.privilege import informed, outcome, siblings
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.self_taught import SelfTaught
from opdbench.task import NoteKind


class MOPDPeers(SelfTaught):
    """Attempts at one prompt teach each other: what worked and what did not make a model its own better teacher.

        L = E_{y ~ q(. | x)} sum_t D( p(. | x, y+, y-, y_<t) , q(. | x, y_<t) ),   p = q before the step
        y+: a sibling that was right,  y-: one that was wrong, if there is one;   D = reverse KL

    Known: the form; the reverse KL for mathematics, JSD elsewhere; a success, or one and a failure, in the prompt.
    Missing: the template, its truncation, the group's size, JSD's beta, the top k of the comparison.

    Deviations from the paper:
        Ours: groups of 8, beta 0.5, the whole vocabulary, the first sibling of either kind, whole and not cut, the
        teacher being the student after the last step. An answer none of whose siblings was right is left out.
    """

    name: ClassVar[str] = "mopd-peers"
    paper: ClassVar[str] = "MOPD 2026, peers (arXiv 2605.12652); from notes"
    standing: ClassVar[Standing] = "unspecified"
    compares: ClassVar[bool] = True

    class Params(SelfTaught.Params):
        approximate: bool = Field(False, description="run it although parts of it are ours")
        group: int = Field(8, ge=2, description="answers to each prompt; divides the batch")
        divergence: Literal["reverse_kl", "jsd"] = Field("reverse_kl", description="D")
        beta: float = Field(0.5, gt=0, lt=1, description="of the JSD")
        failure: bool = Field(True, description="a wrong sibling is shown too, where there is one")
        threshold: float = Field(0.5, ge=0, description="a reward from which on an answer is a success")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.teacher = SelfTeacher(1.0)

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature), repeat=self.params.group)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        teacher, texts = self.teacher.of(ctx.student), ctx.prompts.written(rollouts)
        notes_b: list[dict[NoteKind, str] | None] = []
        for others in siblings(outcome(rollouts), rollouts.columns["group"], self.params.threshold):
            notes: dict[NoteKind, str] = {"success": texts[others.successes[0]]} if others.successes else {}
            if notes and others.failures and self.params.failure:
                notes["failure"] = texts[others.failures[0]]
            notes_b.append(notes or None)
        scored = ctx.score_under(rollouts, informed(ctx, rollouts, notes_b), policy=teacher)
        kept = [index for index, notes in enumerate(notes_b) if notes is not None]
        ctx.note("without_context", len(notes_b) - len(kept))
        return scored.select(kept)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        teacher, student = rows.pair()
        if self.params.divergence == "reverse_kl":
            return Loss(reverse_kl(teacher, student))
        return Loss(generalized_jsd(teacher, student, self.params.beta))
