"""The pages under `docs` name tests that exist, and leave no check and no method out."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from opdbench import registry

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "exactness.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
TABLE_ROWS = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in PAGE.splitlines()
              if line.startswith("| ") and not line.startswith("| ---")]
ABSENT: set[str] = set()  # checks of methods that are not here; take one out when its method comes


@cache
def defined_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_a_test_that_the_page_names_exists(path: str, name: str) -> None:
    assert name in defined_in(path)


def test_nothing_that_looks_like_a_test_escapes_that() -> None:
    assert len(NAMED) > 90 and PAGE.count("::") == len(re.findall(r"`tests/[\w/]+\.py::test_\w+`", PAGE))


@pytest.mark.parametrize("check", [*(f"L{n}" for n in range(1, 14)), *(f"R{n}" for n in range(1, 16))])
def test_every_check_of_the_reference_lists_has_its_row(check: str) -> None:
    rows = [row for row in TABLE_ROWS if row[0] == check]
    assert len(rows) == (0 if check in ABSENT else 1)
    assert all("::test_" in row[-1] for row in rows)


def test_the_page_says_which_checks_are_absent() -> None:
    (sentence,) = [line for line in PAGE.splitlines() if "not here yet" in line]
    assert set(re.findall(r"R\d+", sentence.partition("parts of")[0])) == ABSENT


@pytest.mark.parametrize("method", registry.names("method"))
def test_every_method_has_its_row(method: str) -> None:
    """With its objective, what it does at its teacher, and a special case that has a test."""
    (row,) = [row for row in TABLE_ROWS if row[0] == f"`{method}`"]
    assert len(row) == 4 and all(row) and "::test_" in row[3]
