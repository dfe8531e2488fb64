"""A small site of synthetic records: two boards, ties, a failed run, an unranked method, a stranger's words."""

from __future__ import annotations

from pathlib import Path

import pytest

from opdbench.report import board
from opdbench.site.build import build_site
from tests.report.synthetic import write_board, write_run

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)> ]]>"


class Places:
    """Where the pieces of a site lie."""

    def __init__(self, top: Path) -> None:
        self.results, self.boards, self.out = top / "results", top / "boards", top / "out"

    def build_boards(self) -> None:
        records = board.read(self.results)
        for name in board.names(self.boards):
            board.write(board.build(self.boards, name, records))


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    """Shared by tests that change nothing."""
    return make(Places(tmp_path_factory.mktemp("site")))


@pytest.fixture
def own(tmp_path: Path) -> Places:
    """For tests that do."""
    return make(Places(tmp_path))


def make(places: Places) -> Places:
    for seed in range(5):
        for method, after in (("one", 0.9), ("two", 0.7), ("three", 0.4)):
            write_run(places.results, method, seed, after=after)
        write_run(places.results, "pole", seed, after=0.7, task="pole@1", text=False)
    for seed in range(2):
        write_run(places.results, "few", seed, after=0.6, lr=0.01)
    write_run(places.results, "one", 5, status="diverged", reason=NASTY)
    write_board(places.boards, "toy", title="A toy & <b>more</b>", about=NASTY)
    write_board(places.boards, "pole", title="A pole", task="pole@1")
    places.build_boards()
    build_site(places.results, places.boards, places.out)
    return places
