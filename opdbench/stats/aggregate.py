"""Aggregates over runs and tasks, as defined by Agarwal et al. 2021 (Deep RL at the Edge of the Statistical Precipice).

A matrix `score_rt` holds R runs of T tasks, normalised per task (gap recovered: 0 as before, 1 as the teacher).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from opdbench.stats.single import Interval

Array = NDArray[np.float64]


def interquartile_mean(score_rt: Array) -> float:
    """Mean of the middle half of all R x T scores: a quarter of them, rounded down, is cut off at either end."""
    ordered = np.sort(score_rt, axis=None)
    cut = ordered.size // 4
    return float(ordered[cut:ordered.size - cut].mean())


def geometric_mean(score_t: Sequence[float]) -> float:
    """Of positive scores, such as percentages of a teacher's: what Rusu et al. 2016 summarise their games by. One game
    at zero makes it zero, and below zero it means nothing.

    Raises:
        ValueError: a score is not positive.
    """
    scores = np.asarray(score_t, dtype=np.float64)
    if not (scores > 0).all():
        raise ValueError(f"a geometric mean needs positive scores, not {scores.min()}")
    return float(np.exp(np.log(scores).mean()))


def optimality_gap(score_rt: Array, target: float = 1.0) -> float:
    """Mean amount by which scores fall short of the target; what lies above it earns nothing."""
    return float(target - np.minimum(score_rt, target).mean())


def probability_of_improvement(x_rt: Array, y_rt: Array) -> float:
    """How likely a run of X scores higher than a run of Y on a random task; equal scores count half (Mann-Whitney)."""
    sign = np.sign(x_rt[:, None, :] - y_rt[None, :, :])
    return float((0.5 + 0.5 * sign).mean())


def performance_profile(score_rt: Array, threshold_k: Array) -> Array:
    """Share of runs, over all tasks, that score above each threshold, [K]."""
    return np.asarray((score_rt[..., None] > threshold_k).mean((0, 1)), dtype=np.float64)


def bootstrap(statistic: Callable[..., float], groups: Sequence[Array], rng: Generator, *, resamples: int = 2000,
              level: float = 0.95) -> Interval:
    """Percentile interval of `statistic(*groups)`, each group's runs drawn anew within every task (stratified).

    Args:
        groups: one matrix [R, T] for each argument of the statistic.
    """
    draws = [statistic(*(_resample(score_rt, rng) for score_rt in groups)) for _ in range(resamples)]
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(statistic(*groups), float(low), float(high), "stratified bootstrap")


def _resample(score_rt: Array, rng: Generator) -> Array:
    index_rt = rng.integers(len(score_rt), size=score_rt.shape)
    return np.take_along_axis(score_rt, index_rt, axis=0)
