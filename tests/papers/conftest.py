"""Records that several tests look at, written once."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from opdbench.report.evidence import Evidence
from tests.papers.synthetic import fill


class Toys(NamedTuple):
    suite: str
    evidence: Evidence


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    folder = tmp_path_factory.mktemp("toys")
    return Toys(fill(folder), Evidence(folder / "results"))
