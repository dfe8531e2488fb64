"""Scores of a whole test set that are no mean over its problems, from additive statistics that every outcome carries.

A grader puts them into its scores under names that begin with `sum.`; their sums over problems decide the figure, so
that a record can be checked, and resampled, from its raw outcomes alone: no references, no library, no task.

- `sum.N.hits` and `sum.N.of`: the ratio N, of sums.
- `sum.bleu.*`: BLEU (Papineni et al. 2002) as sacreBLEU computes it (Post 2018): 4-grams, exponential smoothing.
- `sum.chrf.*`: chrF2 (Popović 2015): character 1- to 6-grams, recall weighs four times precision.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from opdbench.stats import Interval

PREFIX = "sum."
RESAMPLES = 1000
SEED = 12345  # sacreBLEU's, so that its resamples are ours
BLEU_ORDERS = range(1, 5)
CHRF_ORDERS = range(1, 7)
_CHRF_BETA = 2.0


def figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Every corpus figure that the sums allow, by name."""
    found = {}
    for name in sums:
        if name.endswith(".hits"):
            ratio = name.removeprefix(PREFIX).removesuffix(".hits")
            found[ratio] = sums[name] / sums[f"{PREFIX}{ratio}.of"] if sums[f"{PREFIX}{ratio}.of"] else 0.0
    if f"{PREFIX}bleu.written" in sums:
        found["bleu"] = bleu(sums)
    if f"{PREFIX}chrf.match1" in sums:
        found["chrf"] = chrf(sums)
    return found


def total(extras: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sums over problems of all additive statistics."""
    return {name: math.fsum(extra[name] for extra in extras) for name in extras[0] if name.startswith(PREFIX)}


def interval(extras: Sequence[Mapping[str, float]], figure: str) -> Interval:
    """A corpus figure and its 95% percentile bootstrap over problems: 1,000 resamples, always the same ones."""
    names = list(total(extras))
    value_ek = np.array([[extra[name] for name in names] for extra in extras])
    index_re = np.random.default_rng(SEED).choice(len(extras), size=(RESAMPLES, len(extras)), replace=True)
    resampled = sorted(figures(dict(zip(names, value_ek[index_e].sum(0).tolist(), strict=True)))[figure]
                       for index_e in index_re)
    tail = RESAMPLES // 40
    return Interval(figures(total(extras))[figure], resampled[tail], resampled[RESAMPLES - 1 - tail], "bootstrap")


def bleu(sums: Mapping[str, float]) -> float:
    """BLEU in percent from `sum.bleu.{match,of}{1..4}` (n-grams that match, and all), `.written`, `.reference` (words).

    An order without a match counts 1/2 a match, the next such order 1/4, and so on.
    """
    written, reference = sums["sum.bleu.written"], sums["sum.bleu.reference"]
    matches = [sums[f"sum.bleu.match{n}"] for n in BLEU_ORDERS]
    totals = [sums[f"sum.bleu.of{n}"] for n in BLEU_ORDERS]
    if not any(matches) or not all(totals):
        return 0.0
    log_precision, smallest = 0.0, 1.0
    for match, of in zip(matches, totals, strict=True):
        if not match:
            smallest /= 2
        log_precision += math.log((match or smallest) / of) / len(matches)
    brevity = min(0.0, 1 - reference / written)
    return 100 * math.exp(brevity + log_precision)


def chrf(sums: Mapping[str, float]) -> float:
    """chrF2 in percent from `sum.chrf.{written,reference,match}{1..6}`; orders that either side lacks do not count."""
    precisions, recalls = [], []
    for n in CHRF_ORDERS:
        written, reference = sums[f"sum.chrf.written{n}"], sums[f"sum.chrf.reference{n}"]
        if written and reference:
            precisions.append(sums[f"sum.chrf.match{n}"] / written)
            recalls.append(sums[f"sum.chrf.match{n}"] / reference)
    if not any(precisions):
        return 0.0
    precision, recall, factor = sum(precisions) / len(precisions), sum(recalls) / len(recalls), _CHRF_BETA**2
    return 100 * (1 + factor) * precision * recall / (factor * precision + recall)
