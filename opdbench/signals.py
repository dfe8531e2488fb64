"""Ctrl-C and SIGTERM end a run at a safe place, with a checkpoint and an honest record."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Cancelled(KeyboardInterrupt):
    """Asked to stop by a signal.

    Attributes:
        number: the signal's number; `name`: its name.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.name = signal.Signals(number).name
        super().__init__(self.name)


class Signals:
    """While handled, a signal raises `Cancelled` at once, or at the next `check` while `defer` is set: in the middle
    of a training step there is nothing whole to save. A second signal never waits."""

    def __init__(self) -> None:
        self.defer = False
        self._pending: int | None = None

    @contextmanager
    def handled(self) -> Iterator[None]:
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            self.defer, self._pending = False, None
            for number, handler in previous.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """A safe place: raises `Cancelled` when a signal has come."""
        if self._pending is not None:
            raise Cancelled(self._pending)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.defer or self._pending is not None:
            raise Cancelled(number)
        self._pending = number


signals = Signals()
