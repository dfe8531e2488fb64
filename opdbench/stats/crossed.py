"""Means over seeds x examples, and what is built of them: the interval that a board prints.

The model is the two-way random-effects one without replication (Searle, Casella and McCulloch 1992, ch. 4),

    score_se = mu + seed_s + example_e + rest_se,

because a score is wanted for new seeds and new examples. With the mean squares A (seeds, S - 1 degrees of freedom), B
(examples, E - 1) and R (rest, (S - 1)(E - 1)), E[A] = r + E a, E[B] = r + S b and E[R] = r, so the variance of the
mean, a/S + b/E + r/(SE), is estimated by (A + B - R)/(SE). Its degrees of freedom are Satterthwaite's (1946), with A
taken 1 + 2/(S - 1) times as large in them: few seeds often show too small an A by chance, which would also promise too
many degrees of freedom (three seeds would cover as little as 91.5%; `benchmarks/coverage.py` shows what is held). A
mean square that falls below R by chance counts as R: a variance is not negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from opdbench.stats.single import Interval, wilson

Array = NDArray[np.float64]


class Estimate(NamedTuple):
    """A mean with its standard error and the degrees of freedom of that error."""

    mean: float
    error: float
    df: float

    def interval(self, level: float = 0.95) -> Interval:
        """The t interval; a point when there is no spread at all, and everything when nothing is known of it."""
        if self.error == 0:
            return Interval(self.mean, self.mean, self.mean, "t")
        if not math.isfinite(self.error) or self.df <= 0:
            return Interval(self.mean, -math.inf, math.inf, "t")
        from scipy.special import stdtrit

        half = float(stdtrit(self.df, 0.5 + level / 2)) * self.error
        return Interval(self.mean, self.mean - half, self.mean + half, "t")

    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the mean is 0."""
        if self.error == 0:
            return float(self.mean == 0)
        if not math.isfinite(self.error) or self.df <= 0:
            return 1.0
        from scipy.special import stdtr

        return 2 * float(stdtr(self.df, -abs(self.mean) / self.error))

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.mean * factor, self.error * abs(factor), self.df)


def crossed(score_se: Array) -> Estimate:
    """The mean of a matrix whose examples are the same for every seed.

    Args:
        score_se: [S, E]; for a paired comparison the differences.
    """
    return crossed_each(score_se[None])[0]


def crossed_each(score_kse: Array) -> list[Estimate]:
    """`crossed` of each of K matrices, in one go, [K, S, E]."""
    _, seeds, examples = score_kse.shape
    mean_k = score_kse.mean((1, 2))
    if seeds < 2 or examples < 2:
        return [Estimate(mean, math.inf, 0.0) for mean in mean_k.tolist()]
    row_ks, column_ke = score_kse.mean(2), score_kse.mean(1)
    rest_kse = score_kse - row_ks[:, :, None] - column_ke[:, None] + mean_k[:, None, None]
    square_r = (rest_kse ** 2).sum((1, 2)) / ((seeds - 1) * (examples - 1))
    square_a = np.maximum(examples * row_ks.var(1, ddof=1), square_r)
    square_b = np.maximum(seeds * column_ke.var(1, ddof=1), square_r)
    total_k = square_a + square_b - square_r
    cautious_a = square_a * (1 + 2 / (seeds - 1))
    spread_k = (cautious_a ** 2 / (seeds - 1) + square_b ** 2 / (examples - 1)
                + square_r ** 2 / ((seeds - 1) * (examples - 1)))
    with np.errstate(divide="ignore", invalid="ignore"):  # no spread at all, which is seen below
        df_k = (cautious_a + square_b - square_r) ** 2 / spread_k
    return _estimates(score_kse, mean_k, total_k, seeds * examples, df_k)


def fresh(score_se: Array) -> Estimate:
    """The mean of a matrix whose examples are each seed's own, such as episodes: seeds are then the only independent
    units, their means have the whole variance, and the interval is Student's over S - 1 degrees of freedom."""
    return fresh_each(score_se[None])[0]


