"""Outcomes and the scores made of them: what a run reports, and what everyone who reads its record recomputes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from statistics import fmean
from typing import NamedTuple, TypeVar

from opdbench import corpus, stats
from opdbench.schema.record import Score

T = TypeVar("T")


class Outcome(NamedTuple):
    """One evaluated problem or episode: what is stored, and what a score is recomputed from."""

    id: str
    mode: str  # "greedy" or "sampled"
    score: float  # the task's metric
    length: int  # tokens or steps
    truncated: bool
    output: str | None  # the completion's text; None for control tasks
    extra: dict[str, float]  # further scores by name


class Columns(NamedTuple):
    """Outcomes as columns, which are checked and counted faster than one after the other; at least one."""

    id: tuple[str, ...]
    mode: tuple[str, ...]
    score: tuple[float, ...]
    length: tuple[int, ...]
    truncated: tuple[bool, ...]
    output: tuple[str | None, ...]
    extra: tuple[dict[str, float], ...]

    def by_mode(self) -> dict[str, Columns]:
        """Its modes in the order in which they are first met."""
        of_mode = {mode: [each == mode for each in self.mode] for mode in dict.fromkeys(self.mode)}
        return {mode: Columns(*(tuple(compress(column, chosen)) for column in self))  # type: ignore[arg-type]
                for mode, chosen in of_mode.items()}

    def means(self) -> dict[str, float]:
        """The mean score of every problem, over its samples where there are several."""
        found = dict(zip(self.id, self.score, strict=True))
        if len(found) < len(self.id):
            found = {name: samples[0] if len(samples) == 1 else fmean(samples)
                     for name, samples in _by_problem(self.id, self.score).items()}
        return found


def scores(outcomes: Sequence[Outcome], metric: str) -> dict[str, Score]:
    """Mean, interval and lengths by mode, from raw outcomes; this is what `regrade` recomputes.

    Several outcomes of one id are samples of one problem. The interval is over problems then (their mean scores are
    what is independent: Miller 2024, arXiv:2411.00640), and scores of 0 and 1 also give pass@k. A metric that is no
    mean over problems, and further such figures, come from `opdbench.corpus`.
    """
    columns = Columns(*zip(*outcomes, strict=True)).by_mode() if outcomes else {}
    return {mode: score(of_mode, metric) for mode, of_mode in columns.items()}


def score(outcomes: Columns, metric: str) -> Score:
    """The score of outcomes of one mode."""
    means = list(outcomes.means().values())
    extras = {name: fmean([extra[name] for extra in outcomes.extra]) for name in outcomes.extra[0]
              if not name.startswith(corpus.PREFIX)}
    figures = corpus.figures(corpus.total(outcomes.extra))
    mean = stats.interval(means) if metric not in figures else corpus.interval(_sums_by_problem(outcomes), metric)
    extras |= {name: value for name, value in figures.items() if name != metric}
    if len(means) < len(outcomes.id):
        extras |= _pass_at(list(_by_problem(outcomes.id, outcomes.score).values()))
    return Score(metric=metric, mean=mean.mean, low=mean.low, high=mean.high, interval=mean.kind, n=len(means),
                 length=fmean(outcomes.length), truncated=fmean(outcomes.truncated), extra=extras)


def _by_problem(names: Sequence[str], values: Sequence[T]) -> dict[str, list[T]]:
    """The samples of every problem."""
    problems: dict[str, list[T]] = {}
    for name, value in zip(names, values, strict=True):
        problems.setdefault(name, []).append(value)
    return problems


def _sums_by_problem(outcomes: Columns) -> list[dict[str, float]]:
    """The additive statistics of every problem, summed over its samples."""
    return [corpus.total(extras) for extras in _by_problem(outcomes.id, outcomes.extra).values()]


def _pass_at(problems: Sequence[Sequence[float]]) -> dict[str, float]:
    """pass@k for k = 2, 4, 8, ... up to the number of samples a problem; nothing for one sample, or graded scores."""
    n = min(len(samples) for samples in problems)
    if n == 1 or any(score not in (0, 1) for samples in problems for score in samples):
        return {}
    sizes = {*(2 ** power for power in range(1, n.bit_length())), n}
    return {f"pass@{k}": fmean(stats.pass_at_k(len(samples), round(sum(samples)), k) for samples in problems)
            for k in sorted(sizes)}
