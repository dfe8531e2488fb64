"""Where to learn and how much: weights and gates over the decisions of a batch.

Scores are columns [B, T] with a mask, as in `opdbench.advantages`: what lies outside of the mask is never looked at,
and is 0 or False in what comes back. A gate takes rows away (`only`), so that the loop's mean is over those that are
kept.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from opdbench.advantages import masked
from opdbench.rollouts import Rollouts, Source


def only(rollouts: Rollouts, keep_bt: Tensor) -> Rollouts:
    """The rollouts with just the rows in `keep_bt` (bool [B, T]): the other decisions are read, and not learnt from."""
    return replace(rollouts, source_bt=rollouts.source_bt.masked_fill(~keep_bt, int(Source.NOBODY)))


def mean_one(weight_bt: Tensor, mask_bt: Tensor, *, by_trajectory: bool = False) -> Tensor:
    """Weights divided by their mean over the decisions of the batch, or of each trajectory; weights that are all zero
    stay so."""
    total_b = masked(weight_bt, mask_bt).sum(1)
    number_b = mask_bt.sum(1)
    if not by_trajectory:
        total_b, number_b = total_b.sum(0, keepdim=True), number_b.sum(0, keepdim=True)
    mean_b = total_b / number_b.clamp(min=1)
    return masked(weight_bt / mean_b.where(mean_b > 0, 1.0)[:, None], mask_bt)


def quantile(value_n: Tensor, share: float) -> Tensor:
    """The value [] that `share` of the values lie below, interpolated; of a single value, that value.

    Raises:
        ValueError: there are no values.
    """
    if not len(value_n):
        raise ValueError("nothing has no quantile")
    sorted_n, place = value_n.sort().values, share * (len(value_n) - 1)
    below = int(place)
    return torch.lerp(sorted_n[below], sorted_n[min(below + 1, len(value_n) - 1)], place - below)


def within_range(value_bt: Tensor, mask_bt: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Values on a scale of 0 to 1 between their `low` and `high` quantiles over the batch's decisions, clipped there
    [B, T]; by default between the least and the greatest. 0 everywhere where the two are equal but for rounding, which
    would otherwise be stretched over the whole scale."""
    if not mask_bt.any():
        return torch.zeros_like(value_bt)
    values_n = value_bt[mask_bt]
    start, end = quantile(values_n, low), quantile(values_n, high)
    rounding = 16 * torch.finfo(values_n.dtype).eps * torch.maximum(start.abs(), end.abs())
    width = (end - start).where(end - start > rounding, torch.inf)
    return masked(((value_bt - start) / width).clamp(0, 1), mask_bt)


def top_of_batch(score_bt: Tensor, mask_bt: Tensor, share: float) -> Tensor:
    """bool [B, T]: the `share` of the batch's decisions with the largest scores, rounded up."""
    keep_bt = torch.zeros_like(mask_bt)
    if mask_bt.any():
        score_n = score_bt[mask_bt]
        keep_n = torch.zeros_like(score_n, dtype=torch.bool)
        keep_n[score_n.topk(min(len(score_n), math.ceil(share * len(score_n)))).indices] = True
        keep_bt[mask_bt] = keep_n
    return keep_bt


def top_of_trajectories(score_bt: Tensor, mask_bt: Tensor, share: float) -> Tensor:
    """bool [B, T]: the `share` of every trajectory's decisions with the largest scores, rounded down, one at least."""
    rank_bt = score_bt.masked_fill(~mask_bt, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(1)
    number_b = torch.tensor([max(1, int(share * number)) for number in mask_bt.sum(1).tolist()], device=mask_bt.device)
    return (rank_bt < number_b[:, None]) & mask_bt


def shares_within(logit_b: Tensor, group_b: Tensor) -> Tensor:
    """softmax of the logits over the trajectories that share a group [B]: the shares of a group add up to one."""
    same_bb = group_b[:, None] == group_b[None, :]
    return (logit_b - logit_b.expand(len(logit_b), -1).masked_fill(~same_bb, -torch.inf).logsumexp(1)).exp()


def window_means(value_bt: Tensor, mask_bt: Tensor, window: int) -> Tensor:
    """The mean over the last `window` decisions, this one included [B, T]; infinity where there are fewer, or none."""
    mean_bt = torch.full(mask_bt.shape, torch.inf, dtype=torch.float64, device=mask_bt.device)
    for row, mask_t in enumerate(mask_bt):
        value_n = value_bt[row][mask_t].double()
        if len(value_n) >= window:
            mean_bt[row, mask_t.nonzero()[window - 1:, 0]] = value_n.unfold(0, window, 1).mean(-1)
    return mean_bt


def before_cut(low_bt: Tensor, mask_bt: Tensor, consecutive: int) -> Tensor:
    """bool [B, T]: the decisions up to the first of `consecutive` low ones in a row, it included; all where there is no
    such row. What is not a decision neither interrupts a row nor belongs to it."""
    keep_bt = mask_bt.clone()
    for row, mask_t in enumerate(mask_bt):
        low_n = low_bt[row][mask_t]
        if len(low_n) >= consecutive:
            starts = low_n.unfold(0, consecutive, 1).all(-1).nonzero()
            if len(starts):
                keep_bt[row, mask_t.nonzero()[int(starts[0]) + 1:, 0]] = False
    return keep_bt
