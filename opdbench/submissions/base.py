"""What a submission changes against the branch that it wants to join: it may add its own files, and nothing else."""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

from opdbench.errors import UserError
from opdbench.submissions.bundle import Bundle, manifest_path

# Tables and pages that are made of the records may be made again.
_MADE = re.compile(r"leaderboards/[A-Za-z0-9_-]+/[a-z]+\.(?:md|csv|json|tex|svg)")


def changes(bundle: Bundle, base: str, repository: Path) -> str | None:
    """What it changes that it must not, in one sentence; None when it only adds.

    Raises:
        UserError: `repository` is no git checkout, or has no `base`.
    """
    common = _git(repository, "merge-base", "--end-of-options", base, "HEAD").decode().strip()
    own = {manifest_path(bundle.manifest.name), *(file.path for file in bundle.manifest.files)}
    return _against_blobs(bundle, common, repository) if bundle.unpacked else _against_diff(own, common, repository)


def _against_diff(own: set[str], common: str, repository: Path) -> str | None:
    """For a checkout: everything that differs since the merge base, working tree included."""
    found = _git(repository, "diff", "--name-status", "--no-renames", "--no-ext-diff", "-z", common, "--").decode(
        errors="replace").split("\0")
    added = _git(repository, "ls-files", "--others", "--exclude-standard", "-z", "--", "results", "submissions").decode(
        errors="replace").split("\0")
    for status, path in [*zip(found[::2], found[1::2], strict=False), *(("A", path) for path in added if path)]:
        if (status == "A" and path in own) or _MADE.fullmatch(path):
            continue
        verb = {"A": "adds", "D": "removes"}.get(status, "changes")
        return f"it {verb} {path}, and a submission adds its own files and nothing else"
    return None


def _against_blobs(bundle: Bundle, common: str, repository: Path) -> str | None:
    """For a zip, which can only add and replace."""
    listing = _git(repository, "ls-tree", "-r", "-z", common, "--", "results", "submissions").decode(errors="replace")
    there = {path: facts.split()[2] for line in listing.split("\0") if line for facts, path in [line.split("\t", 1)]}
    for file in bundle.manifest.files:
        if file.path in there and there[file.path] != _blob(bundle.root / file.path, there[file.path]):
            return f"it changes {file.path}, which is there already"
    return None


def _blob(path: Path, like: str) -> str:
    """The name that git has for a file's content; its length says by which hash."""
    content = path.read_bytes()
    digest = hashlib.sha1 if len(like) == 40 else hashlib.sha256
    return digest(b"blob %d\0" % len(content) + content).hexdigest()


def _git(repository: Path, *words: str) -> bytes:
    try:
        done = subprocess.run(["git", "-C", str(repository), *words], capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        raise UserError("git cannot be run, and the comparison with a branch needs it") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
        raise UserError(f"git {words[0]}: {said[-1]}", "name a branch or commit of this repository with --base")
    return done.stdout
