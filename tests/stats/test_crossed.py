"""Means over seeds x examples: worked by hand, against scipy in the cases that it knows, and by simulated coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.coverage import Setting, coverage
from opdbench import stats
from opdbench.stats import Estimate, Interval


def test_a_matrix_worked_by_hand() -> None:
    """Rows 1.5 and 4.5, columns 2 and 4, rest +-0.5: mean squares A = 9, B = 4, R = 1."""
    found = stats.crossed(np.array([[1.0, 2.0], [3.0, 6.0]]))
    assert found.mean == 3
    assert found.error == pytest.approx(math.sqrt((9 + 4 - 1) / 4))
    assert found.df == pytest.approx((27 + 4 - 1) ** 2 / (27 ** 2 + 4 ** 2 + 1))  # A counts 1 + 2/(2 - 1) times


@pytest.mark.parametrize("axis", [0, 1])
def test_when_one_factor_alone_varies_it_is_students_t_over_that_factor(axis: int) -> None:
    value = np.array([0.2, 0.5, 0.9, 0.4])
    matrix = np.tile(value, (6, 1)) if axis == 1 else np.tile(value[:, None], (1, 6))
    assert stats.crossed(matrix).interval()[:3] == pytest.approx(stats.student_t(value.tolist())[:3])


def test_p_value_and_interval_agree_with_scipy() -> None:
    value = [0.3, -0.1, 0.4, 0.2, 0.6]
    estimate, expected = stats.fresh(np.array(value)[:, None]), ttest_1samp(value, 0)
    assert estimate.p_value() == pytest.approx(expected.pvalue)
    assert estimate.interval()[1:3] == pytest.approx(tuple(expected.confidence_interval(0.95)))


def test_fresh_episodes_count_by_their_seeds_means() -> None:
    matrix = np.random.default_rng(0).normal(size=(5, 40))
    assert stats.fresh(matrix).interval()[:3] == pytest.approx(stats.student_t(matrix.mean(1).tolist())[:3])


@pytest.mark.parametrize("mean_over", [stats.crossed, stats.fresh])
def test_one_seed_says_nothing_of_other_seeds(mean_over: object) -> None:
    estimate = mean_over(np.array([[0.0, 1.0, 1.0]]))  # type: ignore[operator]
    assert estimate.interval()[1:3] == (-math.inf, math.inf) and estimate.p_value() == 1


def test_without_any_spread_the_interval_is_a_point() -> None:
    for constant in (0.0, 0.1, 500.0):
        for estimate in (stats.crossed(np.full((5, 7), constant)), stats.fresh(np.full((5, 7), constant))):
            assert estimate.interval()[:3] == (estimate.mean,) * 3 and estimate.mean == pytest.approx(constant)
            assert estimate.p_value() == float(constant == 0)


def test_a_perfect_score_keeps_wilsons_doubt() -> None:
    perfect = np.ones((5, 30))
    assert stats.mean_score(perfect, shared=True) == stats.wilson(30, 30)
    assert stats.mean_score(perfect, shared=False) == stats.wilson(150, 150)
    assert stats.mean_score(500 * perfect, shared=False)[:3] == (500, 500, 500)


def test_shares_stay_between_zero_and_one() -> None:
    matrix = np.ones((3, 30))
    matrix[0, :2] = 0
    found = stats.mean_score(matrix, shared=True)
    assert found.low < found.mean < found.high == 1


def test_gap_recovered_is_the_ratio_and_its_values_have_that_mean() -> None:
    rng = np.random.default_rng(1)
    before, teacher, after = (rng.normal(mean, 1, (5, 200)) for mean in (0, 2, 1.5))
    estimate, value_se = stats.gap_recovered(before, teacher, after, shared=True)
    ratio = (after.mean() - before.mean()) / (teacher.mean() - before.mean())
    assert estimate.mean == pytest.approx(ratio) == pytest.approx(value_se.mean())


def test_a_student_that_became_the_teacher_has_recovered_all_of_the_gap_for_certain() -> None:
    rng = np.random.default_rng(2)
    before, teacher = rng.normal(0, 1, (5, 50)), rng.normal(3, 1, (5, 50))
    estimate, _ = stats.gap_recovered(before, teacher, teacher, shared=True)
    assert estimate.interval()[:3] == pytest.approx((1, 1, 1))
    estimate, _ = stats.gap_recovered(before, teacher, before, shared=True)
    assert estimate.interval()[:3] == pytest.approx((0, 0, 0))


def test_no_gap_no_share_of_it() -> None:
    rng = np.random.default_rng(3)
    before, teacher, after = (rng.normal(0, 1, (5, 50)) for _ in range(3))
    with pytest.raises(ValueError, match="not measurably better"):
        stats.gap_recovered(before, teacher, after, shared=True)


def test_the_mean_over_tasks_adds_their_variances() -> None:
    found = stats.mean_of([Estimate(1.0, 0.3, 4.0), Estimate(2.0, 0.4, 4.0)])
    assert found.mean == 1.5 and found.error == pytest.approx(0.25)
    assert found.df == pytest.approx((0.09 + 0.16) ** 2 / ((0.09 ** 2 + 0.16 ** 2) / 4))
    assert stats.mean_of([Estimate(1.0, 0.0, math.inf)]) == Estimate(1.0, 0.0, math.inf)
    assert stats.mean_of([Estimate(1.0, 0.1, 4.0), Estimate(0.0, math.inf, 0.0)]).interval().low == -math.inf


def test_another_unit_scales_the_interval() -> None:
    found = Estimate(2.0, 0.5, 6.0).scaled(-3)
    assert found.interval() == Interval(*(-3 * np.array(Estimate(2.0, 0.5, 6.0).interval()[:3])[[0, 2, 1]]), "t")


@pytest.mark.parametrize("setting", [Setting(3, 30, 0.09), Setting(3, 480, 0.45), Setting(5, 100, 0.45),
                                     Setting(10, 100, 0.09)])
def test_intervals_cover_what_they_promise(setting: Setting) -> None:
    """A small version of `python -m benchmarks.coverage`: 1,000 studies have a standard error of 0.7 points."""
    found = coverage(setting, 1000, np.random.default_rng(5))
    for name in ("mean", "paired difference", "gap recovered"):
        assert found[name] >= 0.925
    if setting.seed_sd > 0.4:  # what ignores seeds promises far too much, and the simulation must be able to show it
        assert found["difference, examples only"] < 0.7
