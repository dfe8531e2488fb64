"""The sandbox: what a program may do, everything that it may not, and that nothing is run where that cannot be had."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from opdbench import sandbox
from opdbench.errors import UserError
from opdbench.sandbox import Limits, Verdict, run


@pytest.fixture(autouse=True)
def isolated() -> None:
    try:
        sandbox.check()
    except UserError as error:
        pytest.skip(f"needs namespaces: {error.problem}")


PASSES = {
    "nothing": "",
    "the standard library": "import math, re, random, collections, heapq, hashlib, datetime, typing, itertools\n"
                            "assert math.isqrt(9) == 3 and hashlib.sha256(b'').hexdigest().startswith('e3b0')",
    "its own folder": "open('x', 'w').write('1'); assert open('/tmp/x').read() == '1'",
    "a data class": "from __future__ import annotations\nfrom dataclasses import dataclass\n"
                    "@dataclass\nclass A:\n  x: int\nassert A(3) == A(3)",
    "output that nobody reads": "print('x' * 100_000)",
    "a main block of its own": "if __name__ == '__main__': raise SystemExit(1)",
    "no environment": "import os; assert not os.environ",
    "no arguments that say where it is": "import os; assert os.getcwd() == '/tmp' and os.listdir() == []",
}
ENDS = {
    "a failed test": ("assert 1 == 2", "AssertionError"),
    "bad syntax": ("def", "SyntaxError"),
    "a null byte": ("\0", "SyntaxError"),
    "leaving before the tests": ("import os; os._exit(0)", "exited"),
    "leaving politely": ("import sys; sys.exit(0)", "SystemExit"),
    "leaving with a status": ("import os; os._exit(3)", "stopped"),
    "ending itself": ("import os, signal; signal.raise_signal(signal.SIGKILL); os.abort()", "stopped"),
    "closing every file": ("import os; os.closerange(0, 256)", "stopped"),
    "deep recursion": ("def f(): f()\nf()", "RecursionError"),
    "a memory bomb": ("x = bytearray(4 << 30)", "MemoryError"),
    "a growing list": ("x = [0]\nwhile True: x += x", "MemoryError"),
    "a fork": ("import os; os.fork()", "BlockingIOError"),
    "a fork bomb": ("import os\nwhile True: os.fork()", "BlockingIOError"),
    "a thread": ("import threading; threading.Thread(target=print).start()", "RuntimeError"),
    "a shell": ("import os; assert os.system('true') == 0", "AssertionError"),
    "a program": ("import subprocess; subprocess.run(['/usr/bin/env'])", "BlockingIOError"),
    "an address outside": ("import socket; socket.create_connection(('192.0.2.1', 80), 1)", "OSError"),
    "a name": ("import socket; socket.gethostbyname('example.com')", "gaierror"),
    "a server on loopback": ("import socket\ns = socket.create_server(('127.0.0.1', 0))\n"
                             "socket.create_connection(s.getsockname(), 1)", "OSError"),
    "writing beside /tmp": ("open('/x', 'w')", "OSError"),
    "writing to the system": ("open('/usr/x', 'w')", "OSError"),
    "writing to its own code": ("import os; open(os.__file__, 'a')", "PermissionError"),
    "users' files": ("import os; os.listdir('/home')", "FileNotFoundError"),
    "system configuration": ("open('/etc/passwd')", "FileNotFoundError"),
    "processes": ("import os; os.listdir('/proc')", "FileNotFoundError"),
    "signals to others": ("import os; os.kill(-1, 9)", "ProcessLookupError"),
    "a file of gigabytes": ("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", "OSError"),
    "many files": ("for n in range(99999): open(f'{n}', 'wb').write(bytes(1 << 20))", "OSError"),
    "many open files": ("a = [open(f'{n}', 'w') for n in range(99)]", "OSError"),
    "more privileges": ("import os; os.setuid(0)", "PermissionError"),
    "another root": ("import os; os.chroot('/tmp')", "PermissionError"),
    "mounting": ("import ctypes; assert not ctypes.CDLL(None).mount(b'', b'/usr', None, 4128, 0)", "AssertionError"),
    "namespaces of its own": ("import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0", "AssertionError"),
    "lifting its limits": ("import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))", "ValueError"),
    "a reply of gigabytes": ("import os\nwhile True:\n for n in range(64):\n  try: os.write(n, b'x' * 9999)\n"
                             "  except OSError: pass", "stopped"),
    "a name made up": ("raise type('passed', (Exception,), {})()", "passed"),
}


@pytest.mark.parametrize("name", PASSES)
def test_a_program_may(name: str) -> None:
    assert run(PASSES[name]) == Verdict(True, "passed")


@pytest.mark.parametrize("name", ENDS)
def test_a_program_does_not_pass_by(name: str) -> None:
    program, reason = ENDS[name]
    found = run(program, Limits(cpu_seconds=2))
    assert found == Verdict(False, reason)


@pytest.mark.parametrize("program", ["while True: pass", "while True: print('x' * 1_000_000)", "9 ** 9 ** 9 ** 9",
                                     "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"])
def test_endless_computing_is_stopped(program: str) -> None:
    began = time.monotonic()
    assert run(program, Limits(cpu_seconds=1)) == Verdict(False, "stopped")
    assert time.monotonic() - began < 30


def test_endless_waiting_is_stopped_and_leaves_nothing_behind() -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    began = time.monotonic()
    program = "import os, time\nfor n in range(64):\n  try: os.close(n)\n  except OSError: pass\ntime.sleep(99)"
    assert not run(program, Limits(cpu_seconds=1)).passed  # closing its files does not make it forgotten
    assert run("import time; time.sleep(99)", Limits(cpu_seconds=1)) == Verdict(False, "stopped")
    assert time.monotonic() - began < 60
    assert {child.pid for child in psutil.Process().children(recursive=True)} == before


def test_secrets_of_the_caller_do_not_reach_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = secrets.token_hex(8)
    monkeypatch.setenv("API_TOKEN", secret)
    (tmp_path / "key").write_text(secret)
    with open(tmp_path / "key") as handle:
        os.set_inheritable(handle.fileno(), True)
        program = (
            f"import os\nassert {secret!r} not in str(os.environ)\nassert not os.path.exists({str(tmp_path)!r})\n"
            "found = b''\nfor n in range(256):\n  try: found += os.pread(n, 99, 0)\n  except OSError: pass\n"
            f"assert {secret!r}.encode() not in found")
        assert run(program).passed


def test_the_machines_network_does_not_reach_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        socket.create_connection((host, port), 1).close()  # it does listen
        assert run(f"import socket; socket.create_connection(({host!r}, {port}), 1)").reason == "OSError"


def test_nothing_stays_in_the_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tmp_path.chmod(0o755)
    assert run("open('x', 'w').write('y')").passed
    assert list(tmp_path.iterdir()) == []


def test_programs_run_side_by_side() -> None:
    programs = [f"import time; time.sleep(0.1); assert {n} % 2 == 0" for n in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert [verdict.passed for verdict in pool.map(run, programs)] == [n % 2 == 0 for n in range(8)]


def test_where_programs_cannot_be_isolated_none_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    (tmp_path / "unshare").write_text(f"#!/bin/sh\ntouch {ran}.unshare\necho operation not permitted >&2\nexit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sandbox._mode.cache_clear()
    try:
        with pytest.raises(UserError, match="programs cannot be isolated on this machine, so none is run"):
            run(f"open({str(ran)!r}, 'w')")
        assert not ran.exists() and Path(f"{ran}.unshare").exists()
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(UserError, match="on Linux only"):
            sandbox.check()
    finally:
        monkeypatch.undo()
        sandbox._mode.cache_clear()


def test_a_sandbox_that_can_no_longer_be_made_is_an_error_and_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_INSIDE", Path("/gone.py"))
    with pytest.raises(UserError, match="cannot be isolated"):
        run("")


@pytest.mark.skipif(os.geteuid() != 0, reason="the other way of making namespaces is tried as root")
def test_a_user_namespace_holds_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    python = Path("/usr/bin/python3")
    if not python.exists():
        pytest.skip("needs a system Python, which another user can read")
    monkeypatch.setattr(sys, "_base_executable", str(python))
    try:
        assert sandbox._run("", Limits(), "user").passed
    except sandbox._NoSandboxError as error:
        pytest.skip(f"needs user namespaces: {error}")
    for name in ("a fork bomb", "an address outside", "writing to the system", "mounting", "namespaces of its own",
                 "leaving before the tests", "a server on loopback"):
        assert not sandbox._run(ENDS[name][0], Limits(cpu_seconds=1), "user").passed, name
