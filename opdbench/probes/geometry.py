"""How the weights move: how many, in how many directions, and whether those stay the same."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from opdbench.context import Context
from opdbench.policy import Policy
from opdbench.probes.base import Look, Probe

DIRECTIONS = 16
UNCHANGED = 1e-3  # of the larger of the two values: about what bfloat16 can tell apart


class Geometry(Probe):
    """Of the change of every weight matrix since the start (Geometry of OPD, 2606.07082), means over the matrices: the
    share of entries that are as they were, the stable rank, the change's norm over the matrix's. At the end: how much
    of the last change's top 16 right directions were those of every earlier look, and what random ones would share."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.start: dict[str, Tensor] = {}
        self.directions: list[dict[str, Tensor]] = []

    def begin(self, ctx: Context) -> None:
        self.start = {name: weight.clone() for name, weight in matrices(ctx.student).items()}

    def figures(self, look: Look) -> dict[str, float]:
        changes = self.changes(look.ctx.student)
        if not changes:
            return {"unchanged": 1.0}
        self.directions.append({name: right_directions(change) for name, change in changes.items()})
        now = matrices(look.ctx.student)
        return {"unchanged": fmean(unchanged(self.start[name], now[name]) for name in now),
                "stable_rank": fmean(stable_rank(change) for change in changes.values()),
                "relative_change": fmean(float(change.norm() / self.start[name].norm())
                                         for name, change in changes.items())}

    def summary(self, ctx: Context) -> dict[str, Any]:
        last = {name: right_directions(change) for name, change in self.changes(ctx.student).items()}
        overlaps = [fmean(overlap(then[name], last[name]) for name in then if name in last)
                    for then in self.directions if then.keys() & last.keys()]
        chance = fmean(vectors.shape[1] / vectors.shape[0] for vectors in last.values()) if last else None
        return {"overlap_with_last": overlaps, "overlap_by_chance": chance}

    def changes(self, student: Policy) -> dict[str, Tensor]:
        """Of the matrices that have moved at all."""
        return {name: change for name, weight in matrices(student).items()
                if bool((change := weight - self.start[name]).any())}

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "start": self.start, "directions": self.directions}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.start, self.directions = dict(state["start"]), [dict(entry) for entry in state["directions"]]


def matrices(student: Policy) -> dict[str, Tensor]:
    """The weight matrices that are trained, without tables that are looked up."""
    return {name: weight.detach().float() for name, weight in student.named_parameters()
            if weight.requires_grad and weight.dim() == 2 and "embed" not in name}


def unchanged(before: Tensor, after: Tensor) -> float:
    """Share of the entries that moved by at most a thousandth of themselves."""
    return float(((after - before).abs() <= UNCHANGED * before.abs().maximum(after.abs())).double().mean())


def stable_rank(change: Tensor) -> float:
    """|W|_F^2 / |W|_op^2, between 1 and the rank."""
    sizes = torch.linalg.svdvals(change.double())
    return float(sizes.square().sum() / sizes[0].square())


def right_directions(change: Tensor, k: int = DIRECTIONS) -> Tensor:
    """The first right singular vectors [d, k], no more than there are."""
    directions_kd: Tensor = torch.linalg.svd(change.double(), full_matrices=False).Vh[:k]
    return directions_kd.T.contiguous()


def overlap(first_dk: Tensor, second_dk: Tensor) -> float:
    """|V1' V2|_F^2 / k, in [0, 1]; k / d on average between random subspaces."""
    return float((first_dk.T @ second_dk).square().sum() / first_dk.shape[1])
