"""Claims: the four verdicts, ratios of costs, levels, and several tasks as one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from opdbench.report.claims import Finding, judge
from opdbench.report.paper_tables import render
from opdbench.report.papers import reproduce
from tests.papers.conftest import Toys
from tests.papers.synthetic import paper


def claim(suite: str, first: str = "high", second: str | None = "base", task: str = "toy@1", **rules: Any
          ) -> dict[str, Any]:
    return {"id": "c", "statement": "one is better", "axis": "steps", "if_not": "toys differ",
            "experiments": [{"task": task, "suite": suite, "first": first, "second": second}], **rules}


def finding(toys: Toys, **given: Any) -> Finding:
    return judge(paper(toys.suite, claims=[claim(toys.suite, **given)]).claims[0], toys.evidence)


@pytest.mark.parametrize(("given", "verdict", "reason"), [
    ({}, "holds", ""), ({"expect": "lower"}, "does not hold", "toys differ"),
    ({"first": "low"}, "does not hold", "toys differ"), ({"first": "same"}, "cannot be told apart", "toys differ"),
    ({"first": "absent"}, "not run", "opdbench run suite:"), ({"task": "rest@1"}, "not run", "rest/high"),
    ({"second": None}, "holds", ""), ({"second": None, "level": 1.2}, "does not hold", "toys differ"),
])
def test_verdicts(toys: Toys, given: dict[str, Any], verdict: str, reason: str) -> None:
    found = finding(toys, **given)
    assert found.verdict == verdict and reason in found.reason and bool(reason) == bool(found.reason)
    assert (found.effect is None) == (verdict == "not run")


def test_the_effect_is_the_paired_difference(toys: Toys) -> None:
    found = finding(toys).effect
    assert found is not None and found.low < (0.9 - 0.5) / (0.95 - 0.2) < found.high


def test_a_ratio_of_costs(toys: Toys) -> None:
    """Every synthetic run takes 1.5 s: a ratio of exactly one, which is no difference."""
    found = finding(toys, measure="cpu_seconds", expect="lower")
    assert found.effect is not None and found.effect.mean == found.effect.high == 1
    assert found.verdict == "cannot be told apart"
    assert finding(toys, measure="teacher_tokens").verdict == "not run"  # zero has no ratio


def test_several_tasks_are_judged_by_their_mean(toys: Toys) -> None:
    both = claim(toys.suite)
    both["experiments"].append({**both["experiments"][0], "task": "play@1"})
    found = judge(paper(toys.suite, claims=[both]).claims[0], toys.evidence)
    assert [each.verdict for each in found.experiments] == ["holds", "does not hold"]
    assert found.verdict == "cannot be told apart" and found.effect is not None
    means = [each.effect.mean for each in found.experiments if each.effect is not None]
    assert math.isclose(found.effect.mean, sum(means) / 2)


def test_a_claim_without_an_experiment_says_why(toys: Toys) -> None:
    unjudged = {"id": "c", "statement": "s", "axis": "a", "not_run": "nobody could", "commands": ["make it"]}
    reproduction = reproduce(paper(toys.suite, claims=[unjudged, claim(toys.suite, id="d")]), toys.evidence)
    text = render(reproduction, "x")["table.md"]
    assert "nobody could; to make the records: make it" in text and "| holds |" in text
    assert "+5" in text.partition("high against base on toy@1")[2]
