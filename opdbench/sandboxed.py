"""The inside of `opdbench.sandbox`: locks itself in, then runs the program. Standard library only, and never imported.

Started by `unshare` as `python -I -S -B sandboxed.py FOLDER`, as (mapped) root in fresh namespaces, with an order in
JSON on stdin. FOLDER is empty, and becomes the root of the file system.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from types import ModuleType
from typing import Any

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _SYS_MOUNT_SETATTR = -100, 0x8000, 442
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    order = json.load(sys.stdin)
    reply = os.dup(1)
    try:
        _enter(sys.argv[1], order["limits"]["file_bytes"])
        _close_files_but(reply)
        _give_up_privileges(order["uid"])
        _limit(order["limits"])
        os.environ.clear()
    except OSError as error:
        os.write(reply, str(error.strerror).encode())
        return
    word = order.pop("word").encode()
    # A module, for what looks itself up by name (dataclasses); not `__main__`, whose block is no part of a solution.
    module = sys.modules["program"] = ModuleType("program")
    os.write(reply, b"ready\n")
    try:
        exec(compile(order.pop("program"), "program.py", "exec"), module.__dict__)
    except BaseException as error:  # SystemExit too: a program that leaves early has not passed
        word = type(error).__name__.encode()
    os.write(reply, word)
    os._exit(0)  # nothing that the program left behind gets to run


def _call(name: str, *arguments: Any) -> None:
    """A function of libc; what it refuses ends everything."""
    if getattr(_libc, name)(*(item.encode() if isinstance(item, str) else item for item in arguments)) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    _call("mount", source, target, kind, ctypes.c_ulong(flags), options)


def _enter(root: str, file_bytes: int) -> None:
    """Move to a root with read-only system folders, Python's own, and an empty /tmp to work in."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)  # nothing of this is seen outside
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    jail = f"{root}/jail"
    for folder in ("/usr", "/lib", "/lib64", sys.base_prefix):
        if os.path.isdir(folder) and not os.path.exists(jail + folder):
            _bind(folder, jail + folder)
    os.mkdir(f"{jail}/dev")
    for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
        open(jail + device, "w").close()
        _mount(device, jail + device, None, _MS_BIND)
    os.mkdir(f"{jail}/tmp")
    _mount("tmpfs", f"{jail}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV,
           f"size={2 * file_bytes},nr_inodes=4096,mode=1777")
    os.chdir(root)
    _call("pivot_root", ".", ".")
    _call("umount2", ".", ctypes.c_int(_MNT_DETACH))
    _mount("none", "/", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chroot("/jail")  # not only pivot_root: in a changed root the kernel makes no further user namespaces
    os.chdir("/tmp")


def _bind(source: str, target: str) -> None:
    """Show a folder, with what is mounted below it, read-only."""
    os.makedirs(target)
    _mount(source, target, None, _MS_BIND | _MS_REC)
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
    _call("syscall", ctypes.c_long(_SYS_MOUNT_SETATTR), ctypes.c_int(_AT_FDCWD), target,
          ctypes.c_uint(_AT_RECURSIVE), ctypes.byref(attributes), ctypes.c_size_t(ctypes.sizeof(attributes)))


def _close_files_but(kept: int) -> None:
    """stdin, stdout and stderr lead nowhere; every other file but the way back to the caller is closed."""
    nowhere = os.open("/dev/null", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.closerange(3, kept)
    os.closerange(kept + 1, 4096)


def _give_up_privileges(uid: int | None) -> None:
    """No capability, now or ever; `uid` is the user to become, where there is another than the mapped one."""
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _call("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def _limit(limits: dict[str, int]) -> None:
    for kind, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 1), (resource.RLIMIT_MSGQUEUE, 0),
                        (resource.RLIMIT_NOFILE, limits["open_files"]), (resource.RLIMIT_FSIZE, limits["file_bytes"]),
                        (resource.RLIMIT_CPU, limits["cpu_seconds"]), (resource.RLIMIT_AS, limits["memory_bytes"])):
        resource.setrlimit(kind, (value, value))


if __name__ == "__main__":
    main()
