"""On-policy representation distillation (OPRD): the teacher's hidden states on what the student wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from opdbench.actors import Student
from opdbench.advantages import decisions_to_go
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import TEACHER_LAYERS, Rows

FITTED_ROWS = 4096  # from which projections are fitted, at most


class OPRD(Distiller):
    """Hidden states say more of how a teacher reads a prefix than its next token does, and need no common vocabulary.

        L = mean over the last `last` rows of y ~ q, and over layers l, of  1/H | n(h_q^l) - n(h_p^m(l)) |^2
        n(h) = h / |h|,   m(l) = layers in proportion

    Where the widths differ, both are projected to `rank` dimensions first: the teacher's to its principal components,
    the student's by a projection that stays as it is. `opd` adds the reverse KL between the tokens' distributions.

    Deviations from the paper:
        `--preset main` is the repository's other branch, without n. How the student's projection is found is not
        public: here both are fitted on the first batch, the student's by least squares to the teacher's projected
        states. Teachers with another tokenizer (rank 4) are not there, since their states stand elsewhere in the text.
    """

    name: ClassVar[str] = "oprd"
    paper: ClassVar[str] = "OPRD 2026 (arXiv 2606.06021), representation loss; official code, current branch"
    needs: ClassVar[Needs] = Needs.HIDDEN
    row_wise: ClassVar[bool] = False  # layers are not cut into chunks of rows
    presets: ClassVar[dict[str, dict[str, Any]]] = {"main": {"normalise": False}}

    class Params(Distiller.Params):
        normalise: bool = Field(True, description="compare directions: every state divided by its length")
        last: int = Field(2000, ge=1, description="decisions from the end of an answer that are compared")
        rank: int = Field(8, ge=1, description="dimensions that are compared, where the two have different widths")
        opd: float = Field(0.0, ge=0, description="coefficient of the reverse KL over all actions; in the paper 0 or 1")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.projections: dict[str, Tensor] = {}  # by side, [L, H, rank]; empty where the widths are equal

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        teacher_nlh = rollouts.columns[TEACHER_LAYERS][rollouts.mask_bt]
        if not self.projections:
            student_nlh = ctx.per_row(rollouts, _layers)[rollouts.mask_bt]
            if student_nlh.shape[-1] != teacher_nlh.shape[-1]:
                teacher_nlh = teacher_nlh[:, proportional(student_nlh.shape[1], teacher_nlh.shape[1])]
                self.projections = fitted(teacher_nlh[:FITTED_ROWS], student_nlh[:FITTED_ROWS], self.params.rank)
        left_bt = decisions_to_go(rollouts.mask_bt, rollouts.done_bt)
        return replace(rollouts, source_bt=rollouts.source_bt.masked_fill(left_bt > self.params.last, Source.NOBODY))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        student_nlh, teacher_nlh = _layers(rows), rows.columns[TEACHER_LAYERS]
        teacher_nlh = teacher_nlh[:, proportional(student_nlh.shape[1], teacher_nlh.shape[1])].to(student_nlh.dtype)
        if self.projections:
            teacher_nlh, student_nlh = (torch.einsum("nlh,lhr->nlr", side_nlh, self.projections[side].to(side_nlh))
                                        for side, side_nlh in (("teacher", teacher_nlh), ("student", student_nlh)))
        value_n = distance(teacher_nlh, student_nlh, normalise=self.params.normalise)
        if self.params.opd == 0:
            return Loss(value_n)
        return Loss(value_n + self.params.opd * reverse_kl(rows.teacher, rows.student), {"representation": value_n})

    def state_dict(self) -> dict[str, Any]:
        return {"projections": dict(self.projections)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.projections = dict(state["projections"])


def proportional(n_student: int, n_teacher: int) -> list[int]:
    """The teacher's layer for each of the student's: the last for the last, the others in proportion."""
    return [round((layer + 1) * n_teacher / n_student) - 1 for layer in range(n_student)]


def distance(teacher_nlh: Tensor, student_nlh: Tensor, *, normalise: bool) -> Tensor:
    """Squared distance [N], mean over layers and dimensions; at most 4/H where states are normalised."""
    if normalise:
        teacher_nlh, student_nlh = normalize(teacher_nlh, dim=-1), normalize(student_nlh, dim=-1)
    return (student_nlh - teacher_nlh).square().mean((-1, -2))


def fitted(teacher_nlh: Tensor, student_nlh: Tensor, rank: int) -> dict[str, Tensor]:
    """Projections by side [L, H, rank]: principal components, and least squares to what they make of the teacher's."""
    rank = min(rank, teacher_nlh.shape[-1], student_nlh.shape[-1])
    found: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    for teacher_nh, student_nh in zip(teacher_nlh.double().unbind(1), student_nlh.double().unbind(1), strict=True):
        gap_nh = teacher_nh - teacher_nh.mean(0)
        components_hr = torch.linalg.eigh(gap_nh.T @ gap_nh).eigenvectors[:, -rank:]
        found["teacher"].append(components_hr)
        found["student"].append(torch.linalg.pinv(student_nh) @ (teacher_nh @ components_hr))
    return {side: torch.stack(layers) for side, layers in found.items()}


def _layers(rows: Rows) -> Tensor:
    assert rows.layers_nlh is not None  # the teacher's are among the columns
    return rows.layers_nlh
