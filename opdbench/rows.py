"""Rows: what a loss sees. N visited states, and in each what the student would do, what the teacher revealed, and what
was done. A row knows no domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from opdbench.distributions import Categorical, Distribution
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts
from opdbench.support import Comparison, TopK

TEACHER_FEATURES = "teacher_features"  # [B, T, H]: stored instead of logits, which may be 100 times as large
TEACHER_LOGITS = "teacher_logits"  # [B, T, A]: instead of features, in a store where features are the larger
TEACHER_LAYERS = "teacher_layers"  # [B, T, L, H]: what every layer gives out, where a method asks for HIDDEN
TEACHER_LOGP = "teacher_logp"  # [B, T]: of the action taken
TEACHER_TOPK_ID = "teacher_topk_id"  # [B, T, K] int64: all that some teachers reveal (opdbench.support.TopK)
TEACHER_TOPK_LOGP = "teacher_topk_logp"  # [B, T, K]
TEACHER_ACTION = "teacher_action"  # [B, T], or [B, T, D]: the teacher's most likely action

Projection = Callable[[Tensor], Distribution]  # features [N, H] -> N distributions


@dataclass
class Rows:
    """N rows of one chunk. Tensors are differentiable only where they come from the student.

    Attributes:
        features_nh: the student's features, for losses on hidden states.
        action_n: int64, the action taken, or float32 [N, D] where actions are vectors of real numbers.
        source_n: uint8, a `Source`; reward_n: float32.
        behaviour_logp_n: float32, the action's log-probability when it was sampled (NaN for data).
        columns: everything that `prepare` or the teacher added, one entry a row: [N, ...]. A column with one value
            a trajectory is repeated over its rows.
    """

    features_nh: Tensor
    action_n: Tensor
    source_n: Tensor
    behaviour_logp_n: Tensor
    reward_n: Tensor
    columns: Mapping[str, Tensor]
    _student: Projection
    _teacher: Projection | None
    _comparison: Comparison = field(default_factory=Comparison)
    layers_nlh: Tensor | None = None
    """What every layer of the student gives out; there when the teacher's are (TEACHER_LAYERS)."""
    captured: dict[str, Tensor] = field(default_factory=dict)
    """The probability [N] inside the support, by side: filled by `pair`, logged by the loop."""

    @cached_property
    def student(self) -> Distribution:
        return self._student(self.features_nh)

    @cached_property
    def teacher(self) -> Distribution:
        """The teacher's whole distribution; there when the method's need is FULL."""
        if TEACHER_LOGITS in self.columns:
            return Categorical(self.columns[TEACHER_LOGITS])
        if self._teacher is None or TEACHER_FEATURES not in self.columns:
            raise LookupError("this method did not ask for the teacher's full distribution: set needs = Needs.FULL")
        with torch.no_grad():
            return self._teacher(self.columns[TEACHER_FEATURES])

    def teacher_at(self, row_c: Tensor) -> Distribution:
        """The teacher's distribution in some of the rows, by number [C]."""
        if self._teacher is None or TEACHER_FEATURES not in self.columns:
            raise LookupError("nobody asked the teacher for its full distribution")
        with torch.no_grad():
            return self._teacher(self.columns[TEACHER_FEATURES][row_c])

    def pair(self, comparison: Comparison | None = None) -> tuple[Distribution, Distribution]:
        """(teacher, student), as the run's settings compare them: at its `loss_temperature`, on its `support`; or as a
        method does that has a support of its own."""
        pair = (comparison or self._comparison).pair(self._revealed(), self.student)
        if pair.teacher_mass_n is not None and pair.student_mass_n is not None:
            self.captured = {"teacher_mass": pair.teacher_mass_n, "student_mass": pair.student_mass_n}
        return pair.teacher, pair.student

    @property
    def top_k(self) -> int:
        """The run's `top_k`, whatever its support."""
        return self._comparison.top_k

    @property
    def teacher_logp_n(self) -> Tensor:
        """The teacher's log-probability of the action taken [N], in float32 or wider."""
        logp_n = self.columns.get(TEACHER_LOGP)
        return self.teacher.logp(self.action_n) if logp_n is None else logp_n

    def _revealed(self) -> Distribution | TopK:
        if TEACHER_TOPK_ID in self.columns:
            return TopK(self.columns[TEACHER_TOPK_ID], self.columns[TEACHER_TOPK_LOGP])
        return self.teacher

    def __len__(self) -> int:
        return self.action_n.shape[0]

    def first(self, n: int) -> Rows:
        """The first n rows, cut from the graph: for diagnostics. Distributions that are known are not made again."""
        rows = Rows(self.features_nh[:n].detach(), self.action_n[:n], self.source_n[:n], self.behaviour_logp_n[:n],
                    self.reward_n[:n], {name: value[:n] for name, value in self.columns.items()}, self._student,
                    self._teacher, self._comparison)
        for side in ("student", "teacher"):
            if side in self.__dict__:
                rows.__dict__[side] = self.__dict__[side].first(n)
        return rows


