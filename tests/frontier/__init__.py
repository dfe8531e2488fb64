"""Methods of 2025 and 2026: what each must satisfy, as `docs/exactness.md` lists them."""

from __future__ import annotations

from pathlib import Path

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "exactness.md"


def names() -> set[str]:
    """The methods in that page's table of this folder."""
    table = _PAGE.read_text(encoding="utf-8").partition("## Methods of 2025 and 2026\n")[2].partition("\n## ")[0]
    return {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")}
