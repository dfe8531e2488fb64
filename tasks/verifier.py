"""Whether two mathematical answers are equal, by the library `math-verify`, in a process of its own.

The library reads LaTeX that a model wrote into sympy, which on hostile text may take for ever, eat all memory or crash;
its own time limit needs SIGALRM and so the main thread, and does not interrupt a long power of integers. Here a worker
process answers one question after the other under limits that the kernel enforces, and one that does not answer is
wrong: the question costs a new worker and nothing else. The limit counts CPU time, so that a busy machine does not
change a verdict. Works in every thread (one question at a time) and after a fork (each process has its own worker).
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from opdbench.errors import UserError

LONGEST_ANSWER = 1000  # characters; the longest answer of MATH has 159, and nothing longer is looked at
CPU_SECONDS = 3.0  # for one question; the slowest of MATH's own answers takes a tenth of one
WALL_SECONDS = 120.0  # for a worker that neither answers nor computes
MEMORY_BYTES = 4 << 30
_READY = b"ready\n"


def equivalent(gold: str, answer: str) -> bool:
    """Whether `answer` is mathematically the same as `gold`; both are LaTeX, as it stands in a box.

    False for whatever cannot be parsed or takes too long.

    Raises:
        UserError: math-verify is not installed.
    """
    if max(len(gold), len(answer)) > LONGEST_ANSWER:
        return False
    return _squeezed(gold) == _squeezed(answer) != "" or _worker.ask(gold, answer)


def _squeezed(answer: str) -> str:
    """Without white space outside words and a final full stop: equal then is equal without any mathematics."""
    return " ".join(answer.split()).removesuffix(".").strip()


class _Worker:
    """The process that does the mathematics: started when first needed, and again when it had to be stopped."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """A forked child must not talk to its parent's worker, nor wait for a lock that another thread held."""
        self._lock, self._process = threading.Lock(), None

    def ask(self, gold: str, answer: str) -> bool:
        question = json.dumps([gold, answer]).encode() + b"\n"
        with self._lock:
            process = self._started()
            assert process.stdin is not None
            try:
                process.stdin.write(question)
                process.stdin.flush()
                reply = _line(process)
            except BrokenPipeError:
                reply = b""
            if not reply:
                self._stop()
            return reply == b"true\n"

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            if importlib.util.find_spec("math_verify") is None:
                raise UserError("this task's answers are checked by math-verify, which is not installed",
                                "pip install 'opdbench[math]'")
            command = [sys.executable, "-P", "-m", "opdbench.tasks.verifier"]
            environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore"}
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=subprocess.DEVNULL, env=environment)
            if _line(self._process) != _READY:
                self._stop()
                raise UserError("the process that checks answers with math-verify does not start",
                                "python -m opdbench.tasks.verifier says why; pip install 'opdbench[math]'")
        return self._process

    def _stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # a question that it did not live to read
                pipe.close()
        self._process = None


def _line(process: subprocess.Popen[bytes]) -> bytes:
    """The worker's next line; empty when it died or says nothing."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], WALL_SECONDS)
    return process.stdout.readline() if ready else b""


_worker = _Worker()


# ------------------------------------------------------------------------------------------------- inside the worker


def main() -> None:
    """Answer questions from stdin, one JSON list a line, until it closes."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "wb")  # for replies alone, whatever a library prints
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    verify = _verifier()
    replies.write(_READY)
    replies.flush()
    for line in sys.stdin.buffer:
        gold, answer = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF is not handled: the kernel ends the process
        verdict = verify(gold, answer)
        signal.setitimer(signal.ITIMER_PROF, 0)
        replies.write(json.dumps(verdict).encode() + b"\n")
        replies.flush()


def _verifier() -> Callable[[str, str], bool]:
    import math_verify
    from sympy.core.random import seed

    # Only LaTeX: the library's other way of reading is sympy's `parse_expr`, which evaluates Python.
    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0)]

    def read(answer: str) -> Any:
        return math_verify.parse(f"\\boxed{{{answer}}}", config, parsing_timeout=0)

    def verify(gold: str, answer: str) -> bool:
        random.seed(0)
        seed(0)  # sympy tests some equalities at random points
        try:
            return bool(math_verify.verify(read(gold), read(answer), timeout_seconds=0))
        except (Exception, RecursionError):
            return False

    return verify


if __name__ == "__main__":
    main()
