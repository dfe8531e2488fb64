"""Estimators, advantages and policy gradients against sums over all actions and loops by hand, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opdbench import advantages, policy_gradient
from opdbench.distributions import Categorical
from opdbench.divergences import forward_kl, reverse_kl
from opdbench.estimators import k1, k2, k3
from tests.enumerable import leaf, near, random_logits

ACTIONS = torch.arange(5)


def sides() -> tuple[Tensor, Categorical, Categorical]:
    """The student's logits (one row for each of 5 actions, all rows equal), the student and the teacher."""
    logits = leaf(1, 5, seed=2)
    student = Categorical(logits.expand(5, 5))
    return logits, student, Categorical(random_logits(1, 5, seed=1).expand(5, 5))


def slope(value: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def test_l4_means_of_the_estimators_over_all_actions() -> None:
    _, student, teacher = sides()
    logq, logp, q = student.logp(ACTIONS), teacher.logp(ACTIONS), student.p_na[0]
    exact = reverse_kl(teacher, student)[0]
    assert near((q * k1(logq, logp)).sum(), exact)
    assert near((q * k3(logq, logp)).sum(), exact) and (k3(logq, logp) >= 0).all()
    assert not near((q * k2(logq, logp)).sum(), exact, 1e-2)


def test_l5_gradients_of_the_estimators_over_all_actions() -> None:
    logits, student, teacher = sides()
    logq, logp, q = student.logp(ACTIONS), teacher.logp(ACTIONS), student.p_na[0].detach()
    assert near(slope((q * k1(logq, logp)).sum(), logits), 0.0)
    assert near(slope((q * k2(logq, logp)).sum(), logits), slope(reverse_kl(teacher, student)[0], logits))
    assert near(slope((q * k3(logq, logp)).sum(), logits), slope(forward_kl(teacher, student)[0], logits))


def test_every_policy_gradient_is_one_gradient_on_policy_and_minus_the_log_ratio_makes_it_the_reverse_kls() -> None:
    logits, student, teacher = sides()
    logq, old, q = student.logp(ACTIONS), student.logp(ACTIONS).detach(), student.p_na[0].detach()
    advantage = -k1(logq, teacher.logp(ACTIONS))  # has a graph: the losses must cut it
    exact = slope(reverse_kl(teacher, student)[0], logits)
    for value_n in (policy_gradient.reinforce(logq, advantage),
                    policy_gradient.importance_sampled(logq, old, advantage),
                    policy_gradient.ppo_clip(logq, old, advantage, 0.2, 0.2),
                    policy_gradient.grpo(logq, old, advantage, low=0.2, high=0.2,
                                         reference_logp_n=teacher.logp(ACTIONS), kl_coefficient=0.0)):
        assert near(slope((q * value_n).sum(), logits), exact)


def test_importance_sampling_is_unbiased_for_stale_samples() -> None:
    logits, student, _ = sides()
    mu = Categorical(random_logits(1, 5, seed=7).expand(5, 5))
    advantage, logq = random_logits(5, seed=8), student.logp(ACTIONS)
    stale = (mu.p_na[0] * policy_gradient.importance_sampled(logq, mu.logp(ACTIONS), advantage)).sum()
    assert near(stale, -(student.p_na[0] * advantage).sum())
    assert near(slope(stale, logits), slope(-(student.p_na[0] * advantage).sum(), logits))


@pytest.mark.parametrize(("ratio", "advantage", "moves"), [
    (1.3, 1.0, False), (1.3, -1.0, True), (0.7, 1.0, True), (0.7, -1.0, False), (1.1, 1.0, True), (0.9, -1.0, True)])
def test_ppo_stops_pushing_beyond_the_limit_and_only_outwards(ratio: float, advantage: float, moves: bool) -> None:
    logp = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    value = policy_gradient.ppo_clip(logp, torch.zeros(1), torch.tensor([advantage]), 0.2, 0.2)
    assert near(value, -advantage * (ratio if moves else (1.2 if ratio > 1 else 0.8)))
    assert near(slope(value.sum(), logp), -advantage * ratio if moves else 0.0)


def test_the_reference_penalty_of_grpo_is_k3() -> None:
    _, student, reference = sides()
    logq, logr, zero = student.logp(ACTIONS), reference.logp(ACTIONS), torch.zeros(5)
    value_n = policy_gradient.grpo(logq, logq, zero, low=0.2, high=0.2, reference_logp_n=logr, kl_coefficient=0.04)
    assert near(value_n, 0.04 * k3(logq, logr))


def test_r11_the_expectation_over_all_actions_has_the_samples_mean_and_less_variance() -> None:
    """Rao and Blackwell, over 8 equally likely states of 1,000 actions: what sampling an action adds is what varies
    within states."""
    n_states, n_actions = 8, 1000
    logits = leaf(n_states, n_actions, seed=2)
    student, teacher = Categorical(logits), Categorical(random_logits(n_states, n_actions, seed=1))
    (expected_sa,) = torch.autograd.grad(reverse_kl(teacher, student).sum(), logits)
    q_sa, advantage_sa = student.p_na.detach(), (teacher.logp_na - student.logp_na).detach()
    # d log q(a) / d logits = 1_a - q, so a sample's gradient is -A_a (1_a - q), and its squared length:
    squared_sa = advantage_sa**2 * (1 - 2 * q_sa + q_sa.square().sum(-1, keepdim=True))
    sampled_sa = -(q_sa * advantage_sa) + q_sa * (q_sa * advantage_sa).sum(-1, keepdim=True)
    assert near(sampled_sa, expected_sa)
    within = (q_sa * squared_sa).sum(-1) - expected_sa.square().sum(-1)
    assert (within > 0).all() and float(within.mean()) > float(expected_sa.square().sum(-1).mean())


def test_r12_the_ratio_is_one_in_a_first_pass_and_weighting_a_kl_by_it_changes_no_gradient() -> None:
    """Proximal policy distillation: E_a[rho(a) KL] at the sampler itself, where nothing is clipped."""
    logits, student, teacher = sides()
    ratio_a = (student.logp(ACTIONS) - student.logp(ACTIONS).detach()).exp()
    assert near(ratio_a.detach(), 1.0)
    distance = reverse_kl(Categorical(teacher.logits_na[:1]), Categorical(logits))[0]
    weighted = (student.p_na[0].detach() * ratio_a * distance).sum()
    assert near(weighted, distance) and near(slope(weighted, logits), slope(distance, logits))
    assert float(slope(distance, logits).norm()) > 0.1


# ---------------------------------------------------------------------------------------------------------- advantages

NAN = float("nan")
# Two trajectories: a gap that nobody chose, an episode that ends inside, and padding full of nonsense.
MASK = torch.tensor([[True, False, True, True, False], [True, True, True, True, True]])
DONE = torch.tensor([[False, False, False, True, False], [False, True, False, False, False]])
REWARD = torch.tensor([[1.0, NAN, 2.0, 4.0, NAN], [1.0, 2.0, 4.0, 8.0, 16.0]], dtype=torch.float64)


def test_reward_to_go_counts_decisions_and_stops_at_the_end_of_an_episode() -> None:
    found = advantages.reward_to_go(REWARD, MASK, DONE, discount=0.5)
    assert near(found, torch.tensor([[1 + 1 + 1, 0, 4, 4, 0], [2, 2, 4 + 4 + 4, 16, 16.0]]))
    assert near(advantages.decisions_to_go(MASK, DONE), torch.tensor([[3, 0, 2, 1, 0], [2, 1, 3, 2, 1.0]]))


def test_a_discount_of_zero_leaves_the_reward_and_of_one_the_plain_sum() -> None:
    assert near(advantages.reward_to_go(REWARD, MASK, DONE, discount=0.0), advantages.masked(REWARD, MASK))
    assert near(advantages.reward_to_go(REWARD, MASK, DONE)[0, 0], 7.0)


def test_mean_reward_to_go_with_and_without_the_steps_own_reward() -> None:
    own = advantages.mean_reward_to_go(REWARD, MASK, DONE)
    assert near(own, torch.tensor([[7 / 3, 0, 3, 4, 0], [1.5, 2, 28 / 3, 12, 16]], dtype=torch.float64))
    later = advantages.mean_reward_to_go(REWARD, MASK, DONE, after=True)
    assert near(later, torch.tensor([[3, 0, 4, 0, 0], [2, 0, 12, 16, 0.0]]))


def test_whitening_ignores_padding_and_a_batch_without_spread_has_no_advantage() -> None:
    """Trap: MiniLLM's code takes mean and variance over padding too."""
    value = torch.tensor([[1.0, NAN, 2.0, 3.0, NAN], [4.0, 5.0, 6.0, 7.0, 8.0]], dtype=torch.float64)
    found = advantages.whitened(value, MASK)
    assert near(found[MASK].mean(), 0.0) and near(found[MASK].std(correction=0), 1.0, 1e-5)
    assert near(found[~MASK], 0.0)
    longer = torch.cat([value, torch.full((2, 3), 99.0)], 1), torch.cat([MASK, torch.zeros(2, 3, dtype=torch.bool)], 1)
    assert near(advantages.whitened(*longer)[:, :5], found)
    assert near(advantages.whitened(torch.ones(2, 5), MASK), 0.0)
    assert near(advantages.whitened(value, torch.zeros_like(MASK)), 0.0)


def test_group_normalisation_is_within_groups_and_zero_where_all_are_right_or_all_wrong() -> None:
    outcome = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 3.0], dtype=torch.float64)
    group = torch.tensor([7, 7, 9, 9, 4, 4])
    found = advantages.group_normalised(outcome, group)
    assert near(found, torch.tensor([1, -1, 0, 0, -1, 1]) * 0.5**0.5, 1e-5)  # the sample deviation of two
    assert near(advantages.group_normalised(outcome, group, scale=False), torch.tensor([0.5, -0.5, 0, 0, -1.5, 1.5]))
    assert near(advantages.group_normalised(outcome, torch.arange(6)), 0.0)  # alone, nobody is better than others


def test_log_ratio_and_clipping() -> None:
    teacher, student = random_logits(2, 5, seed=1), random_logits(2, 5, seed=2)
    ratio = advantages.log_ratio(teacher, student, MASK)
    assert near(ratio[MASK], (teacher - student)[MASK]) and near(ratio[~MASK], 0.0)
    assert near(advantages.clipped(ratio, 0.5), ratio.clamp(-0.5, 0.5))
