"""GitHub's workflows: a stranger's pull request gets no secret, no token that writes, and no say in what runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from opdbench.cli.main import VERBS

FILES = sorted((Path(__file__).resolve().parents[1] / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load(path.read_text())
    return content


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nothing_runs_with_more_than_it_needs(path: Path) -> None:
    workflow, text = read(path), path.read_text()
    events = workflow[True]  # YAML 1.1 reads the key `on` as true
    assert not re.search(r"^[^#]*pull_request_target", text, re.MULTILINE) and "secrets." not in text
    assert set(workflow["permissions"].items()) <= {("contents", "read")}
    for job in workflow["jobs"].values():
        writes = {scope for scope, level in job.get("permissions", {}).items() if level == "write"}
        assert not writes or "pull_request" not in events
        assert job["timeout-minutes"] <= 60
        executes = any("run" in step or "checkout" in step.get("uses", "") for step in job["steps"])
        assert not (writes and executes)  # who may write executes none of a checkout
        for step in job["steps"]:
            if "checkout" in step.get("uses", ""):
                assert step["with"]["persist-credentials"] is False
            # What a stranger may name (titles, branches) is never pasted into a shell's text.
            assert not re.search(r"\$\{\{\s*github\.(head_ref|event\.pull_request\.(title|body|head\.ref))", str(step))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_commands_are_those_of_this_opdbench(path: Path) -> None:
    for job in read(path)["jobs"].values():
        for step in job["steps"]:
            for verb in re.findall(r"^\s*opdbench (\w+)", step.get("run", ""), re.MULTILINE):
                assert verb in VERBS


def test_the_verifier_is_the_base_branchs_own() -> None:
    steps = read(next(path for path in FILES if path.stem == "submission"))["jobs"]["verify"]["steps"]
    install = next(step["run"] for step in steps if "pip install" in step.get("run", ""))
    assert "-e trusted" in install and "submitted" not in install
    trusted = next(step["with"] for step in steps if step.get("with", {}).get("path") == "trusted")
    assert trusted["ref"] == "${{ github.event.pull_request.base.sha }}"
