"""The live line of a run, on stderr: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdbench.ledger import Ledger

PLAIN_SECONDS = 10.0  # between lines when stderr is a file


class Display:
    """Shows phases and training progress of one run; implements `opdbench.run.Watcher`.

    Args:
        title: which run this is.
        unit: what is sampled: "tokens", or "steps" of an environment.
    """

    def __init__(self, title: str, unit: str) -> None:
        self._title = title
        self._unit = unit
        self._live = sys.stderr.isatty()
        self._bar: Any = None
        self._task: Any = None
        self._last_line = 0.0
        self._began: tuple[float, float] | None = None  # seconds and progress when training began here

    def __enter__(self) -> Display:
        if self._live:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            # Made for 80 columns: the title stands above, and the line keeps what changes.
            self._bar = Progress(BarColumn(bar_width=10), TextColumn("{task.percentage:3.0f}%"),
                                 TextColumn("{task.fields[figures]}"), console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=1.0, figures="")
            self._bar.start()
            self.note(self._title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def note(self, text: str) -> None:
        """One line that stays."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            print(text, file=sys.stderr)

    def phase(self, name: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, figures=name)
        else:
            print(f"{self._title}: {name}", file=sys.stderr)

    def step(self, progress: float, figures: dict[str, float], ledger: Ledger) -> None:
        now = time.perf_counter()
        if self._began is None:
            self._began = (now, progress)
        line = _line(figures, ledger, self._unit, self._seconds_left(now, progress))
        if self._bar is not None:
            self._bar.update(self._task, completed=progress, figures=line)
        elif now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            print(f"{self._title}: {progress:4.0%}  step {ledger.steps}  {line}", file=sys.stderr)

    def _seconds_left(self, now: float, progress: float) -> float | None:
        assert self._began is not None
        began, first = self._began
        return None if progress <= first else (now - began) / (progress - first) * (1 - progress)


def _line(figures: dict[str, float], ledger: Ledger, unit: str, left: float | None) -> str:
    """Loss, distance to the teacher, speed and time left."""
    parts = [f"loss {figures['loss']:.4g}"] if "loss" in figures else []
    # Where the teacher reveals only the sampled action, the estimate from it stands in for the KL over all actions.
    kl = figures.get("reverse_kl", figures.get("sampled_reverse_kl"))
    if kl is not None:
        parts.append(f"KL to teacher {kl:.4g}")
    sampled = ledger.student_tokens + ledger.teacher_tokens
    if ledger.seconds > 0:
        parts.append(f"{sampled / ledger.seconds:,.0f} {unit}/s" if sampled else
                     f"{ledger.updates / ledger.seconds:,.1f} updates/s")
    if left is not None:
        parts.append(f"{_clock(left)} left")
    return "  ".join(parts)


def _clock(seconds: float) -> str:
    """0:07, 12:34 or 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
