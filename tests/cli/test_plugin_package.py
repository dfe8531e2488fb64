"""A real third-party package, built and installed by pip without network, is listed, shown and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "plugin_package"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package, and nothing else."""
    folder = tmp_path_factory.mktemp("third-party")
    shutil.copytree(PACKAGE, folder / "source")  # a build writes into its source folder
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index",
                           "--disable-pip-version-check", "--target", str(folder / "site"), str(folder / "source")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def opdbench(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-m", "opdbench", *words], capture_output=True, text=True, env=environment)


def test_its_method_and_task_are_listed_beside_our_own(site: Path) -> None:
    methods = opdbench(site, "list", "methods").stdout
    row = next(line for line in methods.splitlines() if line.startswith("half-half "))
    assert row.endswith("[opdbench-example 0.3.0]")
    assert any(line.startswith("gkd ") for line in methods.splitlines())
    tasks = json.loads(opdbench(site, "list", "tasks", "--json").stdout)
    assert "short-pole@2" in [task["id"] for task in tasks]


def test_its_method_runs_on_its_task(site: Path, tmp_path: Path) -> None:
    done = opdbench(site, "run", "--method", "half-half", "--task", "short-pole@2", "--results", str(tmp_path),
                    "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["status"] == "completed" and shown["ledger"]["steps"] == 2
    assert min(shown["ledger"]["student_tokens"], shown["ledger"]["teacher_tokens"]) > 0  # both of them acted
    record = json.loads(Path(shown["record"]).read_text())
    assert (record["recipe"]["method"], record["recipe"]["task"]) == ("half-half", "short-pole@2")
    assert record["recipe"]["params"] == {"share": 0.5}


def test_without_the_package_its_names_are_unknown(tmp_path: Path) -> None:
    done = opdbench(tmp_path, "show", "half-half")
    assert done.returncode == 2 and "unknown name 'half-half'" in done.stderr
