"""What tasks that are learnt one after another do to each other.

Every figure is a function of R, the score R_kj on task j when the first k tasks have been learnt, k = 0 to K: row 0 is
the student as it starts, row K as it ends. Tasks are learnt in the order of the columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

Scores = Sequence[Sequence[float]]  # [K + 1, K]


def forgetting(score_kj: Scores) -> float:
    """1/(K-1) sum_{j<K} ( max_{1 <= k < K} R_kj - R_Kj ): what the best of the earlier students had beyond the last one
    (Chaudhry et al., ECCV 2018, arXiv 1801.10112, section 3, "forgetting measure"); below 0 where tasks got better."""
    n = _tasks(score_kj)
    return fmean(max(score_kj[k][j] for k in range(1, n)) - score_kj[n][j] for j in range(n - 1))


def backward_transfer(score_kj: Scores) -> float:
    """1/(K-1) sum_{j<K} ( R_Kj - R_jj ): what came after a task, for that task (Lopez-Paz and Ranzato, NeurIPS 2017,
    arXiv 1706.08840, section 2, BWT)."""
    n = _tasks(score_kj)
    return fmean(score_kj[n][j] - score_kj[j + 1][j] for j in range(n - 1))


def forward_transfer(score_kj: Scores) -> float:
    """1/(K-1) sum_{j>1} ( R_{j-1,j} - R_0j ): what came before a task, for that task before it was learnt (Lopez-Paz
    and Ranzato 2017, FWT, whose b_j is the score at random initialisation; here that of the student that started)."""
    n = _tasks(score_kj)
    return fmean(score_kj[j][j] - score_kj[0][j] for j in range(1, n))


def _tasks(score_kj: Scores) -> int:
    n = len(score_kj) - 1
    if n < 2 or any(len(row) != n for row in score_kj):
        raise ValueError(f"{len(score_kj)} rows of {sorted({len(row) for row in score_kj})} scores are not those of "
                         "two tasks or more, from before the first to after the last")
    return n
