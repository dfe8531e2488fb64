"""Work on many files by as many processes as there are cores."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

Given = TypeVar("Given")
Item = TypeVar("Item")
Result = TypeVar("Result")
_GARBAGE = 50_000  # objects between two looks for garbage: a record's values are none while it is worked on


def mapped(work: Callable[[Given, Item], Result], given: Given, items: Sequence[Item]) -> Iterator[Result]:
    """`work(given, item)` for every item, in the order of the items.

    Processes are forked, so that `given` is there without being sent; `work` is a function of a module, and items and
    results are pickled. Where a system cannot fork, or has one core, this process does it all.
    """
    cores = min(_cores(), len(items))
    if cores < 2 or "fork" not in multiprocessing.get_all_start_methods():
        yield from (work(given, item) for item in items)
        return
    with ProcessPoolExecutor(cores, multiprocessing.get_context("fork"), _start, (work, given)) as pool:
        yield from pool.map(_next, items)


def chunks(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[start:start + size] for start in range(0, len(items), size)]


def _cores() -> int:
    """Those that this process may use, where the system says."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_told: tuple[Callable[[Any, Any], Any], Any] | None = None


def _start(work: Callable[[Any, Any], Any], given: Any) -> None:
    """In a new process: keep what every item needs."""
    global _told
    _told = work, given
    gc.freeze()  # what the parent made stays: it is not looked through for garbage, and so not copied either
    gc.set_threshold(_GARBAGE)


def _next(item: Any) -> Any:
    assert _told is not None
    work, given = _told
    return work(given, item)
