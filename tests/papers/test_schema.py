"""The papers' data: they parse, are what was read, and name runs that exist."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from opdbench.errors import UserError
from opdbench.paper_plan import places
from opdbench.schema import outer
from opdbench.schema import suite as suites
from opdbench.schema.paper import names, parse, read
from tests.conftest import SHARED
from tests.papers.synthetic import TEXT

READ = SHARED / "papers"


@pytest.mark.parametrize("key", names())
def test_a_paper_parses_and_names_runs_that_exist(key: str) -> None:
    paper = read(key)
    for place in places(paper):
        assert (place.task, place.arm) in suites.read(place.suite)[1].places()
    for each in (each for claim in paper.claims for each in claim.experiments if each.recipe):
        stages = outer.read(each.recipe)[1].stages
        assert {stages[name.partition("/")[0]].task for name in (each.first, each.second) if name} == {
            each.task.partition("@")[0]}
    assert len({claim.id for claim in paper.claims}) == len(paper.claims)


@pytest.mark.skipif(not READ.is_dir(), reason="the tables as they were read lie in ../shared/papers")
@pytest.mark.parametrize("key", names())
def test_a_paper_is_what_was_read(key: str) -> None:
    """Every cell, mark and source."""
    given: dict[str, Any] = yaml.load((READ / f"{key}.yaml").read_text(), Loader=yaml.CSafeLoader)
    ours = read(key).model_dump(mode="json")
    for name, value in given.items():
        _same(value, ours[name], name)


def test_every_paper_that_was_read_is_here() -> None:
    if not READ.is_dir():
        pytest.skip("the tables as they were read lie in ../shared/papers")
    assert names() == sorted(path.stem for path in READ.glob("*.yaml"))


def _same(given: Any, ours: Any, place: str) -> None:
    if isinstance(given, dict):
        for name, value in given.items():
            _same(value, ours[name], f"{place}.{name}")
    elif isinstance(given, list):
        assert len(given) == len(ours), place
        for index, value in enumerate(given):
            _same(value, ours[index], f"{place}.{index}")
    else:
        assert given == ours, place


@pytest.mark.parametrize(("old", "new", "says"), [
    ("columns: [x, y]", "columns: [x]", "no such column"), ("key: toy", "key: other", "calls itself other"),
    ("table: one", "table: two", "no table two"), ("equal: {x: same}", "equal: {y: same}", "no cell equal / y"),
    ("  reference: {row: base, column: x}\n", "", "reference cell"), ("scale: tiny", "scale: paper", "tolerance"),
    ("venue:", "year_of: 1\nvenue:", "year_of"), ("key: toy", "key: [", "not YAML"),
    ("not_run: it is a toy", "claims: [{id: a, statement: b, axis: c}]", "say either its experiments or why"),
    ("not_run: it is a toy", "claims: [{id: a, statement: b, axis: c, experiments: [{task: toy@1, first: x}]}]",
     "say either the suite"),
])
def test_a_wrong_file_is_one_sentence(old: str, new: str, says: str) -> None:
    text = TEXT.replace("SUITE", "toys")
    assert old in text
    with pytest.raises(UserError, match=says):
        parse(text.replace(old, new, 1), "toy")


def test_an_unknown_paper_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'minillm'"):
        read("minilm")
