"""One check and its verdict: a function that returns when all is well, and says what is wrong by raising."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from opdbench.errors import UserError


class Check(NamedTuple):
    """A verdict. A check that does not apply passes, and its message begins with "skipped: " and says why."""

    name: str
    passed: bool
    message: str = ""


class Failed(Exception):
    """What is checked is wrong; the message says what, and what would be right."""


class Skipped(Exception):
    """The check does not apply; the message says why."""


def require(condition: bool, message: str) -> None:
    """Raise `Failed` with `message` unless `condition` holds."""
    if not condition:
        raise Failed(message)


def judge(name: str, check: Callable[[], object]) -> Check:
    """Run one check. Whatever it raises is a verdict: checks judge other people's code, which may fail in any way."""
    try:
        with _one_thread():
            check()
    except Failed as error:
        return Check(name, False, str(error))
    except Skipped as reason:
        return Check(name, True, f"skipped: {reason}")
    except UserError as error:
        return Check(name, False, str(error).replace("\n  fix: ", "; "))
    except Exception as error:
        return Check(name, False, f"{type(error).__name__}: {_first_line(error)} ({_place(error)})")
    return Check(name, True)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The worlds are tiny: a second thread waits ten times as long as it computes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


def _place(error: Exception) -> str:
    """File and line where the error was raised, torch's own insides left out."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/torch/" not in frame.filename]
    return f"{frames[-1].filename}:{frames[-1].lineno}"
