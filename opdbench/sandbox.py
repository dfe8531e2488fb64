"""Run a Python program that nobody has read, where it can do no harm; or refuse.

The program gets namespaces of its own (network without any interface, processes, mounts, host name, System V), a root
file system that is read-only but for an empty /tmp, no environment, no open files, one process with one thread, and
limits of time, memory and file size. Whatever of this cannot be had here is a refusal, never a weaker sandbox. The
kernel is shared: this holds against what language models write, not against an attack on Linux itself.

A program passes when it runs to its end. It then says a word that it was not told; exiting early, with whatever status,
is not passing. (The word is in the same interpreter: a program that searches its caller's frames can find it.)
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

from opdbench.errors import UserError

Mode = Literal["root", "user"]  # namespaces made by root, or in a user namespace

_NAMESPACES = ("--net", "--pid", "--fork", "--kill-child", "--mount", "--ipc", "--uts")
_UNPRIVILEGED = ("--user", "--map-root-user")
_INSIDE = Path(__file__).with_name("sandboxed.py")
_READY = b"ready\n"
_LONGEST_REPLY = 4096  # bytes; whatever writes more is stopped
_WALL_PER_CPU = 4.0  # a program may wait, and the machine may be busy: wall seconds for each CPU second


class Limits(NamedTuple):
    """What a program may use."""

    cpu_seconds: int = 5
    memory_bytes: int = 1 << 30  # of address space
    file_bytes: int = 16 << 20  # of one file; /tmp holds twice that
    open_files: int = 32


class Verdict(NamedTuple):
    """How a program ended.

    Attributes:
        reason: "passed"; "stopped" by a limit (or it left with a status but 0); "exited" early; else the name of the
            exception that it raised.
    """

    passed: bool
    reason: str


class _NoSandboxError(Exception):
    """The sandbox could not be made, so that nothing was run in it."""


def run(program: str, limits: Limits | None = None) -> Verdict:
    """Execute `program` and say whether it ran to its end.

    Raises:
        UserError: programs cannot be isolated on this machine.
    """
    mode = _mode()
    try:
        return _run(program, limits or Limits(), mode)
    except _NoSandboxError as error:
        raise _refusal(str(error)) from None


def check() -> None:
    """Make sure that programs can be isolated here.

    Raises:
        UserError: they cannot; says why and what would help.
    """
    _mode()


@lru_cache(maxsize=1)
def _mode() -> Mode:
    """The way in which namespaces are to be had here."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        raise UserError("programs can be isolated on Linux only, with util-linux's unshare",
                        "run this task on Linux, or choose another")
    modes: tuple[Mode, ...] = ("root", "user") if os.geteuid() == 0 else ("user",)
    problem = ""
    for mode in modes:
        try:
            _run("", Limits(), mode)
            return mode
        except _NoSandboxError as error:
            problem = str(error)
    raise _refusal(problem)


def _refusal(problem: str) -> UserError:
    return UserError(f"programs cannot be isolated on this machine, so none is run: {problem}",
                     "allow namespaces (sysctl kernel.unprivileged_userns_clone=1; in a container --cap-add SYS_ADMIN "
                     "--security-opt seccomp=unconfined), or choose another task")


def _run(program: str, limits: Limits, mode: Mode) -> Verdict:
    word = secrets.token_hex(16)
    uid = (1 << 30) + secrets.randbits(29)  # nobody else's, so that the kernel counts this program's processes alone
    order = {"program": program, "word": word, "limits": limits._asdict(), "uid": uid if mode == "root" else None}
    with tempfile.TemporaryDirectory(prefix="opdbench-sandbox-") as root:
        os.chmod(root, 0o755)
        with _start(root, mode, uid) as process:
            try:
                reply = _converse(process, json.dumps(order).encode(), limits.cpu_seconds * _WALL_PER_CPU)
            finally:
                _kill(process)
    return _verdict(reply, process.returncode, word)


def _start(root: str, mode: Mode, uid: int) -> subprocess.Popen[bytes]:
    """Python in new namespaces. The kernel does not count root's processes: another makes the user namespace."""
    as_root = mode == "root"
    python: str = sys._base_executable  # type: ignore[attr-defined]  # the virtual environment's own is not needed
    command = ["unshare", *(() if as_root else _UNPRIVILEGED), *_NAMESPACES, "--", python, "-I", "-S", "-B",
               str(_INSIDE), root]
    somebody = uid if os.geteuid() == 0 and not as_root else None
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        env={"PATH": os.environ.get("PATH", os.defpath)}, user=somebody, group=somebody,
        extra_groups=None if somebody is None else [])


def _converse(process: subprocess.Popen[bytes], order: bytes, seconds: float) -> bytes:
    """Hand over the order and read the reply, until its end, the deadline, or more of it than there can be."""
    assert process.stdin is not None and process.stdout is not None
    deadline = time.monotonic() + seconds
    with suppress(BrokenPipeError):
        process.stdin.write(order)
        process.stdin.close()
    reply = b""
    while len(reply) <= _LONGEST_REPLY:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        part = os.read(process.stdout.fileno(), _LONGEST_REPLY)
        if not part:
            with suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            break
        reply += part
    return reply


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End `unshare` and its process group; with the first process of its namespace every other one dies."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _verdict(reply: bytes, returncode: int, word: str) -> Verdict:
    if not reply.startswith(_READY):
        raise _NoSandboxError(reply.decode("utf-8", "replace")[:200] or "unshare is refused")
    said = reply.removeprefix(_READY)
    if said == word.encode():
        return Verdict(True, "passed")
    if returncode != 0:
        return Verdict(False, "stopped")
    return Verdict(False, said.decode("utf-8", "replace")[:200] or "exited")
