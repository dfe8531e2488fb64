"""Tic-tac-toe solved, searched, and learnt by expert iteration: an apprentice that never loses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from opdbench.baselines.alphazero import AlphaZero
from opdbench.baselines.exit import VISITS, ExIt
from opdbench.conformance.harness import make_rows
from opdbench.conformance.tabular import TabularTask, corridor
from opdbench.distiller import Distiller
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.policy import Policy
from opdbench.rl.search import Tree, random_playouts
from opdbench.rl.world import ControlWorld, evaluate, fresh_student
from opdbench.tasks.board_games import CELLS, Rules, TicTacToe, best_moves, code, reachable, solved
from tests.enumerable import context, flat_gradient, make, near
from tests.rl.small_tasks import CountingTask


def exact(state_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The value of every board, and no opinion about moves."""
    return np.ones((len(state_n), CELLS)), np.nanmax(solved()[code(state_n)], axis=1)


def greedy_moves(policy: Policy, board_n: np.ndarray) -> np.ndarray:
    observation_n1 = torch.from_numpy(Rules().observe(board_n))[:, None]
    with torch.no_grad():
        logits_na = policy.project(policy.features(observation_n1, torch.ones(len(board_n)).long())[:, 0])
    return logits_na.argmax(1).numpy()


def losses(policy: Policy) -> int:
    """Lost games (illegal moves among them) of the greedy policy over every game that any opponent can play, first and
    second; games that meet in one board are followed once."""
    rules, lost = Rules(), 0
    empty = np.zeros((1, CELLS), np.int8)
    boards = np.concatenate([empty, rules.step(empty.repeat(CELLS, 0), np.arange(CELLS)).state_n])
    while len(boards):
        move_n = greedy_moves(policy, boards)
        legal_n = rules.legal(boards)[np.arange(len(boards)), move_n]
        lost += int((~legal_n).sum())
        own = rules.step(boards[legal_n], move_n[legal_n])
        waiting = own.state_n[~own.done_n]
        row_k, action_k = np.nonzero(rules.legal(waiting))
        reply = rules.step(waiting[row_k], action_k)
        lost += int((reply.reward_n > 0).sum())
        boards = np.unique(reply.state_n[~reply.done_n], axis=0)
    return lost


def test_tic_tac_toe_is_the_known_game() -> None:
    """5,478 boards can come up, 958 of them ends; best play draws."""
    assert len(reachable()) == 5478 - 958
    assert (solved()[code(np.zeros((1, CELLS), np.int8))] == 0).all()
    teacher = TicTacToe().exact_teacher()
    assert losses(teacher) == 0 < losses(fresh_student(TicTacToe(), 0))
    scores = [outcome.score for outcome in evaluate(TicTacToe(), teacher, mode="sampled", n=60)]
    assert min(scores) >= 0 and sum(scores) > 10
    perfect = TicTacToe(params=TicTacToe.Params(opponent="perfect"))
    assert {outcome.score for outcome in evaluate(perfect, teacher, mode="sampled", n=20)} == {0.0}


def test_r13_with_exact_values_the_search_chooses_best_moves_in_every_board() -> None:
    boards = reachable()
    tree = Tree(Rules(), boards, exact, simulations=60, exploration=1.0)
    assert np.allclose(tree.policy_ba.sum(1), 1) and (tree.visits_bma[:, 0].sum(1) == 60).all()
    assert not tree.policy_ba[~Rules().legal(boards)].any()
    assert best_moves(boards)[np.arange(len(boards)), tree.policy_ba.argmax(1)].all()


def test_r13_a_symmetric_board_has_symmetric_targets() -> None:
    """But for a few visits in 300: of equal moves the first is tried first."""
    visits_33 = Tree(Rules(), np.zeros((1, CELLS), np.int8), exact, simulations=300, exploration=1.0
                     ).visits_bma[0, 0].reshape(3, 3)
    for turned in (visits_33[::-1], visits_33[:, ::-1], visits_33.T):
        assert np.abs(visits_33 - turned).max() <= 15


