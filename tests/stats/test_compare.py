"""Corrections, tie letters and power."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opdbench import stats
from opdbench.stats import Estimate


def test_holm_on_a_worked_example() -> None:
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.6, 0.7]) == [1.0, 1.0] and stats.holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values: list[float]) -> None:
    adjusted = stats.holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    for (p, q), (r, s) in combinations(zip(p_values, adjusted, strict=True), 2):
        assert (p < r) <= (q <= s)


def test_letters_of_a_tie_that_is_not_transitive() -> None:
    assert stats.letters(3, {(0, 2)}) == ["a", "ab", "b"]
    assert stats.letters(3, set()) == ["a", "a", "a"]
    assert stats.letters(2, {(0, 1)}) == ["a", "b"]
    assert stats.letters(0, set()) == []


@given(st.sets(st.tuples(st.integers(0, 6), st.integers(0, 6)).filter(lambda pair: pair[0] < pair[1])))
def test_a_letter_is_shared_exactly_by_what_cannot_be_told_apart(differ: set[tuple[int, int]]) -> None:
    found = stats.letters(7, differ)
    assert all(found)
    for pair in combinations(range(7), 2):
        assert bool(set(found[pair[0]]) & set(found[pair[1]])) == (pair not in differ)


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    """5 seeds: the plug-in formula is within a few points of the exact power at the true standard error."""
    rng, seeds = np.random.default_rng(0), 5
    effect = stats.detectable(Estimate(0.0, 1 / math.sqrt(seeds), seeds - 1.0))
    found = [stats.fresh(rng.normal(effect, 1, (seeds, 1))).p_value() < 0.05 for _ in range(2000)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_without_an_error_estimate_nothing_can_be_said_to_be_detectable() -> None:
    assert stats.detectable(Estimate(0.0, math.inf, 0.0)) == math.inf
    assert stats.detectable(Estimate(0.3, 0.0, math.inf)) == 0.0


def test_a_mean_ratio_worked_by_hand() -> None:
    """1/2 and 8: logarithms ln 2 times -1 and 3, mean ln 2, standard error 2 ln 2; t with 1 degree of freedom."""
    found = stats.mean_ratio([0.5, 8.0])
    assert found.mean == pytest.approx(2.0)
    assert found.low == pytest.approx(2.0 ** (1 - 2 * 12.706204736432095), rel=1e-9)
    assert found.high == pytest.approx(2.0 ** (1 + 2 * 12.706204736432095), rel=1e-9)


def test_a_mean_ratio_turned_round_is_its_inverse() -> None:
    found, inverse = stats.mean_ratio([1.5, 2.0, 1.7]), stats.mean_ratio([1 / 1.5, 0.5, 1 / 1.7])
    assert [1 / inverse.mean, 1 / inverse.high, 1 / inverse.low] == pytest.approx(list(found[:3]))


def test_equal_ratios_are_a_point_and_one_alone_says_nothing_of_others() -> None:
    assert stats.mean_ratio([3.0, 3.0, 3.0])[:3] == pytest.approx((3.0, 3.0, 3.0))
    assert stats.mean_ratio([3.0])[:3] == (pytest.approx(3.0), 0.0, math.inf)
