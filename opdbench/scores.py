"""Outcomes and the scores made of them: what a run reports, and what everyone who reads its record recomputes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from opdbench import corpus, stats
from opdbench.schema.record import Score


class Outcome(NamedTuple):
    """One evaluated problem or episode: what is stored, and what a score is recomputed from."""

    id: str
    mode: str  # "greedy" or "sampled"
    score: float  # the task's metric
    length: int  # tokens or steps
    truncated: bool
    output: str | None  # the completion's text; None for control tasks
    extra: dict[str, float]  # further scores by name


def scores(outcomes: Sequence[Outcome], metric: str) -> dict[str, Score]:
    """Mean, interval and lengths by mode, from raw outcomes; this is what `regrade` recomputes.

    Several outcomes of one id are samples of one problem. The interval is over problems then (their mean scores are
    what is independent: Miller 2024, arXiv:2411.00640), and scores of 0 and 1 also give pass@k. A metric that is no
    mean over problems, and further such figures, come from `opdbench.corpus`.
    """
    found = {}
    for mode in dict.fromkeys(outcome.mode for outcome in outcomes):
        of_mode = [outcome for outcome in outcomes if outcome.mode == mode]
        problems = _by_problem(of_mode)
        extras = {name: fmean(outcome.extra[name] for outcome in of_mode) for name in of_mode[0].extra
                  if not name.startswith(corpus.PREFIX)}
        figures = corpus.figures(corpus.total([outcome.extra for outcome in of_mode]))
        mean = (stats.interval([_mean(samples) for samples in problems]) if metric not in figures
                else corpus.interval(_sums_by_problem(of_mode), metric))
        extras |= {name: value for name, value in figures.items() if name != metric}
        found[mode] = Score(metric=metric, mean=mean.mean, low=mean.low, high=mean.high, interval=mean.kind,
                            n=len(problems), length=fmean([outcome.length for outcome in of_mode]),
                            truncated=fmean([outcome.truncated for outcome in of_mode]),
                            extra={**extras, **_pass_at(problems)})
    return found


def _mean(samples: Sequence[float]) -> float:
    return samples[0] if len(samples) == 1 else fmean(samples)  # most problems have one


def _by_problem(outcomes: Sequence[Outcome]) -> list[list[float]]:
    """The scores of every problem's samples."""
    problems: dict[str, list[float]] = {}
    for outcome in outcomes:
        problems.setdefault(outcome.id, []).append(outcome.score)
    return list(problems.values())


def _sums_by_problem(outcomes: Sequence[Outcome]) -> list[dict[str, float]]:
    """The additive statistics of every problem, summed over its samples."""
    problems: dict[str, list[dict[str, float]]] = {}
    for outcome in outcomes:
        problems.setdefault(outcome.id, []).append(outcome.extra)
    return [corpus.total(extras) for extras in problems.values()]


def _pass_at(problems: Sequence[Sequence[float]]) -> dict[str, float]:
    """pass@k for k = 2, 4, 8, ... up to the number of samples a problem; nothing for one sample, or graded scores."""
    n = min(len(samples) for samples in problems)
    if n == 1 or any(score not in (0, 1) for samples in problems for score in samples):
        return {}
    sizes = {*(2 ** power for power in range(1, n.bit_length())), n}
    return {f"pass@{k}": fmean(stats.pass_at_k(len(samples), round(sum(samples)), k) for samples in problems)
            for k in sorted(sizes)}
