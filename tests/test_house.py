"""The house rules that a machine can hold: who imports whom, how long things may grow, what the README promises."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opdbench import registry

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("opdbench", "baselines", "tasks", "benchmarks") for path in
                 (ROOT / folder).rglob("*.py"))
CORE = [path for path in SOURCES if path.is_relative_to(ROOT / "opdbench")]
HEAVY = {"torch", "transformers", "gymnasium", "stable_baselines3", "reasoning_gym", "datasets", "scipy"}
LIGHT = [path for path in CORE if path.parent.name in ("cli", "schema", "report", "stats") or path.stem in (
    "registry", "errors", "hardware", "provenance", "source", "text", "scores", "store", "settings")]

MODEL_FAMILIES = {"qwen3"}  # a method's name and a family of models, whose configurations opdbench.lm reads


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_core_names_no_method_and_no_task(path: Path) -> None:
    tree = parse(path)
    assert not [name for name in imported(tree) if name.startswith(("opdbench.baselines", "opdbench.tasks"))]
    names = {*registry.names("method"), *registry.names("task")} - MODEL_FAMILIES
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert not names & constants


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_must_answer_at_once_imports_nothing_heavy(path: Path) -> None:
    top_level = ast.Module([node for node in parse(path).body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert not {name.partition(".")[0] for name in imported(top_level)} & HEAVY


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 80, node.name


def test_method_files_are_30_to_150_lines() -> None:
    for name in registry.names("method"):
        path = registry.describe("method", name).path
        assert path is not None and 30 <= len(path.read_text().splitlines()) <= 150, name


def test_ruff_is_clean() -> None:
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_ci_types_the_commands_of_the_readme() -> None:
    """`.ci/run` reads its commands from the README, so they are there, and install what is pinned."""
    readme = (ROOT / "README.md").read_text()
    for name, command in (("main-job", "opdbench run --method gkd --task chain-sum"), ("tests", "python -m pytest")):
        block = readme.partition(f"<!-- command: {name} -->\n```sh\n")[2].partition("```")[0]
        assert command in block and "-c constraints.txt" in block


def test_constraints_hold_versions_and_no_places() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines and all(line.count("==") == 1 and "/" not in line and "@" not in line and "+" not in line
                         for line in lines)
