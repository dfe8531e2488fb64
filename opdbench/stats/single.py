"""Intervals for one run's scores, from its outcomes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist, fmean, stdev
from typing import NamedTuple


class Interval(NamedTuple):
    mean: float
    low: float
    high: float
    kind: str


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927); right also near 0 and 1, where the normal one is not."""
    if n < 1:
        raise ValueError("an interval needs at least one outcome")
    z = _normal(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half), "wilson")


@cache
def _normal(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def student_t(values: Sequence[float], level: float = 0.95) -> Interval:
    """Student's t interval for a mean; with one value, or none that differs, the interval is that point."""
    mean = fmean(values)
    if len(values) < 2 or (spread := stdev(values)) == 0:
        return Interval(mean, mean, mean, "t")
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * spread / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, "t")


def interval(values: Sequence[float]) -> Interval:
    """Wilson's interval when every value is 0 or 1, Student's t otherwise."""
    if {0, 1}.issuperset(values):
        return wilson(int(sum(values)), len(values))
    return student_t(values)


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of `k` samples is right, when `c` of `n` drawn ones are: 1 - C(n-c, k) / C(n, k).

    Unbiased for every k <= n, as 1 - (1 - c/n)^k is not (Chen et al. 2021, arXiv:2107.03374, equation 1).
    """
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {c} right ones among {n} is not defined")
    return 1 - math.comb(n - c, k) / math.comb(n, k)
