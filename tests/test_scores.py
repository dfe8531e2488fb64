"""Scores from outcomes: pass@k, and intervals when several outcomes are samples of one problem."""

from __future__ import annotations

import math
from itertools import combinations
from random import Random
from statistics import fmean

import pytest

from opdbench import stats
from opdbench.scores import Outcome, scores


def outcomes(problems: list[list[float]], mode: str = "sampled") -> list[Outcome]:
    return [Outcome(f"problem-{number}", mode, score, 5, False, None, {"boxed": 1.0})
            for number, samples in enumerate(problems) for score in samples]


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples(n: int) -> None:
    for c in range(n + 1):
        samples = [1] * c + [0] * (n - c)
        for k in range(1, n + 1):
            chosen = [max(choice) for choice in combinations(samples, k)]
            assert stats.pass_at_k(n, c, k) == pytest.approx(fmean(chosen), abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """Its expectation over draws of n is the chance that k draws hold a right one; 1 - (1 - c/n)^k's is not."""
    p, n, k = 0.2, 6, 4
    chance = [math.comb(n, c) * p ** c * (1 - p) ** (n - c) for c in range(n + 1)]
    truth = 1 - (1 - p) ** k
    assert sum(chance[c] * stats.pass_at_k(n, c, k) for c in range(n + 1)) == pytest.approx(truth, abs=1e-12)
    plug_in = sum(chance[c] * (1 - (1 - c / n) ** k) for c in range(n + 1))
    assert abs(plug_in - truth) > 0.02


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_what_is_not_defined(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="is not defined"):
        stats.pass_at_k(n, c, k)


def test_one_sample_a_problem_is_scored_as_ever() -> None:
    score = scores(outcomes([[1.0], [0.0], [1.0]]), "accuracy")["sampled"]
    assert (score.mean, score.low, score.high) == tuple(stats.wilson(2, 3)[:3])
    assert score.n == 3 and score.interval == "wilson" and score.extra == {"boxed": 1.0}


def test_several_samples_give_pass_at_k_and_an_interval_over_problems() -> None:
    problems = [[1.0, 0.0, 0.0, 0.0, 0.0], [1.0] * 5, [0.0] * 5]
    score = scores(outcomes(problems), "accuracy")["sampled"]
    expected = stats.student_t([0.2, 1.0, 0.0])
    assert (score.mean, score.low, score.high, score.interval) == tuple(expected)
    assert score.n == 3
    assert score.extra == pytest.approx({"boxed": 1.0, "pass@2": (0.4 + 1) / 3, "pass@4": (0.8 + 1) / 3,
                                         "pass@5": 2 / 3})


def test_problems_that_are_all_right_or_all_wrong_count_once_each() -> None:
    score = scores(outcomes([[0.0] * 16] * 30), "accuracy")["sampled"]
    assert score.high == stats.wilson(0, 30).high > 0.1  # and not that of 480 samples, nor a point
    assert score.extra["pass@16"] == 0


def test_graded_scores_have_no_pass_at_k() -> None:
    assert scores(outcomes([[0.5, 1.0], [0.0, 1.0]]), "f1")["sampled"].extra == {"boxed": 1.0}


def test_the_interval_over_problems_covers_where_one_over_samples_does_not() -> None:
    """Problems differ much more than samples of one problem do."""
    rng, covered = Random(0), {"problems": 0, "samples": 0}
    for _ in range(300):
        chances = [rng.random() < 0.5 for _ in range(30)]  # a problem is easy or hard; the mean chance is a half
        problems = [[float(rng.random() < (0.95 if easy else 0.05)) for _ in range(8)] for easy in chances]
        score = scores(outcomes(problems), "accuracy")["sampled"]
        naive = stats.wilson(int(sum(map(sum, problems))), 240)
        covered["problems"] += score.low <= 0.5 <= score.high
        covered["samples"] += naive.low <= 0.5 <= naive.high
    assert covered["problems"] >= 275 and covered["samples"] < 220
