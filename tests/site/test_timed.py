"""A timed board's page: ratios with intervals, what has none and why, and the chart of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from opdbench.site.build import build_site
from tests.report.test_timing import NASTY, RULE, TWO, Folder


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference at three seeds, another method with a run of another sitting, and a stranger's reference."""
    folder = Folder(tmp_path_factory.mktemp("timed"))
    for seed in range(3):
        folder.run("ref", seed, 2.0)
        folder.run("slow", seed, 5.0, sitting=TWO if seed == 2 else "1" * 12)
    return built(folder, "ref")


def built(folder: Folder, reference: str) -> str:
    made = folder.build(timed={**RULE, "reference": reference})
    for name, content in made.files.items():
        (made.folder / name).write_text(content)
    out: Path = folder.results.parent / "out"
    build_site(folder.results, folder.boards, out)
    return (out / "boards" / "toy.html").read_text()


def test_the_ratio_stands_in_the_place_of_seconds(page: str) -> None:
    head = re.findall(r"<button type=\"button\">([^<]+)</button>", page.partition("</thead>")[0])
    assert "CPU s, ref = 1" in head and "CPU seconds" not in head and "cpu seconds" not in head
    assert '<td class="number" data-v="2.5">2.50 <small>2 of 3 seeds</small></td>' in page
    assert '<td class="number" data-v="1.0">1.00</td>' in page


def test_what_has_no_ratio_is_listed_with_its_reason(page: str) -> None:
    assert "<li>slow, seed 2: ref was run in another sitting</li>" in page


def test_the_chart_is_of_the_ratio(page: str) -> None:
    assert "Time, reference = 1" in page and ">CPU seconds<" not in page


def test_a_references_name_is_text(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.run("slow", 0, 5.0)
    page = built(folder, NASTY)
    assert "<script>x" not in page and "no ratio <small>&lt;script&gt;x" in page
