"""The cliff chain: its tables, its teacher, and what errors cost in it, exactly and as evaluation measures them."""

from __future__ import annotations

import math
from statistics import fmean, stdev

import numpy as np
import pytest
import torch

from opdbench.rl.table import TablePolicy
from opdbench.rl.world import evaluate, fresh_student
from opdbench.tasks.cliff_chain import ON, PATH, CliffChain


def task(**params: int) -> CliffChain:
    return CliffChain(params=CliffChain.Params(**params))


def cost(chain: CliffChain, policy: TablePolicy) -> float:
    """Expected cost of one episode, by dynamic programming."""
    p_sa, next_sa = policy.table.detach().double().softmax(-1).numpy(), chain.cliff.next_sa
    cost_sa = 1.0 - np.outer(np.arange(len(next_sa)) == PATH, np.ones(p_sa.shape[1])) * (next_sa == PATH)
    value_s = np.zeros(len(next_sa))
    for _ in range(chain.params.length):
        value_s = (p_sa * (cost_sa + value_s[next_sa])).sum(1)
    return float(value_s[PATH])


def erring(chain: CliffChain, error: float, *, climbs: bool) -> TablePolicy:
    """Errs with this probability on the path; below it climbs like the teacher, or has learnt nothing."""
    teacher = chain.exact_teacher()
    assert isinstance(teacher, TablePolicy)
    logits_sa = teacher.table.detach().double() if climbs else torch.zeros(teacher.table.shape, dtype=torch.float64)
    p_a = np.full(logits_sa.shape[1], error / 3)
    p_a[ON] = 1 - error
    logits_sa[PATH] = torch.from_numpy(np.log(p_a))
    return TablePolicy(logits_sa)


def test_the_teacher_never_falls_and_climbs_back_from_the_bottom() -> None:
    chain = task(length=40, depth=5)
    teacher = chain.exact_teacher()
    assert isinstance(teacher, TablePolicy) and cost(chain, teacher) < 1e-9
    state, steps = 1, 0
    while state != PATH:
        state, reward, ended = chain.cliff.step(state, int(teacher.table[state].argmax()), np.zeros(2))
        steps += 1
        assert reward == -1 and not ended
    assert steps == 5


@pytest.mark.parametrize(("climbs", "slope"), [(False, 2), (True, 1)])
def test_r1_an_error_costs_the_rest_of_the_episode_or_the_way_back(climbs: bool, slope: int) -> None:
    """Rare errors: the square of the length for who cannot climb, the length itself for who can."""
    costs = [cost(chain := task(length=length, depth=20), erring(chain, 1e-7, climbs=climbs)) for length in (400, 800)]
    assert math.log2(costs[1] / costs[0]) == pytest.approx(slope, abs=0.05)
    if climbs:
        assert costs[1] == pytest.approx(1e-7 * 800 * 21, rel=0.02)


def test_the_environment_pays_what_the_tables_say() -> None:
    """The mean return of 400 episodes is the exact one, within four standard errors; all are of the stated length."""
    chain = task(length=30, depth=3)
    policy = erring(chain, 0.05, climbs=True)
    outcomes = evaluate(chain, policy, mode="sampled", n=400)
    scores = [outcome.score for outcome in outcomes]
    assert abs(fmean(scores) + cost(chain, policy)) < 4 * stdev(scores) / 20
    assert {outcome.length for outcome in outcomes} == {30}


def test_length_and_depth_are_part_of_the_problem() -> None:
    assert len({task(length=length, depth=depth).checksum() for length in (32, 64) for depth in (3, 5)}) == 4
    assert isinstance(fresh_student(task(), 0), TablePolicy)
