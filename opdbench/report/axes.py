"""Axes of charts: where a value lies, which values are marked, and how numbers are written beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

_UNITS = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_LOG_FROM = 4.0  # ratio of the largest to the smallest value from which on an axis of costs is logarithmic


class Axis(NamedTuple):
    """A scale from values to pixels."""

    low: float
    high: float
    start: float  # pixel of `low`
    end: float  # pixel of `high`
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The pixel of a value; values outside lie on the nearer end."""
        value = min(max(value, self.low), self.high)
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def score_axis(values: Sequence[float], start: float, end: float, marks: int = 4) -> Axis:
    """A linear axis with some air around the values."""
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - air, high + air, start, end, False, round_numbers(low - air, high + air, marks))


def cost_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Logarithmic where all values are positive and far apart, linear otherwise."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOG_FROM:
        edge = (high / low) ** 0.07
        return Axis(low / edge, high * edge, start, end, True, _round_powers(low / edge, high * edge))
    return score_axis([*values, 0.0] if low < 0.5 * high else values, start, end)


def round_numbers(low: float, high: float, count: int = 4) -> tuple[float, ...]:
    """About `count` round numbers between two: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12) for index in range(first, last + 1))


def _round_powers(low: float, high: float) -> tuple[float, ...]:
    """1, 2 and 5 times powers of ten; fewer where these would crowd."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = tuple(factor * 10.0 ** power for power in powers for factor in factors
                      if low <= factor * 10.0 ** power <= high)
        if len(ticks) <= 6:
            return ticks
    return ticks[::math.ceil(len(ticks) / 6)]


def short(value: float) -> str:
    """A number in few signs: 40k, 1.2T, 0.003."""
    size = abs(value)
    for unit, letter in _UNITS:
        if size >= unit:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"
