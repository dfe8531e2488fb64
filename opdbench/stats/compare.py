"""Many methods on one board: corrected p-values, what cannot be told apart, and what never could have been."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from opdbench.stats.crossed import Estimate, fresh
from opdbench.stats.single import Interval


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979): adjusted p-values in the order given, which hold all errors below alpha."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def detectable(difference: Estimate, alpha: float = 0.05, power: float = 0.8) -> float:
    """Minimum detectable effect: the true difference that a comparison with this standard error finds significant with
    probability `power`, (t_{1-alpha/2} + t_{power}) x error. Infinite when there is no error estimate."""
    if difference.error == 0:
        return 0.0
    if not math.isfinite(difference.error) or difference.df <= 0:
        return math.inf
    from scipy.special import stdtrit

    return float(stdtrit(difference.df, 1 - alpha / 2) + stdtrit(difference.df, power)) * difference.error


def mean_ratio(ratio_s: Sequence[float]) -> Interval:
    """The geometric mean of positive ratios, one for each seed, with Student's t interval of their logarithms: twice as
    long and half as long are equally far from 1. The bounds of one ratio alone are 0 and infinity."""
    found = fresh(np.log(np.asarray(ratio_s, dtype=np.float64))[:, None]).interval()
    mean, low, high = (float(bound) for bound in np.exp(found[:3]))
    return Interval(mean, low, high, found.kind)


def letters(n: int, differ: Collection[tuple[int, int]]) -> list[str]:
    """Tie groups as a compact letter display: two of `n` entries share a letter exactly if nothing tells them apart.

    "Cannot be told apart" is not transitive, so groups may overlap (insert and absorb, Piepho 2004).

    Args:
        differ: the pairs of entries that were told apart.
    """
    groups = [frozenset(range(n))] if n else []
    for first, second in sorted(differ):
        split = [part for group in groups for part in (
            (group - {first}, group - {second}) if {first, second} <= group else (group,))]
        groups = [group for group in dict.fromkeys(split) if not any(group < other for other in split)]
    groups.sort(key=sorted)
    return ["".join(_letter(index) for index, group in enumerate(groups) if entry in group) for entry in range(n)]


def _letter(index: int) -> str:
    """a to z, then a1, b1, ..."""
    rounds, place = divmod(index, 26)
    return chr(ord("a") + place) + (str(rounds) if rounds else "")
