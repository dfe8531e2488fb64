"""What an actor did, in both worlds: B trajectories of T steps, padded on the right.

A state is a state. In a language model the input at step t is the token read there, the state is the prefix up to and
including it, and the action is the next token. In a control task the input is the observation, which is the state.
Suffixes name shapes: b trajectories, t steps, n rows (visited states), a actions, d numbers of an action, h features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor


class Source(IntEnum):
    """Who chose an action. NOBODY marks what is not a decision: prompts, environment turns, padding."""

    NOBODY = 0
    STUDENT = 1
    TEACHER = 2
    DATA = 3


@dataclass(frozen=True)
class Rollouts:
    """B trajectories. Every step whose `source_bt` is not NOBODY is a row that a method may learn from.

    Attributes:
        input_bt: what is read at step t: token ids [B, T] (int64), or observations [B, T, ...].
        action_bt: what was chosen there, int64 [B, T]; for language models the next token; float32 [B, T, D] where
            actions are vectors of real numbers. Undefined where NOBODY.
        source_bt: uint8 [B, T], a `Source`.
        behaviour_logp_bt: float32 [B, T], log-probability of the action under the distribution that sampled it, at the
            sampling temperature; NaN where it is not known (data).
        reward_bt: float32 [B, T], reward received after the action (a verifier's verdict sits on the last one).
        done_bt: bool [B, T], the episode ended with this action (a control task's segment may hold several episodes).
        length_b: int64 [B], number of valid steps; masks come from here, never from token ids.
        truncated_b: bool [B], cut off by the horizon rather than ended.
        columns: further tensors that begin with [B] or [B, T]; T-long ones must be listed in `step_columns`.
        step_columns: the names in `columns` whose second dimension is T.
    """

    input_bt: Tensor
    action_bt: Tensor
    source_bt: Tensor
    behaviour_logp_bt: Tensor
    reward_bt: Tensor
    done_bt: Tensor
    length_b: Tensor
    truncated_b: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    step_columns: frozenset[str] = frozenset()

    @property
    def mask_bt(self) -> Tensor:
        """bool [B, T]: True where somebody decided, so where there is a row."""
        return self.source_bt != Source.NOBODY

    @property
    def n_trajectories(self) -> int:
        return self.input_bt.shape[0]

    @property
    def n_rows(self) -> int:
        return int(self.mask_bt.sum())

    def count(self, source: Source) -> int:
        """Number of rows whose action `source` chose."""
        return int((self.source_bt == source).sum())

    def with_columns(self, *, per_trajectory: Mapping[str, Tensor] | None = None,
                     per_step: Mapping[str, Tensor] | None = None) -> Rollouts:
        """A copy with extra columns, [B, ...] and [B, T, ...]."""
        per_trajectory, per_step = per_trajectory or {}, per_step or {}
        return replace(self, columns={**self.columns, **per_trajectory, **per_step},
                       step_columns=(self.step_columns - frozenset(per_trajectory)) | frozenset(per_step))

    def select(self, index_b: Tensor | Sequence[int]) -> Rollouts:
        """The trajectories at `index_b`, in that order, cut to the longest of them."""
        index_b = torch.as_tensor(index_b, dtype=torch.int64, device=self.length_b.device)
        horizon = int(self.length_b[index_b].max()) if len(index_b) else 0
        tensors = {name: value[index_b] for name, value in self.tensors().items()}
        return self._build({name: value[:, :horizon] if self._is_per_step(name) else value
                            for name, value in tensors.items()}, self.step_columns)

    @staticmethod
    def cat(parts: Sequence[Rollouts]) -> Rollouts:
        """All trajectories of `parts`, padded to the longest; the parts must have the same columns."""
        names = {tuple(sorted(part.columns)) for part in parts}
        if len(names) != 1:
            raise ValueError(f"rollouts with different columns cannot be joined: {sorted(names)}")
        horizon = max(part.input_bt.shape[1] for part in parts)
        joined = {}
        for name in parts[0].tensors():
            values = [part.tensors()[name] for part in parts]
            if parts[0]._is_per_step(name):
                values = [_pad_steps(value, horizon) for value in values]
            joined[name] = torch.cat(values)
        return parts[0]._build(joined, parts[0].step_columns)

    @staticmethod
    def cat_parts(parts: Sequence[Rollouts]) -> Rollouts:
        """`cat`, with the number of the part that a trajectory came from as column `part` [B]: each part's loss is then
        reduced apart (`rows.row_weights`), so that the step's loss is the sum of the parts' own means."""
        return Rollouts.cat([part.with_columns(per_trajectory={"part": torch.full_like(part.length_b, number)})
                             for number, part in enumerate(parts)])

    def flatten(self) -> Rollouts:
        """Every row as a trajectory of length one; only where an input is a whole state (control tasks)."""
        mask_bt = self.mask_bt
        rows_b = mask_bt.sum(1)
        tensors = {name: value[mask_bt][:, None] if self._is_per_step(name) else value.repeat_interleave(rows_b, dim=0)
                   for name, value in self.tensors().items()}
        n_rows = int(rows_b.sum())
        tensors["length_b"] = torch.ones(n_rows, dtype=torch.int64, device=rows_b.device)
        return self._build(tensors, self.step_columns)

    def to(self, device: torch.device | str) -> Rollouts:
        return self._build({name: value.to(device) for name, value in self.tensors().items()}, self.step_columns)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for storing; `from_tensors` is the inverse."""
        fixed = {name: getattr(self, name) for name in _FIXED}
        return {**fixed, **{f"columns.{name}": value for name, value in self.columns.items()}}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], step_columns: frozenset[str]) -> Rollouts:
        return cls._build(tensors, step_columns)

    @classmethod
    def _build(cls, tensors: Mapping[str, Tensor], step_columns: frozenset[str]) -> Rollouts:
        columns = {name.removeprefix("columns."): value for name, value in tensors.items() if name not in _FIXED}
        return cls(**{name: tensors[name] for name in _FIXED}, columns=columns, step_columns=step_columns)

    def _is_per_step(self, name: str) -> bool:
        if name in _FIXED:
            return name.endswith("_bt")
        return name.removeprefix("columns.") in self.step_columns


_FIXED = ("input_bt", "action_bt", "source_bt", "behaviour_logp_bt", "reward_bt", "done_bt", "length_b", "truncated_b")


def _pad_steps(value: Tensor, horizon: int) -> Tensor:
    missing = horizon - value.shape[1]
    return value if missing == 0 else torch.cat([value, value.new_zeros(value.shape[0], missing, *value.shape[2:])], 1)
