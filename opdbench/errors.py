"""Errors: `UserError` is what a user can fix, everything else is a bug.

The command line prints a `UserError` as one sentence with its fix, without a traceback, and exits with its code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

CHECK_FAILED = 3  # exit code: nothing went wrong, and what was to be checked does not hold


class OpdbenchError(Exception):
    """Root of every error that opdbench raises on purpose."""


class UserError(OpdbenchError):
    """Something the user can fix. Say what is wrong and where; put the command that mends it in `fix`.

    Args:
        problem: one sentence: what is wrong, and where.
        fix: what to type or change, or None when `problem` already says it.
        exit_code: 1 failed, 2 usage, 3 a check failed.
    """

    def __init__(self, problem: str, fix: str | None = None, *, exit_code: int = 1) -> None:
        super().__init__(problem, fix, exit_code)
        self.problem = problem
        self.fix = fix
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another, whatever arguments the class takes."""
        return _remade, (type(self), self.problem, self.fix, self.exit_code)

    def __str__(self) -> str:
        return self.problem if self.fix is None else f"{self.problem}\n  fix: {self.fix}"


def _remade(kind: type[UserError], problem: str, fix: str | None, exit_code: int) -> UserError:
    error = kind.__new__(kind)
    UserError.__init__(error, problem, fix, exit_code=exit_code)
    return error


class UsageError(UserError):
    """The command line itself is wrong (exit code 2)."""

    def __init__(self, problem: str, fix: str | None = None) -> None:
        super().__init__(problem, fix, exit_code=2)


class DivergedError(OpdbenchError):
    """The loss or a gradient stopped being finite; the run is recorded as `diverged`."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence that names the valid choices closest to `name`, or all of them when none is close."""
    valid = sorted(set(valid))
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(choice) for choice in close) + "?"
    return "choose one of: " + ", ".join(valid) if valid else "there are none"


def unknown(kind: str, name: str, valid: Iterable[str], *, see: str | None = None) -> UsageError:
    """The error for a name, key or value that does not exist; `see` is the command that lists the valid ones."""
    fix = nearest(name, valid)
    return UsageError(f"unknown {kind} {name!r}", f"{fix} ({see} lists them)" if see else fix)
