"""Papers on disk: `papers/KEY/table.*`, made of `configs/papers/KEY.yaml` and the records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from opdbench.report.evidence import Evidence
from opdbench.report.paper_tables import render
from opdbench.report.papers import Reproduction, reproduce
from opdbench.schema.paper import read


class Built(NamedTuple):
    """A paper's files as the records give them."""

    folder: Path
    found: Reproduction
    files: Mapping[str, str]


def build(papers: Path, key: str, evidence: Evidence) -> Built:
    """What a paper's files should be; writes nothing."""
    found = reproduce(read(key), evidence)
    return Built(papers / key, found, render(found, f"opdbench paper build {key}"))
