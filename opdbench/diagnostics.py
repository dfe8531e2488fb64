"""The standard diagnostics of every step: how far the student is from the teacher, and what it wrote.

Distances are taken on the first rows of each step (256 of them), since they are watched and not optimised: before the
update where the method asks for the teacher's whole distribution, after it where it does not. Counts and lengths are
over all trajectories. `top_k_mass` is what the student gives to the teacher's `top_k` most likely actions, on whatever
support the two are compared; `teacher_mass` and `student_mass` are what each has inside a support that is not full.
Where actions are vectors of real numbers there is no `agreement` and no `top_k_mass`.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from opdbench import divergences
from opdbench.distiller import Loss
from opdbench.distributions import Gaussian
from opdbench.pieces import PIECE_HEAD
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import TEACHER_FEATURES, TEACHER_LOGITS, TEACHER_LOGP, Rows

SAMPLE = 256  # rows a step
TOP_K_SAMPLE = 64  # rows of each of their chunks: finding the k most likely of many actions costs more than the rest


class StepMeter:
    """Collects one step's figures; every one is a mean over what it was measured on."""

    def __init__(self) -> None:
        self._update_loss = 0.0
        self._losses: list[float] = []
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)
        self._rows_left = SAMPLE

    def add_rollouts(self, rollouts: Rollouts) -> None:
        """Lengths, truncation, reward and who acted, over the trajectories that this step collected."""
        rows_b = rollouts.mask_bt.sum(1)
        self._add("length", rows_b.double())
        self._add("truncated", rollouts.truncated_b.double())
        self._add("reward", rollouts.reward_bt.sum(1).double())
        self._add("student_share", (rollouts.source_bt[rollouts.mask_bt] == Source.STUDENT).double())

    def add_chunk(self, rows: Rows, loss: Loss, total: Tensor) -> None:
        """One chunk's loss, the method's own scalars, and distances on its first rows while the sample lasts."""
        self._update_loss += total.item()
        for name, value_n in loss.scalars.items():
            self._add(name, value_n.detach().double())
        for name, mass_n in rows.captured.items():
            self._add(name, mass_n.double())
        if self._rows_left > 0:
            sample = rows.first(self._rows_left)
            self._rows_left -= len(sample)
            self._measure(sample)

    @torch.no_grad()
    def _measure(self, rows: Rows) -> None:
        student = rows.student
        self._add("entropy", student.entropy().double())
        by_student_n = (rows.source_n == Source.STUDENT) & rows.behaviour_logp_n.isfinite()
        if by_student_n.any():
            # At temperature 1 and before the first update this is rounding only; it grows with staleness.
            gap_n = (student.logp(rows.action_n) - rows.behaviour_logp_n)[by_student_n].abs()
            self._add("sampler_gap", gap_n.double())
        by_teacher_n = (rows.source_n == Source.TEACHER) & rows.behaviour_logp_n.isfinite()
        if TEACHER_LOGP in rows.columns and by_teacher_n.any():
            # Likewise of a teacher that samples and scores: of a server, whether it does both with one distribution.
            gap_n = (rows.columns[TEACHER_LOGP] - rows.behaviour_logp_n)[by_teacher_n].abs()
            self._add("teacher_gap", gap_n.double())
        if (TEACHER_FEATURES in rows.columns or TEACHER_LOGITS in rows.columns) and PIECE_HEAD not in rows.columns:
            self.add_distance(rows)

    @property
    def knows_distance(self) -> bool:
        """Whether the distance to the teacher has been measured in this step."""
        return "reverse_kl" in self._sums

    @torch.no_grad()
    def add_distance(self, rows: Rows) -> None:
        """How far the student is from the teacher in these rows, whose columns hold the teacher's features."""
        student, teacher = rows.student, rows.teacher
        self._add("teacher_entropy", teacher.entropy().double())
        self._add("forward_kl", divergences.forward_kl(teacher, student).double())
        self._add("reverse_kl", divergences.reverse_kl(teacher, student).double())
        if isinstance(teacher, Gaussian):
            return
        self._add("agreement", (teacher.mode() == student.mode()).double())
        top_nk = teacher.logits_na[:TOP_K_SAMPLE].topk(min(rows.top_k, teacher.logits_na.shape[-1])).indices
        self._add("top_k_mass", student.logp_na[:TOP_K_SAMPLE].gather(-1, top_nk).exp().sum(-1).double())

    def pop_update_loss(self) -> float:
        """The loss of the update that has just been accumulated."""
        loss, self._update_loss = self._update_loss, 0.0
        self._losses.append(loss)
        return loss

    def summary(self) -> dict[str, float]:
        figures = {name: self._sums[name] / self._counts[name] for name in self._sums if self._counts[name]}
        if self._losses:
            figures["loss"] = sum(self._losses) / len(self._losses)
        return figures

    def _add(self, name: str, value: Tensor) -> None:
        self._sums[name] += value.sum().item()
        self._counts[name] += value.numel()
