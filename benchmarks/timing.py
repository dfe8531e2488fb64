"""Time by part, the machine's matrix-product limit, and tables."""

from __future__ import annotations

import functools
import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple


def clock_of(device: str) -> Callable[[], float]:
    """CPU seconds of this process; for an accelerator wall seconds, once it has nothing left to do."""
    if device == "cpu":
        return time.process_time

    def when_idle() -> float:
        import torch

        torch.cuda.synchronize()
        return time.perf_counter()

    return when_idle


def peak_bytes(device: str) -> int:
    """The most memory that this process has used: of the accelerator, or resident."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torch

    return torch.cuda.max_memory_allocated()


class Parts:
    """Seconds by part; a part inside another is taken out of the outer one."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._last = 0.0

    @contextmanager
    def measure(self, part: str) -> Iterator[None]:
        self._charge()
        self._open.append(part)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def wrap(self, owner: Any, name: str, part: str) -> None:
        """Count the time spent in `owner.name(...)` from now on."""
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def measured(*args: Any, **kwargs: Any) -> Any:
            with self.measure(part):
                return inner(*args, **kwargs)

        # Not through setattr: nn.Module's own would refuse a function under a registered name.
        owner.__dict__[name] = measured

    def pop(self) -> dict[str, float]:
        """What has been counted since the last call."""
        counted, self.seconds = dict(self.seconds), defaultdict(float)
        return counted

    def _charge(self) -> None:
        now = self.clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now


class Spread(NamedTuple):
    """Median, smallest and largest of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def matmul_peak(size: int = 1024, repeats: int = 20) -> float:
    """FLOP/s of a float32 matrix product on one thread, the best of some: the limit that no model exceeds."""
    import torch

    torch.set_num_threads(1)
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.process_time()
        torch.mm(a, b)
        best = min(best, time.process_time() - start)
    return 2 * size**3 / best


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; numbers to the right."""
    lines = [list(map(str, header)), *[list(map(str, row)) for row in rows]]
    rule = ["---" if index == 0 else "--:" for index in range(len(header))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))
