"""Advantages over trajectories: [B, T] columns with a mask, and never a thought for what lies outside of it.

Steps are counted in decisions, not in positions: tokens of an environment or padding between two decisions neither
discount nor lengthen anything. Results are zero outside of the mask.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-6  # against division by a vanishing standard deviation


def log_ratio(teacher_logp_bt: Tensor, student_logp_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """log p - log q of the actions taken [B, T]: the reward whose sum a student maximises when it minimises the
    reverse KL between whole sequences."""
    return masked(teacher_logp_bt - student_logp_bt, mask_bt)


def masked(value_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """The values where there is a decision and 0 elsewhere, whatever was there (NaN included)."""
    return value_bt.masked_fill(~mask_bt, 0.0)


def clipped(value_bt: Tensor, limit: float) -> Tensor:
    """The values, held within -limit and limit."""
    return value_bt.clamp(-limit, limit)


def reward_to_go(reward_bt: Tensor, mask_bt: Tensor, done_bt: Tensor, *, discount: float = 1.0) -> Tensor:
    """sum_{t' >= t} discount^(t' - t) r_{t'} [B, T], up to the end of the episode that step t is in.

    Args:
        done_bt: bool; an episode ends with this step, and nothing after it is counted (a segment of a control task
            holds several).
        discount: per decision. The step's own reward has weight 1: the discount is relative, not discount^t.
    """
    reward_bt = masked(reward_bt, mask_bt)
    total_b = torch.zeros_like(reward_bt[:, 0])
    totals = []
    for step in range(reward_bt.shape[1] - 1, -1, -1):
        total_b = total_b.masked_fill(done_bt[:, step], 0.0)
        total_b = torch.where(mask_bt[:, step], reward_bt[:, step] + discount * total_b, total_b)
        totals.append(total_b)
    return masked(torch.stack(totals[::-1], 1), mask_bt)


def decisions_to_go(mask_bt: Tensor, done_bt: Tensor) -> Tensor:
    """Number [B, T] of decisions left in the episode, this one included."""
    return reward_to_go(torch.ones_like(mask_bt, dtype=torch.float64), mask_bt, done_bt)


def mean_reward_to_go(reward_bt: Tensor, mask_bt: Tensor, done_bt: Tensor, *, discount: float = 1.0,
                      after: bool = False) -> Tensor:
    """Reward-to-go divided by the number of decisions that it sums over [B, T]: without this, long sequences are
    driven to be short (Gu et al. 2024, section 2.2, length normalisation).

    Args:
        after: leave out the step's own reward and count from the next decision; 0 at an episode's last one.
    """
    total_bt = reward_to_go(reward_bt, mask_bt, done_bt, discount=discount)
    number_bt = decisions_to_go(mask_bt, done_bt)
    if after:
        total_bt, number_bt = total_bt - masked(reward_bt, mask_bt), number_bt - 1
    return masked(total_bt / number_bt.clamp(min=1), mask_bt)


def whitened(value_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the decisions of the batch; padding is not counted. Zero if there is no spread."""
    values_n = value_bt[mask_bt]
    if not len(values_n):
        return torch.zeros_like(value_bt)
    gap_bt = value_bt - values_n.mean()
    return masked(gap_bt / (values_n.std(correction=0) + EPSILON), mask_bt)


def group_normalised(outcome_b: Tensor, group_b: Tensor, *, scale: bool = True) -> Tensor:
    """(r - mean) / std over the trajectories that share a group [B]; 0 in a group whose outcomes are all equal.

    Args:
        outcome_b: one reward a trajectory.
        group_b: int64, equal for trajectories of one prompt.
        scale: divide by the standard deviation (Shao et al. 2024); False leaves it (Liu et al. 2025, "Dr. GRPO").
    """
    _, index_b = torch.unique(group_b, return_inverse=True)
    count_g = torch.zeros(int(index_b.max()) + 1, dtype=outcome_b.dtype, device=outcome_b.device)
    count_g.index_add_(0, index_b, torch.ones_like(outcome_b))
    mean_g = torch.zeros_like(count_g).index_add_(0, index_b, outcome_b) / count_g
    gap_b = outcome_b - mean_g[index_b]
    if not scale:
        return gap_b
    variance_g = torch.zeros_like(count_g).index_add_(0, index_b, gap_b.square()) / (count_g - 1).clamp(min=1)
    return gap_b / (variance_g.sqrt()[index_b] + EPSILON)


def unseen_ahead(mask_bt: Tensor, done_bt: Tensor, truncated_bt: Tensor | None = None) -> Tensor:
    """bool [B, T]: decisions after which the world goes on, and the batch does not show how: a time limit's, and the
    last one of a segment. Nothing can be bootstrapped from there.

    Args:
        truncated_bt: bool, ends that are the time limit's.
    """
    last_bt = mask_bt & (mask_bt.flip(1).cumsum(1).flip(1) == 1)
    unseen_bt = last_bt & ~done_bt
    return unseen_bt if truncated_bt is None else unseen_bt | (truncated_bt & mask_bt)


def generalised(reward_bt: Tensor, value_bt: Tensor, mask_bt: Tensor, done_bt: Tensor, unseen_bt: Tensor, *,
                discount: float, decay: float) -> Tensor:
    """Generalised advantage estimates [B, T] (Schulman et al. 2016, arXiv 1506.02438, eq. 16):

        A_t = delta_t + discount decay A_{t+1},   delta_t = r_t + discount V_{t+1} - V_t

    with V = A = 0 after an episode's end. Where the next state is unseen (`unseen_ahead`) the value stands for the
    return: A_t = 0, which is to bootstrap one step earlier.

    Args:
        decay: lambda; 1 is return minus value, 0 the one-step error.
    """
    reward_bt, value_bt = masked(reward_bt, mask_bt), masked(value_bt, mask_bt)
    next_b = advantage_b = torch.zeros_like(value_bt[:, 0])
    advantages = []
    for step in range(reward_bt.shape[1] - 1, -1, -1):
        goes_on_b = (~done_bt[:, step]).to(value_bt.dtype)
        error_b = reward_bt[:, step] + discount * next_b * goes_on_b - value_bt[:, step]
        new_b = (error_b + discount * decay * advantage_b * goes_on_b).masked_fill(unseen_bt[:, step], 0.0)
        advantage_b = torch.where(mask_bt[:, step], new_b, advantage_b)
        next_b = torch.where(mask_bt[:, step], value_bt[:, step], next_b)
        advantages.append(advantage_b)
    return masked(torch.stack(advantages[::-1], 1), mask_bt)


class Bootstraps(NamedTuple):
    """Returns over a few steps, and where the rest of each is to be estimated: G_t = return + weight V(s_at).

    Attributes:
        return_bt: discounted sum of the next rewards [B, T].
        weight_bt: discount to the power of the number of steps; 0 when the episode ended among them.
        at_bt: int64, the step of this trajectory whose state is bootstrapped from.
    """

    return_bt: Tensor
    weight_bt: Tensor
    at_bt: Tensor


def n_step_returns(reward_bt: Tensor, done_bt: Tensor, unseen_bt: Tensor, *, n: int, discount: float) -> Bootstraps:
    """Returns over `n` steps, or fewer: up to an episode's end, or to the last state that is seen. Where not even the
    next one is (`unseen_bt`) nothing is known: the return is 0 and the state bootstraps from itself.

    For segments of a control task, where every step is a decision.
    """
    horizon = reward_bt.shape[1]
    at_bt = torch.arange(horizon, device=reward_bt.device).expand_as(reward_bt).clone()
    return_bt, weight_bt = torch.zeros_like(reward_bt), torch.ones_like(reward_bt)
    going_bt = torch.ones_like(done_bt)
    for _ in range(n):
        going_bt = going_bt & ~unseen_bt.gather(1, at_bt)
        ended_bt = done_bt.gather(1, at_bt)
        return_bt = return_bt + weight_bt * reward_bt.gather(1, at_bt) * going_bt
        step_bt = torch.where(ended_bt, 0.0, discount)
        weight_bt = torch.where(going_bt, weight_bt * step_bt, weight_bt)
        going_bt = going_bt & ~ended_bt
        at_bt = at_bt + going_bt.long()
    return Bootstraps(return_bt, weight_bt, at_bt)
