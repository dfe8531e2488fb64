"""Random grid worlds: the exact tables against what the environment does, the teacher against dynamic programming."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch

from opdbench.errors import UserError
from opdbench.rl.load import load_policy
from opdbench.rl.mdp import boltzmann
from opdbench.rl.table import TablePolicy
from opdbench.rl.world import evaluate, fresh_student
from opdbench.tasks.grid_world import DISCOUNT, GridWorld, random_grid

SOFTNESS = GridWorld.Params().softness


def task(**params: object) -> GridWorld:
    return GridWorld(params=GridWorld.Params(**params))


def probabilities(policy: TablePolicy) -> np.ndarray:
    return policy.table.detach().double().softmax(-1).numpy()


def test_the_tables_are_what_the_environment_does() -> None:
    """The mean return of 300 episodes is the exact one, within four standard errors."""
    small = task(size=7, grid=3)
    teacher = small.exact_teacher()
    returns = [outcome.score for outcome in evaluate(small, teacher, mode="sampled", n=300)]
    exact = small.grid.mdp().expected_return(probabilities(teacher))
    assert abs(fmean(returns) - exact) < 4 * stdev(returns) / len(returns) ** 0.5
    uniform = small.grid.mdp().expected_return(probabilities(fresh_student(small, 0)))
    assert exact > uniform + 2


@pytest.mark.parametrize("number", range(3))
def test_the_teachers_values_solve_bellmans_equations(number: int) -> None:
    grid = task(grid=number, size=12)
    mdp, teacher = grid.grid.mdp(), grid.exact_teacher()
    q_sa = mdp.optimal_action_values(DISCOUNT)
    assert np.abs(q_sa - mdp.action_values(q_sa.max(1), DISCOUNT)).max() < 1e-9
    assert np.abs(probabilities(teacher) - boltzmann(q_sa, SOFTNESS)).max() < 1e-4
    value_s = mdp.values(boltzmann(q_sa, SOFTNESS), DISCOUNT)
    assert np.abs(teacher.value_s.numpy() - value_s).max() < 1e-4 and (value_s <= q_sa.max(1) + 1e-9).all()
    # An episode visits as many states as it has steps: 1 / 0.01 of them, or fewer where a goal ends it.
    assert 1 < mdp.visits(probabilities(teacher)).sum() < 100


def test_r8_one_step_of_improvement_on_a_teachers_values_is_at_least_the_teacher_everywhere() -> None:
    """Greedy on r + gamma V_T, of a teacher that is wrong in half of the cells: Proposition 3's policy."""
    grid = task(corrupted=0.5, size=12)
    mdp, teacher = grid.grid.mdp(), grid.exact_teacher()
    policy_sa = probabilities(teacher)
    value_s = mdp.values(policy_sa, DISCOUNT)
    greedy_sa = np.eye(4)[mdp.action_values(value_s, DISCOUNT).argmax(1)]
    better_s = mdp.values(greedy_sa, DISCOUNT)
    assert (better_s >= value_s - 1e-9).all() and (better_s > value_s + 0.1).any()
    assert mdp.expected_return(policy_sa) < mdp.expected_return(probabilities(task(size=12).exact_teacher())) - 0.1


def test_every_number_is_another_grid_and_has_a_goal() -> None:
    grids = [random_grid(number, size=5, noise=0.1) for number in range(300)]
    assert len({grid.next_sa.tobytes() + grid.reward_s.tobytes() for grid in grids}) > 290
    assert all((grid.reward_s > 0).any() and not grid.end_s[grid.start] for grid in grids)
    assert task(grid=1).checksum() == task(grid=1).checksum() != task(grid=2).checksum()


def test_a_table_is_read_back_and_fits_its_task_only(tmp_path: Path) -> None:
    teacher = task(size=5).exact_teacher()
    assert isinstance(teacher, TablePolicy)
    teacher.save(tmp_path / "table")
    again = load_policy(tmp_path / "table")
    assert isinstance(again, TablePolicy) and torch.equal(again.table, teacher.table)
    assert again.value_s is not None and torch.equal(again.value_s, teacher.value_s)
    with pytest.raises(UserError, match="table of 25 states"):
        evaluate(task(size=6), again, mode="greedy", n=1)
    weights = tmp_path / "table" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(UserError, match="cannot be read"):
        load_policy(tmp_path / "table")
    with pytest.raises(UserError, match="knows no values"):
        fresh_student(task(size=5), 0).state_values(torch.eye(25))
