"""Copies of the student: a reference policy, a teacher that is an earlier self, or one that follows at a distance."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor

from opdbench.policy import Policy

P = TypeVar("P", bound=Policy)


class FrozenCopy:
    """The student as it was when the copy was first asked for; a resumed run has the same one."""

    def __init__(self) -> None:
        self._copy: Policy | None = None
        self._weights: dict[str, Any] = {}  # of a checkpoint, until there is a student to take the form from

    def of(self, student: Policy) -> Policy:
        """The copy, made now if there is none yet."""
        if self._copy is None:
            self._copy = frozen(student)
            if self._weights:
                self._copy.load_state_dict(self._weights)
                self._weights = {}
        return self._copy

    def state_dict(self) -> dict[str, Any]:
        """Empty while there is no copy."""
        return self._weights if self._copy is None else dict(self._copy.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._copy, self._weights = None, dict(state)


class Average:
    """Moves a copy of the student: after every step, weights <- decay * weights + (1 - decay) * student's.

    The average itself is float32 or wider: in bfloat16 a weight cannot move by the thousandth that a decay asks for.
    """

    def __init__(self, copy: Policy, decay: float) -> None:
        self._copy, self.decay = copy, decay
        self._weights = _weights(copy)

    @torch.no_grad()
    def follow(self, student: Policy) -> None:
        """One step towards the student as it is now."""
        for name, weight in _weights(student).items():
            self._weights[name].lerp_(weight, 1 - self.decay)
        self._hand_over()

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._weights)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(state[name])
        self._hand_over()

    def _hand_over(self) -> None:
        self._copy.load_state_dict(self._weights, strict=False)


class SelfTeacher(FrozenCopy):
    """The student as its own teacher: its copy, which after every `every` steps moves towards it.

    Args:
        rate: weights <- (1 - rate) weights + rate student's; 0 never moves, 1 is the student as it was.
    """

    def __init__(self, rate: float, every: int = 1) -> None:
        super().__init__()
        self.rate, self.every = rate, every
        self._average: Average | None = None
        self._wide: dict[str, Any] = {}  # of a checkpoint, in the average's own precision

    def follow(self, student: Policy, steps: int) -> None:
        """To be called after every step, with the number of those that are finished."""
        if self.rate == 0 or steps % self.every:
            return
        copy = self.of(student)
        if self._average is None:
            self._average = Average(copy, 1 - self.rate)
            if self._wide:
                self._average.load_state_dict(self._wide)
        self._average.follow(student)

    def state_dict(self) -> dict[str, Any]:
        moved = self._wide if self._average is None else self._average.state_dict()
        return {"copy": super().state_dict(), "average": dict(moved)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state["copy"])
        self._average, self._wide = None, dict(state["average"])


def frozen(student: P) -> P:
    """The student as it is now, for good."""
    copy = deepcopy(student)
    copy.requires_grad_(False)
    return copy


def averaged(student: P, decay: float) -> P:
    """A copy that starts as the student is now and follows it (`averages`)."""
    copy = frozen(student)
    copy.average = Average(copy, decay)
    return copy


def averages(teacher: Policy | None) -> list[Average]:
    """What moves in a teacher, or in the teachers that it is made of: for the loop, which moves it after every step."""
    modules = [] if teacher is None else teacher.modules()
    return [module.average for module in modules if isinstance(module, Policy) and module.average is not None]


def _weights(policy: Policy) -> dict[str, Tensor]:
    """Copies of all weights, in float32 or wider."""
    return {name: weight.detach().to(torch.promote_types(weight.dtype, torch.float32), copy=True)
            for name, weight in policy.state_dict().items() if weight.is_floating_point()}
