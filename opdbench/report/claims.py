"""Claims of papers, judged by paired comparisons of records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, cast

import numpy as np

from opdbench import stats
from opdbench.report.entries import Array, Entry, difference, difference_of
from opdbench.report.evidence import Evidence
from opdbench.report.runs import Study
from opdbench.schema.paper import Claim, Experiment
from opdbench.schema.record import Phase
from opdbench.stats import Estimate, Interval

Verdict = Literal["holds", "does not hold", "cannot be told apart", "not run"]
GAP, SCORE, REGRET = "gap", "score", "regret"
ALPHA = 0.05


class Judged(NamedTuple):
    """One experiment: its paired difference (or ratio of costs), and what follows."""

    experiment: Experiment
    verdict: Verdict
    effect: Interval | None  # difference in gap recovered or score, or ratio
    estimate: Estimate | None  # of the difference, or of the ratio's logarithm; above the claim's level
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
    if experiment.recipe:
        return f"opdbench run recipe:{experiment.recipe} --seeds 0:5"
    task = experiment.task.partition("@")[0]
    first = f"opdbench run suite:{experiment.suite} --only {task}/{experiment.first}"
    if experiment.second is None:
        return first
    if experiment.second_suite is None:
        return f"{first} --only {task}/{experiment.second}"
    return f"{first} && opdbench run suite:{experiment.second_suite} --only {task}/{experiment.second}"


def _experiment(claim: Claim, experiment: Experiment, evidence: Evidence) -> Judged:
    first = _entry(experiment, experiment.first, experiment.suite, evidence)
    second = first if experiment.second is None else _entry(
        experiment, experiment.second, experiment.second_suite or experiment.suite, evidence)
    if first is None or second is None:
        return Judged(experiment, "not run", None, None, 0, f"no records; {command(experiment)}")
    estimate = _compared(claim, experiment, first, second)
    if estimate is None or not math.isfinite(estimate.error):
        return Judged(experiment, "not run", None, None, 0, "fewer than two common seeds, or no gap to be measured")
    return Judged(experiment, _verdict(claim, estimate), _effect(claim, estimate), estimate,
                  min(first.seeds, second.seeds), "")


def _entry(experiment: Experiment, name: str, suite: str, evidence: Evidence) -> Entry | None:
    if experiment.recipe:
        return evidence.stage(experiment.recipe, experiment.task, name.partition("/")[0])
    return evidence.entry(suite, experiment.task, name)


def _compared(claim: Claim, experiment: Experiment, first: Entry, second: Entry) -> Estimate | None:
    """The experiment's effect above the claim's level."""
    if experiment.second is None:
        return _above(first, claim.mode, claim.level or 0.0)
    if claim.measure == GAP:
        return difference(first, second, claim.mode)
    if claim.measure == SCORE:
        return _score_difference(experiment, first, second, claim.mode)
    amounts = [_regrets(entry, claim.mode) if claim.measure == REGRET else entry.seed_costs.get(claim.measure, {})
               for entry in (first, second)]
    return _log_ratio(amounts[0], amounts[1], claim.level or 1.0)


def _above(entry: Entry, mode: str, level: float) -> Estimate | None:
    gap = entry.gaps.get(mode)
    return None if gap is None else gap.estimate._replace(mean=gap.estimate.mean - level)


def _score_difference(experiment: Experiment, first: Entry, second: Entry, mode: str) -> Estimate | None:
    assert first.study is not None and second.study is not None and experiment.second is not None
    scores = [_score_se(study, cast(Phase, name.partition("/")[2] or "after"), mode)
              for study, name in ((first.study, experiment.first), (second.study, experiment.second))]
    if scores[0] is None or scores[1] is None:
        return None
    return difference_of(first.study, scores[0], second.study, scores[1])


def _regrets(entry: Entry, mode: str) -> dict[int, float]:
    """By seed: the teacher's score minus the score after."""
    assert entry.study is not None
    phases = [_score_se(entry.study, phase, mode) for phase in cast(tuple[Phase, ...], ("teacher", "after"))]
    if phases[0] is None or phases[1] is None:
        return {}
    regret_s = phases[0].mean(1) - phases[1].mean(1)
    return dict(zip(entry.study.seeds, regret_s.tolist(), strict=True))


def _score_se(study: Study, phase: Phase, mode: str) -> Array | None:
    """Scores [S, E] of a phase; None where it was not scored in the mode."""
    found = [study.score_se.get((phase, name)) for name in (study.modes if mode == "mean" else (mode,))]
    return None if any(score_se is None for score_se in found) else np.mean(np.array(found), axis=0)


def _log_ratio(first: Mapping[int, float], second: Mapping[int, float], level: float) -> Estimate | None:
    """Logarithm of the ratio of two amounts by seed, over that of the level, paired over seeds; None where an amount is
    not positive."""
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    if len(pairs) < 2 or any(min(pair) <= 0 for pair in pairs):
        return None
    log_s = np.array([math.log(a / b / level) for a, b in pairs])
    return stats.fresh(log_s[:, None])


def _effect(claim: Claim, estimate: Estimate) -> Interval:
    found = estimate.interval()
    if claim.measure in (GAP, SCORE):
        return found
    mean, low, high = ((claim.level or 1.0) * math.exp(bound) for bound in found[:3])
    return Interval(mean, low, high, "t of the logarithm")


def _verdict(claim: Claim, estimate: Estimate) -> Verdict:
    if estimate.p_value() >= ALPHA:
        return "cannot be told apart"
    return "holds" if (estimate.mean > 0) == (claim.expect == "higher") else "does not hold"
