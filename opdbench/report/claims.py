"""Claims of papers, judged by paired comparisons of records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from opdbench import stats
from opdbench.report.entries import Entry, difference
from opdbench.report.evidence import Evidence
from opdbench.schema.paper import Claim, Experiment
from opdbench.stats import Estimate, Interval

Verdict = Literal["holds", "does not hold", "cannot be told apart", "not run"]
GAP = "gap"
ALPHA = 0.05


class Judged(NamedTuple):
    """One experiment: its paired difference (or ratio of costs), and what follows."""

    experiment: Experiment
    verdict: Verdict
    effect: Interval | None  # difference in gap recovered, or ratio of costs
    estimate: Estimate | None  # of the difference, or of the ratio's logarithm
    seeds: int
    reason: str  # why it was not run


class Finding(NamedTuple):
    """A claim with its verdict: of the mean over its experiments."""

    claim: Claim
    verdict: Verdict
    effect: Interval | None
    experiments: Sequence[Judged]
    reason: str  # why it was not run, or why ours may disagree


def judge(claim: Claim, evidence: Evidence) -> Finding:
    """The verdict on a claim: the mean over tasks of the paired effects, at 95%; tasks not yet run do not count."""
    if claim.not_run:
        return Finding(claim, "not run", None, (), claim.not_run)
    judged = [_experiment(claim, experiment, evidence) for experiment in claim.experiments]
    estimates = [each.estimate for each in judged if each.estimate is not None]
    if not estimates:
        return Finding(claim, "not run", None, judged, "; ".join(dict.fromkeys(each.reason for each in judged)))
    overall = stats.mean_of(estimates)
    verdict = _verdict(claim, overall)
    return Finding(claim, verdict, _effect(claim, overall), judged, "" if verdict == "holds" else claim.if_not)


def command(experiment: Experiment) -> str:
    """What makes an experiment's records."""
    task = experiment.task.partition("@")[0]
    first = f"opdbench run suite:{experiment.suite} --only {task}/{experiment.first}"
    if experiment.second is None:
        return first
    if experiment.second_suite is None:
        return f"{first} --only {task}/{experiment.second}"
    return f"{first} && opdbench run suite:{experiment.second_suite} --only {task}/{experiment.second}"


def _experiment(claim: Claim, experiment: Experiment, evidence: Evidence) -> Judged:
    first = evidence.entry(experiment.suite, experiment.task, experiment.first)
    second = first if experiment.second is None else evidence.entry(
        experiment.second_suite or experiment.suite, experiment.task, experiment.second)
    if first is None or second is None:
        return Judged(experiment, "not run", None, None, 0, f"no records; {command(experiment)}")
    if experiment.second is None:
        estimate = _above(first, claim.level)
    else:
        estimate = (difference(first, second, "mean") if claim.measure == GAP
                    else _log_ratio(first, second, claim.measure))
    if estimate is None or not math.isfinite(estimate.error):
        return Judged(experiment, "not run", None, None, 0, "fewer than two common seeds, or no gap to be measured")
    return Judged(experiment, _verdict(claim, estimate), _effect(claim, estimate), estimate,
                  min(first.seeds, second.seeds), "")


def _above(entry: Entry, level: float) -> Estimate | None:
    gap = entry.gaps.get("mean")
    return None if gap is None else gap.estimate._replace(mean=gap.estimate.mean - level)


def _log_ratio(first: Entry, second: Entry, cost: str) -> Estimate | None:
    """Logarithm of the ratio of two costs, paired over seeds; None where a cost is zero."""
    costs = first.seed_costs.get(cost, {}), second.seed_costs.get(cost, {})
    pairs = [(costs[0][seed], costs[1][seed]) for seed in sorted(costs[0].keys() & costs[1].keys())]
    if len(pairs) < 2 or any(min(pair) <= 0 for pair in pairs):
        return None
    log_s = np.array([math.log(a / b) for a, b in pairs])
    return stats.fresh(log_s[:, None])


def _effect(claim: Claim, estimate: Estimate) -> Interval:
    found = estimate.interval()
    if claim.measure == GAP:
        return found
    return Interval(math.exp(found.mean), math.exp(found.low), math.exp(found.high), "t of the logarithm")


def _verdict(claim: Claim, estimate: Estimate) -> Verdict:
    if estimate.p_value() >= ALPHA:
        return "cannot be told apart"
    return "holds" if (estimate.mean > 0) == (claim.expect == "higher") else "does not hold"
