"""Aggregates over runs and tasks: definitions of Agarwal et al. 2021, worked by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, trim_mean

from opdbench import stats

SCORES = np.array([[0.0, 0.9], [0.4, 1.0], [0.5, 1.4], [0.6, 3.0]])  # 4 runs of 2 tasks


def test_interquartile_mean() -> None:
    """Of 0, 0.4, 0.5, 0.6, 0.9, 1, 1.4, 3 the middle four."""
    assert stats.interquartile_mean(SCORES) == pytest.approx((0.5 + 0.6 + 0.9 + 1.0) / 4)
    for size in range(1, 12):
        values = np.random.default_rng(size).normal(size=(size, 3))
        assert stats.interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25, axis=None))


def test_optimality_gap_gives_nothing_for_what_lies_above_the_target() -> None:
    assert stats.optimality_gap(SCORES) == pytest.approx((1 + 0.6 + 0.5 + 0.4 + 0.1) / 8)
    assert stats.optimality_gap(SCORES, target=0.5) == pytest.approx((0.5 + 0.1) / 8)


def test_probability_of_improvement_is_mann_whitneys_u_over_all_pairs() -> None:
    assert stats.probability_of_improvement(np.array([[1.0], [2.0]]), np.array([[0.0], [2.0]])) == (1 + 0 + 1 + 0.5) / 4
    rng = np.random.default_rng(0)
    x_rt, y_rt = rng.integers(0, 5, (6, 3)).astype(float), rng.integers(0, 5, (4, 3)).astype(float)
    expected = np.mean([mannwhitneyu(x_rt[:, task], y_rt[:, task]).statistic / 24 for task in range(3)])
    assert stats.probability_of_improvement(x_rt, y_rt) == pytest.approx(expected)


def test_performance_profile_is_the_share_of_runs_above() -> None:
    profile = stats.performance_profile(SCORES, np.array([-1.0, 0.5, 1.0, 5.0]))
    assert profile.tolist() == [1.0, 5 / 8, 2 / 8, 0.0]


def test_the_bootstrap_draws_within_tasks() -> None:
    """Tasks whose runs agree leave nothing to draw, however much the tasks differ."""
    rng = np.random.default_rng(0)
    constant = np.array([[0.0, 10.0]] * 5)
    assert stats.bootstrap(stats.interquartile_mean, [constant], rng, resamples=50)[:3] == (5.0, 5.0, 5.0)
    found = stats.bootstrap(stats.interquartile_mean, [SCORES], rng)
    assert found.low < found.mean < found.high


def test_the_bootstrap_of_a_mean_has_the_width_that_theory_gives_it() -> None:
    value_rt = np.random.default_rng(1).normal(size=(200, 1))
    found = stats.bootstrap(lambda score_rt: float(score_rt.mean()), [value_rt], np.random.default_rng(2))
    assert found.high - found.low == pytest.approx(2 * 1.96 * value_rt.std() / 200 ** 0.5, rel=0.1)
