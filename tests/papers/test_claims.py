"""Claims: the four verdicts, ratios of costs, levels, and several tasks as one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import yaml

from opdbench.errors import UserError
from opdbench.report.claims import Finding, judge
from opdbench.report.evidence import Evidence
from opdbench.report.paper_tables import render
from opdbench.report.papers import reproduce
from opdbench.schema.paper import Claim
from tests.papers.conftest import Toys
from tests.papers.synthetic import paper
from tests.report.synthetic import write_run


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


@pytest.mark.parametrize(("level", "verdict"), [(None, "holds"), (1.5, "cannot be told apart"), (4, "does not hold")])
def test_a_ratio_of_regrets_is_compared_with_a_level(level: float | None, verdict: str, toys: Toys) -> None:
    """What 0.3 and 0.5 lack to the teacher's 0.95; the effect is the ratio itself, whatever it is compared with."""
    found = finding(toys, first="low", measure="regret", level=level)
    assert found.effect is not None and found.effect.low < 0.65 / 0.45 < found.effect.high
    assert found.verdict == verdict
    assert finding(toys, first="low", measure="regret", expect="lower", level=4).verdict == "holds"


def test_one_mode_is_judged_alone(toys: Toys) -> None:
    greedy, sampled, both = (finding(toys, first="same", mode=mode).effect for mode in ("greedy", "sampled", "mean"))
    assert greedy is not None and sampled is not None and both is not None
    assert both.mean == pytest.approx((greedy.mean + sampled.mean) / 2, rel=0.02) and greedy.mean != sampled.mean


@pytest.fixture(scope="module")
def restored(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Evidence]:
    """A skill of 0.9, then 0.2 after something else, then 0.8; and a run beside it that began with another student."""
    folder = tmp_path_factory.mktemp("restored")
    recipe = folder / "restored.yaml"
    recipe.write_text(yaml.safe_dump({
        "title": "Restored", "report": [{"label": "x", "stage": "skill", "phase": "after"}],
        "stages": {"skill": {"method": "learn", "task": "toy", "budget": "steps=10"},
                   "restore": {"method": "mend", "task": "toy", "budget": "steps=10", "student": "stage:skill"},
                   "never": {"method": "rest", "task": "toy", "budget": "steps=10", "student": "stage:restore"}},
    }, sort_keys=False))
    for seed in range(5):
        skill = write_run(folder / "results", "learn", seed, after=0.9)
        write_run(folder / "results", "mend", seed, after=0.0, student="elsewhere/student")
        write_run(folder / "results", "mend", seed, after=0.8, student=str(skill.student))
    return str(recipe), Evidence(folder / "results")


@pytest.mark.parametrize(("first", "second", "measure", "expect", "verdict"), [
    ("restore/before", "skill", "score", "lower", "holds"), ("restore", "restore/before", "score", "higher", "holds"),
    ("restore", "skill", "score", "higher", "does not hold"), ("restore", None, "gap", "higher", "holds"),
    ("never", "skill", "score", "higher", "not run")])
def test_stages_of_a_recipe_are_compared(first: str, second: str | None, measure: str, expect: str, verdict: str,
                                         restored: tuple[str, Evidence]) -> None:
    recipe, evidence = restored
    judged = {"id": "c", "statement": "s", "axis": "steps", "measure": measure, "expect": expect, "level": 0.5,
              "experiments": [{"task": "toy@1", "recipe": recipe, "first": first, "second": second}]}
    found = judge(Claim.model_validate(judged), evidence)
    assert found.verdict == verdict
    assert verdict != "not run" or f"opdbench run recipe:{recipe} --seeds 0:5" in found.reason
    if (first, second) == ("restore", "restore/before"):
        assert found.effect is not None and found.effect.low < 0.8 - 0.2 < found.effect.high


def test_a_stage_that_a_recipe_does_not_have_is_refused(restored: tuple[str, Evidence]) -> None:
    with pytest.raises(UserError, match="no stage repair"):
        restored[1].stage(restored[0], "toy@1", "repair")


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