def fresh_each(score_kse: Array) -> list[Estimate]:
    """`fresh` of each of K matrices, [K, S, E]."""
    seeds = score_kse.shape[1]
    row_ks = score_kse.mean(2)
    mean_k = row_ks.mean(1)
    if seeds < 2:
        return [Estimate(mean, math.inf, 0.0) for mean in mean_k.tolist()]
    variance_k = row_ks.var(1, ddof=1)
    return _estimates(score_kse, mean_k, variance_k, seeds, np.full(len(mean_k), seeds - 1.0))


def each(score_kse: Array, *, shared: bool) -> list[Estimate]:
    """The means of K matrices, whose examples every seed shares, or not."""
    return (crossed_each if shared else fresh_each)(score_kse)


def mean_score(score_se: Array, *, shared: bool) -> Interval:
    """The interval of one mean score. Scores of 0 and 1 end in [0, 1]; where all of them are equal, no variance can be
    seen and Wilson's interval stands in, over the independent units that there are (examples, or seeds x episodes)."""
    return mean_scores(score_se[None], shared=shared)[0]


def mean_scores(score_kse: Array, *, shared: bool) -> list[Interval]:
    """`mean_score` of each of K matrices, [K, S, E]."""
    _, seeds, examples = score_kse.shape
    share_k = ((score_kse == 0) | (score_kse == 1)).all((1, 2)).tolist()
    return [_share(estimate, examples if shared else seeds * examples) if is_share else estimate.interval()
            for estimate, is_share in zip(each(score_kse, shared=shared), share_k, strict=True)]


def _share(estimate: Estimate, n: int) -> Interval:
    """The interval of a mean of zeros and ones, over `n` independent units."""
    if estimate.error == 0:
        return wilson(round(estimate.mean * n), n)
    found = estimate.interval()
    return found._replace(low=max(0.0, found.low), high=min(1.0, found.high))


def gap_recovered(before_se: Array, teacher_se: Array, after_se: Array, *, shared: bool) -> tuple[Estimate, Array]:
    """(after - before) / (teacher - before), of the means, by the delta method on paired scores.

    The ratio g = N/D has, to first order, the error of the mean of (after - before - g (teacher - before)) / D, which
    is a matrix over the same seeds and examples. That before, teacher and after share them is so accounted for.

    Returns:
        the estimate, and that matrix shifted to mean g, [S, E]. Its differences between methods compare them.

    Raises:
        ValueError: the teacher is not measurably better than before; a share of that gap means nothing.
    """
    gap = each((teacher_se - before_se)[None], shared=shared)[0]
    if not gap.interval().low > 0:
        raise ValueError("the teacher is not measurably better than the student before")
    share = float((after_se - before_se).mean()) / gap.mean
    value_se = share + (after_se - before_se - share * (teacher_se - before_se)) / gap.mean
    return each(value_se[None], shared=shared)[0], value_se


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, such as one method's on several tasks; degrees of freedom by Satterthwaite."""
    n = len(estimates)
    variances = [(estimate.error / n) ** 2 for estimate in estimates]
    total = sum(variances)
    mean = sum(estimate.mean for estimate in estimates) / n
    if not math.isfinite(total):
        return Estimate(mean, math.inf, 0.0)
    if total == 0:
        return Estimate(mean, 0.0, math.inf)
    spread = sum(variance ** 2 / estimate.df for variance, estimate in zip(variances, estimates, strict=True))
    return Estimate(mean, math.sqrt(total), total ** 2 / spread)


def _estimates(score_kse: Array, mean_k: Array, square_k: Array, n: int, df_k: Array) -> list[Estimate]:
    """Means whose variance is a mean square over `n`; those below a certain one are rounding of equal numbers."""
    size = score_kse[0].size
    rounding_k = size * (1e-13 * np.abs(score_kse).max((1, 2), initial=0.0)) ** 2
    error_k = np.sqrt(np.maximum(square_k, 0.0) / n)
    return [Estimate(mean, 0.0, math.inf) if square <= rounding else Estimate(mean, error, df)
            for mean, square, rounding, error, df in zip(*(column.tolist() for column in (
                mean_k, square_k, rounding_k, error_k, df_k)), strict=True)]