def test_without_any_knowledge_a_search_still_finds_wins_and_stops_losses() -> None:
    """A row to complete, and one to block, by random games alone."""
    rules, rng = Rules(), np.random.default_rng(0)
    boards = np.array([[1, 1, 0, -1, -1, 0, 0, 0, 0], [-1, -1, 0, 1, 0, 0, 0, 0, 1]], np.int8)

    def blind(state_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((len(state_n), CELLS)), random_playouts(rules, state_n, rng)

    tree = Tree(rules, boards, blind, simulations=200, exploration=1.5)
    assert tree.policy_ba.argmax(1).tolist() == [2, 2]
    assert tree.value_b[0] > 0.8


def test_one_player_searches_for_its_own_gain() -> None:
    """In the corridor: to the right, from everywhere."""
    model = TabularTask(tables=corridor()).model()

    def ignorant(state_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((len(state_n), 3)), 0.9 ** (4.0 - state_n)

    tree = Tree(model, np.arange(4), ignorant, simulations=60, exploration=0.5)
    assert tree.policy_ba.argmax(1).tolist() == [2] * 4


def world() -> ControlWorld:
    task = TicTacToe()
    return ControlWorld(task, fresh_student(task, 0), task.exact_teacher(), seed=0)


@pytest.mark.parametrize("target", ["tpt", "cat"])
def test_exits_gradient_is_that_of_its_cross_entropy_with_the_visit_counts(target: str) -> None:
    ctx, method = context(world(), batch=4, horizon=3), make(ExIt, simulations=20, target=target)
    ctx.begin_step()
    rollouts = method.prepare(method.collect(ctx), ctx)
    visits_na = rollouts.columns[VISITS].flatten(0, 1)
    assert near(visits_na.sum(1), 1.0, 1e-6) and not near(visits_na.max(1).values, 1.0, 0.1)
    rows = make_rows(ctx, rollouts)
    found = flat_gradient(method.loss(rows, ctx).value_n.sum(), ctx.student, retain_graph=True)
    target_na = visits_na if target == "tpt" else torch.eye(CELLS)[visits_na.argmax(1)]
    stated = -(target_na * rows.student.p_na.log()).sum()
    assert near(found, flat_gradient(stated, ctx.student), 1e-4) and float(found.norm()) > 0.01


def test_alphazeros_value_learns_outcomes_of_finished_games_only() -> None:
    ctx, method = context(world(), batch=8, horizon=4), make(AlphaZero, simulations=8, updates=1)
    ctx.begin_step()
    rollouts = method.prepare(method.collect(ctx), ctx)
    data = method.data.all()  # type: ignore[attr-defined]
    assert data.columns["known"].any() and not data.columns["known"].all()
    assert rollouts.count(1) == 32 == ctx.ledger.student_tokens
    for b in range(8):  # an outcome is the reward of the end that follows
        for t in range(4):
            ends = [i for i in range(t, 4) if rollouts.done_bt[b, i]]
            row = b * 4 + t
            assert bool(data.columns["known"][row, 0]) == bool(ends)
            if ends:
                assert float(data.columns["outcome"][row, 0]) == float(rollouts.reward_bt[b, ends[0]])


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "params"), [(ExIt, {}), (AlphaZero, {})])
def test_r13_expert_iteration_never_loses_a_game_of_tic_tac_toe(cls: type[Distiller], params: dict[str, Any]) -> None:
    """Against any player whatever, the perfect and the random one included: every game is followed."""
    here = world()
    trainer = Trainer(make(cls, **params), context(here, lr=3e-3, batch=32, horizon=8))
    before = losses(here.student)
    while losses(here.student) and trainer.ctx.step < 400:
        for _ in range(10):
            trainer.step()
    assert losses(here.student) == 0 < before
    for opponent in ("random", "perfect"):
        task = TicTacToe(params=TicTacToe.Params(opponent=opponent))
        assert min(outcome.score for outcome in evaluate(task, here.student, mode="greedy", n=100)) >= 0


def test_a_task_without_rules_is_refused() -> None:
    task = CountingTask()
    ctx = context(ControlWorld(task, fresh_student(task, 0), None, seed=0))
    with pytest.raises(UserError, match="gives no rules to plan with"):
        method = make(ExIt)
        method.prepare(method.collect(ctx), ctx)


