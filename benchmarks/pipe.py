"""Competitors run in processes of their own and take steps on command, so that they can be interleaved.

The parent writes "step" to a worker's standard input and waits for one JSON line; everybody else sleeps meanwhile and
uses no CPU. Slow drifts of the machine (clock, caches, neighbours) then hit all competitors alike. Only the standard
library is imported here: workers run in environments that know nothing of each other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

REPOSITORY = Path(__file__).parent.parent
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
              "TRL_EXPERIMENTAL_SILENCE": "1"}


class WorkerError(RuntimeError):
    """A worker ended instead of answering; the message holds the end of what it wrote to standard error."""


class Worker:
    """The parent's end of one competitor."""

    def __init__(self, python: str, module: str, arguments: Mapping[str, Any],
                 environment: Mapping[str, str] = ONE_THREAD) -> None:
        """
        Args:
            python: the interpreter that has the competitor installed.
            module: run as `python -m module`, from the repository's root.
            arguments: JSON values, passed as the only command-line argument.
        """
        self.module = module
        self._log = TemporaryFile("w+")  # noqa: SIM115 - closed with the worker
        self._process = subprocess.Popen(
            [python, "-m", module, json.dumps(dict(arguments))], cwd=REPOSITORY, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env={**os.environ, **environment})
        self.about: dict[str, Any] = self._answer()

    def step(self) -> dict[str, Any]:
        """Let it take one step; what it reports."""
        self._say("step")
        return self._answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._say("stop")
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def _say(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        return dict(json.loads(line))

    def _failure(self) -> WorkerError:
        self._process.wait()
        self._log.seek(0)
        return WorkerError(f"{self.module} ended with code {self._process.returncode}:\n"
                           + "".join(deque(self._log, 25)))


class Channel:
    """The worker's end. Libraries that print to standard output are sent to standard error."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def send(self, report: Mapping[str, Any]) -> None:
        self._out.write(json.dumps(dict(report)) + "\n")

    def wait(self) -> bool:
        """Sleep until told what to do; False means stop."""
        return sys.stdin.readline().strip() == "step"


def arguments() -> dict[str, Any]:
    """What the parent passed."""
    return dict(json.loads(sys.argv[1]))


def interleave(workers: Sequence[Worker], *, warmup: int, repeats: int) -> list[list[dict[str, Any]]]:
    """`repeats` reports of every worker, taken in turns (A B C A B C ...) after `warmup` uncounted rounds."""
    reports: list[list[dict[str, Any]]] = [[] for _ in workers]
    for number in range(warmup + repeats):
        for worker, kept in zip(workers, reports, strict=True):
            report = worker.step()
            if number >= warmup:
                kept.append(report)
    return reports
