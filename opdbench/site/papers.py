"""The pages about papers: each published number beside what `opdbench paper build` wrote that our records say."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from opdbench.schema.paper import Claim, Table, names, read
from opdbench.schema.paper import Paper as Published
from opdbench.site.pages import paper_path

TABLE = "table.csv"
COPIES = ("table.csv", "table.md", "table.tex")
Line = Mapping[str, str]  # of table.csv


class PaperTable(NamedTuple):
    """A published table, and the lines about its cells by row and column."""

    table: Table
    cells: Mapping[tuple[str, str], Line]
    not_run: Sequence[tuple[str, int]]  # reasons, with the number of cells


class PaperClaim(NamedTuple):
    claim: Claim
    line: Line
    experiments: Sequence[Line]


class Paper(NamedTuple):
    """A paper, and what was built of it; without lines where it was not built yet."""

    published: Published
    tables: Sequence[PaperTable]
    claims: Sequence[PaperClaim]
    verdicts: Mapping[str, int]  # of cells
    copies: Mapping[str, bytes]

    @property
    def path(self) -> str:
        return paper_path(self.published.key)

    @property
    def title(self) -> str:
        return self.published.title


def read_papers(papers: Path) -> list[Paper]:
    """The papers that a folder has built files of."""
    return [_read(papers / key, read(key)) for key in names() if (papers / key / TABLE).is_file()]


def _read(folder: Path, published: Published) -> Paper:
    copies = {name: (folder / name).read_bytes() for name in COPIES if (folder / name).is_file()}
    lines = list(csv.DictReader(io.StringIO(copies[TABLE].decode(errors="replace"))))
    cells = [line for line in lines if line.get("kind") == "cell"]
    return Paper(published, [_table(table, cells) for table in published.tables],
                 [_claim(claim, lines) for claim in published.claims],
                 Counter(line.get("verdict", "") for line in cells), copies)


def _table(table: Table, cells: Sequence[Line]) -> PaperTable:
    of_table = [line for line in cells if line.get("table") == table.id]
    reasons = Counter(_text(line.get("why")) for line in of_table if line.get("verdict") == "not run")
    return PaperTable(table, {(_text(line.get("row")), _text(line.get("column"))): line for line in of_table},
                      reasons.most_common())


def _claim(claim: Claim, lines: Sequence[Line]) -> PaperClaim:
    of_claim = [line for line in lines if line.get("row") == claim.id and line.get("kind") in ("claim", "experiment")]
    own = next((line for line in of_claim if line["kind"] == "claim"), {})
    return PaperClaim(claim, own, [line for line in of_claim if line["kind"] == "experiment"])


def _text(cell: str | None) -> str:
    """A cell as it was before a quotation mark kept spreadsheets from taking it for a formula."""
    cell = cell or ""
    return cell[1:] if cell[:1] == "'" and cell[1:2] in ("=", "+", "-", "@") else cell
