"""What a probe is, and what several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

import torch

from opdbench.context import Context
from opdbench.distiller import Distiller, Needs
from opdbench.errors import UserError
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_FEATURES, Rows, RowTable, visited

LOOKS = 20  # over the budget
TRAJECTORIES = 16  # that are looked at, at most


class Look(NamedTuple):
    """What a probe sees of a step: the method, its prepared batch, and the run."""

    method: Distiller
    rollouts: Rollouts
    ctx: Context


class Probe(ABC):
    """Watches a run."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.series: list[dict[str, float]] = []

    def begin(self, ctx: Context) -> None:  # noqa: B027 - most have nothing to prepare
        """Called before the first step, with the student as it starts; not after a resume.

        Raises:
            UserError: this run cannot be watched so.
        """

    @abstractmethod
    def figures(self, look: Look) -> dict[str, float]:
        """What is seen now; nothing where there is nothing to see."""

    def summary(self, ctx: Context) -> dict[str, Any]:
        """What is known at the end, as JSON values."""
        return {}

    def looks(self, ctx: Context) -> int:
        """How often it looks, over the budget."""
        return LOOKS

    def watch(self, look: Look) -> None:
        """One look, when another share of the budget is spent."""
        if look.rollouts.n_rows == 0 or int(look.ctx.progress * self.looks(look.ctx)) < len(self.series):
            return
        with look.ctx.aside(), torch.no_grad():
            found = self.figures(look)
        if found:
            self.series.append({"step": look.ctx.step, **found})

    def state_dict(self) -> dict[str, Any]:
        return {"series": self.series}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.series = [dict(entry) for entry in state["series"]]


class TeacherProbe(Probe):
    """One that compares the student with its teacher, over whole distributions."""

    def begin(self, ctx: Context) -> None:
        world = ctx.world
        if world.teacher is None or world.bridge is not None:
            raise UserError(f"probe {self.name} compares the student's and the teacher's whole distributions, which "
                            "are not known here", "leave it out, or pass a --teacher of the student's family")


def rows_of(look: Look) -> tuple[Rows, Rollouts]:
    """The rows of the first trajectories, with their teacher's whole distribution; and these trajectories."""
    few = look.rollouts.select(range(min(TRAJECTORIES, look.rollouts.n_trajectories)))
    if TEACHER_FEATURES not in few.columns:
        few = look.ctx.score(few, Needs.FULL)
    ctx, teacher = look.ctx, look.ctx.teacher
    features_nh, layers_nlh = visited(ctx.student, few)
    table = RowTable(few, ctx.student, teacher)
    return table.chunk(features_nh, 0, len(features_nh), layers_nlh), few


def mean(value_n: torch.Tensor) -> float:
    return float(value_n.double().mean())
