"""A git branch that adds a submission's files to the current commit; working tree and index stay as they are."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from opdbench.errors import UserError


def prepare(repository: Path, name: str, files: Mapping[str, bytes], message: str) -> str:
    """Make the branch `submission/<name>` and return its name. Nothing is pushed.

    Raises:
        UserError: no git checkout, no name and address of the author, or there is such a branch already.
    """
    branch = f"submission/{name}"
    with TemporaryDirectory(prefix="opdbench-") as place:
        git = _Git(repository, {"GIT_INDEX_FILE": str(Path(place, "index"))})
        head = git("rev-parse", "--verify", "HEAD")
        git("read-tree", head)
        blobs = [f"100644 {git('hash-object', '-w', '--stdin', given=content)}\t{path}"
                 for path, content in sorted(files.items())]
        git("update-index", "--index-info", given=("\n".join(blobs) + "\n").encode())
        commit = git("commit-tree", git("write-tree"), "-p", head, "-m", message)
        git("branch", "--no-track", branch, commit)
    return branch


class _Git:
    def __init__(self, repository: Path, variables: Mapping[str, str]) -> None:
        self._repository, self._variables = repository, variables

    def __call__(self, *words: str, given: bytes = b"") -> str:
        try:
            done = subprocess.run(["git", "-C", str(self._repository), *words], input=given, capture_output=True,
                                  timeout=120, env={**os.environ, **self._variables})
        except (OSError, subprocess.TimeoutExpired):
            raise UserError("git cannot be run", "submit the bundle by hand, or add --no-branch") from None
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it failed"]
            raise UserError(f"no branch was made: git {words[0]}: {said[0]}",
                            "mend that, or add --no-branch and send the bundle")
        return done.stdout.decode().strip()
