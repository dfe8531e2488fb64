"""Statistics of runs: pure functions of arrays, no files and no names of methods.

Glossary: S seeds, E examples (test problems or episodes); a matrix `score_se` holds a score for each seed and example.
Runs vary by seed and by example, and the question is always about *new* seeds and *new* examples.
"""

from __future__ import annotations

from opdbench.stats.aggregate import (
    bootstrap,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)
from opdbench.stats.compare import detectable, holm, letters, mean_ratio
from opdbench.stats.crossed import Estimate, crossed, each, fresh, gap_recovered, mean_of, mean_score, mean_scores
from opdbench.stats.single import Interval, interval, pass_at_k, student_t, wilson

__all__ = [
    "Estimate", "Interval", "bootstrap", "crossed", "detectable", "each", "fresh", "gap_recovered", "holm",
    "interquartile_mean", "interval", "letters", "mean_of", "mean_ratio", "mean_score", "mean_scores", "optimality_gap",
    "pass_at_k", "performance_profile",
    "probability_of_improvement", "student_t", "wilson",
]