class RowTable:
    """All rows of some rollouts in (trajectory, step) order, cut into chunks on demand."""

    def __init__(self, rollouts: Rollouts, student: Policy, teacher: Policy | None,
                 comparison: Comparison = Comparison()) -> None:  # noqa: B008 - frozen
        mask_bt = rollouts.mask_bt
        repeats_b = mask_bt.sum(1)
        self._student, self._comparison = student.distribution, comparison
        self._teacher = None if teacher is None else teacher.distribution
        self._fields = {name: getattr(rollouts, f"{name}_bt")[mask_bt]
                        for name in ("action", "source", "behaviour_logp", "reward")}
        self._columns = {
            name: value[mask_bt] if name in rollouts.step_columns else value.repeat_interleave(repeats_b, dim=0)
            for name, value in rollouts.columns.items()}

    def chunk(self, features_nh: Tensor, start: int, stop: int, layers_nlh: Tensor | None = None) -> Rows:
        """Rows start..stop, whose student features are `features_nh` (a leaf, when the backward is chunked)."""
        fields = {f"{name}_n": value[start:stop] for name, value in self._fields.items()}
        columns = {name: value[start:stop] for name, value in self._columns.items()}
        return Rows(features_nh=features_nh, columns=columns, _student=self._student, _teacher=self._teacher,
                    _comparison=self._comparison, layers_nlh=layers_nlh, **fields)


def visited(student: Policy, rollouts: Rollouts) -> tuple[Tensor, Tensor | None]:
    """The student's features in every row [N, H], and its layers [N, L, H] where the teacher's are known."""
    if TEACHER_LAYERS not in rollouts.columns:
        return student.features(rollouts.input_bt, rollouts.length_b)[rollouts.mask_bt], None
    features_bth, layers_btlh = student.hidden(rollouts.input_bt, rollouts.length_b)
    return features_bth[rollouts.mask_bt], layers_btlh[rollouts.mask_bt]


def row_weights(rollouts: Rollouts, reduction: str) -> Tensor:
    """Weights [N] that turn one loss a row into the step's loss, whatever the micro-batches: mean over rows (`token`),
    mean over trajectories of their mean (`sequence`), or plain sum (`sum`).

    Trajectories with different values in the column `part` are normalised apart, so that a second loss on other data
    has its own mean. Trajectories without a single row count for nothing.
    """
    mask_bt = rollouts.mask_bt
    rows_b = mask_bt.sum(1)
    part_b = rollouts.columns.get("part")
    parts = [rows_b > 0] if part_b is None else [(part_b == part) & (rows_b > 0) for part in torch.unique(part_b)]
    weight_b = torch.zeros(rows_b.shape, dtype=torch.float64, device=rows_b.device)
    for in_part_b in parts:
        if reduction == "token":
            weight_b[in_part_b] = 1 / rows_b[in_part_b].sum().double()
        elif reduction == "sequence":
            weight_b[in_part_b] = 1 / (in_part_b.sum() * rows_b[in_part_b]).double()
        else:
            weight_b[in_part_b] = 1.0
    return weight_b.repeat_interleave(rows_b)
