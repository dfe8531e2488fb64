"""From a method's records to the files of a submission."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from opdbench import registry, untrusted
from opdbench.errors import UsageError, UserError
from opdbench.report.runs import Run
from opdbench.schema.submission import Division, File, Manifest
from opdbench.store import RECORD, run_path
from opdbench.submissions.bundle import limit_of, manifest_path


class About(NamedTuple):
    """What a submitter says."""

    license: str
    contact: str
    division: Division = "closed"
    name: str | None = None  # of the submission; the method's by default
    plugins: Sequence[str] = ()  # files with the method, when it is not installed


def files_of(runs: Sequence[Run], about: About) -> dict[str, bytes]:
    """Everything that belongs to the submission of these runs, by path, the manifest included.

    Raises:
        UserError: the runs are of several methods, or something is missing, too large or malformed.
    """
    recipe = runs[0].record.recipe
    if others := {run.record.recipe.method for run in runs} - {recipe.method}:
        raise UserError(f"these are records of {recipe.method} and of {', '.join(sorted(others))}",
                        "submit one method at a time")
    name = about.name or recipe.method.lower().replace("_", "-")
    source = registry.describe("method", recipe.method, about.plugins).path
    if source is None:
        raise UserError(f"the source of {recipe.method} cannot be found", "name its file with --plugin")
    method_file = f"submissions/{name}/{source.name}"
    paths = {method_file: source}
    for run in runs:
        folder = f"results/{run_path(run.record.recipe, run.record.id)}"
        paths |= {f"{folder}/{file}": run.path / file
                  for file in (RECORD, *(outcomes.file for outcomes in run.record.outcomes.values()))}
    files = {path: _content(path, file) for path, file in paths.items()}
    manifest = _manifest(about, name, runs[0], method_file, files)
    return {**files, manifest_path(name): (json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n").encode()}


def _content(path: str, file: Path) -> bytes:
    try:
        return untrusted.read(file, limit_of(path))
    except untrusted.RefusedError as error:
        raise UserError(f"{file} cannot be submitted: it {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None


def _manifest(about: About, name: str, run: Run, method_file: str, files: Mapping[str, bytes]) -> Manifest:
    recipe = run.record.recipe
    try:
        return Manifest(
            name=name, division=about.division, method=recipe.method, method_file=method_file,
            method_sha256=recipe.method_sha256, license=about.license, contact=about.contact,
            opdbench=str(run.record.provenance.get("packages", {}).get("opdbench", "unknown")),
            files=tuple(File(path=path, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
                        for path, content in sorted(files.items())))
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"--{first['loc'][0]}: {first['msg']}", "opdbench submit --help") from None
