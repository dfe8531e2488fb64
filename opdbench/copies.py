"""Copies of the student that do not learn with it: a reference policy, or a teacher that is an earlier self."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from opdbench.policy import Policy


class FrozenCopy:
    """The student as it was when the copy was first asked for; a resumed run has the same one."""

    def __init__(self) -> None:
        self._copy: Policy | None = None
        self._weights: dict[str, Any] = {}  # of a checkpoint, until there is a student to take the form from

    def of(self, student: Policy) -> Policy:
        """The copy, made now if there is none yet."""
        if self._copy is None:
            self._copy = deepcopy(student)
            self._copy.requires_grad_(False)
            if self._weights:
                self._copy.load_state_dict(self._weights)
                self._weights = {}
        return self._copy

    def state_dict(self) -> dict[str, Any]:
        """Empty while there is no copy."""
        return self._weights if self._copy is None else dict(self._copy.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._copy, self._weights = None, dict(state)
