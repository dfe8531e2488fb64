"""Where a number came from: the commit, the versions of the packages that compute it, the Python, the platform."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import opdbench

# Packages whose version can move a result; what is not installed is left out.
PACKAGES = ("opdbench", "torch", "transformers", "tokenizers", "safetensors", "numpy", "gymnasium", "box2d", "mujoco",
            "ale-py", "MinAtar", "reasoning-gym", "datasets", "stable-baselines3", "peft", "bitsandbytes")
CODE = ("opdbench", "baselines", "tasks", "configs", "pyproject.toml")


class Checkout(NamedTuple):
    """The git checkout that opdbench runs from; both None when it was installed from a wheel."""

    commit: str | None
    dirty: bool | None  # whether code differs from the commit, untracked files included; results do not count


def collect() -> dict[str, Any]:
    """What a record keeps, as JSON values."""
    commit, dirty = checkout()
    return {"commit": commit, "dirty": dirty, "packages": packages(), "python": platform.python_version(),
            "platform": platform.platform()}


def packages() -> dict[str, str]:
    """Installed versions of the packages that matter, by distribution name."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def checkout() -> Checkout:
    """Commit and state of the checkout around this package, if it is one."""
    root = Path(opdbench.__file__).resolve().parents[1]
    # A folder that merely lies inside somebody else's repository (a virtual environment, say) is not our checkout.
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return Checkout(None, None)
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *CODE)
    return Checkout(commit or None, None if changes is None else bool(changes))


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None  # no git here: the record says that the commit is not known
    return done.stdout.strip() if done.returncode == 0 else None
