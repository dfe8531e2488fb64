"""Connect four: rules, a player that is exact where it says so, and planning methods on it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opdbench.baselines.alphazero import AlphaZero
from opdbench.baselines.exit import VISITS, ExIt
from opdbench.distiller import Distiller
from opdbench.loop import Trainer
from opdbench.rl.search import Tree, random_playouts
from opdbench.rl.world import ControlWorld, evaluate, fresh_student
from opdbench.tasks.connect_four import ConnectFour, Rules
from opdbench.tasks.connect_four_search import WIN, Search
from tests.enumerable import context, make


def task(**params: object) -> ConnectFour:
    return ConnectFour(params=ConnectFour.Params(**params))  # type: ignore[arg-type]


def positions(rules: Rules, *, free: int, n: int, seed: int = 0) -> np.ndarray:
    """Different boards with so many free cells, of random games that are not over by then."""
    rng = np.random.default_rng(seed)
    board_n = np.zeros((4_000, rules.rows, rules.columns), np.int8)
    for _ in range(rules.rows * rules.columns - free):
        room_na = rules.legal(board_n)
        move = rules.step(board_n, np.where(room_na, rng.random(room_na.shape), -1.0).argmax(1))
        board_n = move.state_n[~move.done_n]
    found_n = np.unique(board_n, axis=0)
    return found_n[rng.permutation(len(found_n))[:n]]


def exhaustive(rules: Rules, board_n: np.ndarray) -> np.ndarray:
    """The value [N, A] of every move by listing all that can follow; -inf where there is no room. See `Search`."""
    value_na = np.full((len(board_n), rules.n_actions), -np.inf)
    if len(board_n):
        row_k, action_k = np.nonzero(rules.legal(board_n))
        move = rules.step(board_n[row_k], action_k)
        value_k = move.reward_n * (WIN + (board_n[row_k] == 0).sum((1, 2)))
        next_u, which_k = np.unique(move.state_n[~move.done_n], axis=0, return_inverse=True)
        value_k[~move.done_n] = -exhaustive(rules, next_u).max(1)[which_k.ravel()]
        value_na[row_k, action_k] = value_k
    return value_na


@pytest.mark.parametrize(("columns", "rows", "free", "n"), [(5, 4, 10, 60), (7, 6, 10, 60)])
def test_the_player_agrees_with_exhaustive_search(columns: int, rows: int, free: int, n: int) -> None:
    """In endgames, values and all best moves; wins, draws and losses are among them."""
    rules, search = Rules(columns, rows), Search(columns, rows, depth=1, endgame=12)
    board_n = positions(rules, free=free, n=n)
    value_na = exhaustive(rules, board_n)
    assert len({*np.sign(value_na.max(1))}) == 3
    for values_a, position in zip(value_na, rules.bits(board_n), strict=True):
        assert search.value(*position) == values_a.max()
        assert set(search.best(*position)) == set(np.flatnonzero(values_a == values_a.max()))


def test_five_by_four_is_a_draw_and_begun_in_the_middle() -> None:
    """The whole game, solved (the draw is known: J. Tromp's table of sizes)."""
    search = task(board="5x4").strong()
    assert search.value(0, 0) == 0 and set(search.best(0, 0)) == {1, 2, 3}


@pytest.mark.parametrize("depth", [1, 4])
def test_a_forced_win_is_found_and_a_lost_game_is_drawn_out(depth: int) -> None:
    """Two in the bottom row with both ends open, and the move: three with both ends open, and then four."""
    rules, search = Rules(7, 6), Search(7, 6, depth=depth, endgame=0)
    board = np.zeros((6, 7), np.int8)
    board[0, [2, 3]], board[1, [2, 3]] = 1, -1
    assert set(search.best(*rules.bits(board[None])[0])) == {1, 4}
    assert search.value(*rules.bits(board[None])[0]) == WIN + 36
    late = rules.step(board[None], np.array([1])).state_n  # three, and the other's move: every one loses
    assert search.value(*rules.bits(late)[0]) == -(WIN + 36)
    threat = rules.step(late, np.array([4])).state_n
    assert search.best(*rules.bits(threat)[0]) == (0,)


def test_values_depend_on_the_position_alone() -> None:
    """Not on what was searched before, nor on which side is left and which right."""
    rules, used = Rules(7, 6), Search(7, 6, depth=4, endgame=8)
    board_n = positions(rules, free=30, n=40)
    plain, turned = rules.bits(board_n), rules.bits(board_n[:, :, ::-1])
    for position, other in zip(plain, turned, strict=True):
        fresh = Search(7, 6, depth=4, endgame=8)
        assert used.best(*position) == fresh.best(*position) and used.value(*position) == fresh.value(*position)
        assert {6 - column for column in used.best(*other)} == set(used.best(*position))


def test_the_rules_and_the_bitboards_know_the_same_wins() -> None:
    rules, search = Rules(7, 6), Search(7, 6, depth=1, endgame=0)
    wins = 0
    for board, (own, taken) in zip(board_n := positions(rules, free=24, n=300), rules.bits(board_n), strict=True):
        moves = np.flatnonzero(rules.legal(board[None])[0])
        won_k = rules.step(board[None].repeat(len(moves), 0), moves).reward_n > 0
        assert (search.value(own, taken) == WIN + 24) == won_k.any()
        if won_k.any():
            assert set(search.best(own, taken)) == set(moves[won_k])
        wins += int(won_k.sum())
    assert wins > 30


def test_a_strong_player_beats_a_random_one_and_never_itself_both_ways() -> None:
    against = task(opponent="random", depth=2)
    assert np.mean([game.score for game in evaluate(against, against.exact_teacher(), mode="sampled", n=12)]) == 1.0
    small = task(board="5x4", opponent="strong")
    assert {game.score for game in evaluate(small, small.exact_teacher(), mode="sampled", n=12)} == {0.0}
    fresh = evaluate(small, fresh_student(small, 0), mode="sampled", n=12)
    assert np.mean([game.score for game in fresh]) < -0.5


def test_a_full_column_loses_and_an_episode_is_cut_by_nothing_else() -> None:
    here = task(opponent="random").make()
    here.reset(seed=1)
    reward, steps = 0.0, 0
    while reward == 0.0 and steps < 21:
        _, reward, done, truncated, _ = here.step(3)
        assert not truncated
        steps += 1
    assert done and reward in (1.0, -1.0)


def test_of_two_opponents_each_has_about_half_of_the_games() -> None:
    here = task(depth=1).make()
    sides = []
    for seed in range(200):
        board, _ = here.reset(seed=seed)
        sides.append((here._plays_well, bool(board.sum())))  # type: ignore[attr-defined]
    assert all(25 < sides.count(kind) < 75 for kind in {(False, False), (False, True), (True, False), (True, True)})


class Counted(Rules):
    """Notes how many states are evaluated at a time."""

    sizes: list[int]

    def observe(self, state_n: np.ndarray) -> np.ndarray:
        self.sizes.append(len(state_n))
        return super().observe(state_n)


@pytest.mark.parametrize("cls", [ExIt, AlphaZero])
def test_planning_methods_learn_on_it_and_evaluate_leaves_of_all_games_together(
        cls: type[Distiller], monkeypatch: pytest.MonkeyPatch) -> None:
    here, counted = task(board="5x4"), Counted(5, 4)
    counted.sizes = []
    monkeypatch.setattr(here, "model", lambda: counted)
    world = ControlWorld(here, fresh_student(here, 0, hidden=(16,)), None, seed=0)
    trainer = Trainer(make(cls, simulations=12, updates=2), context(world, batch=6, horizon=4))
    before = {name: value.clone() for name, value in world.student.state_dict().items()}
    for _ in range(2):
        figures = trainer.step()
    assert np.isfinite(figures["loss"])
    assert any(not torch.equal(before[name], value) for name, value in world.student.state_dict().items())
    visits_na = trainer.method.data.all().columns[VISITS][:, 0]  # type: ignore[attr-defined]
    assert visits_na.shape == (48, 5) and torch.allclose(visits_na.sum(1), torch.ones(48))
    # ExIt grows one tree for each of a round's 24 states, AlphaZero one for each of 6 games in each of 4 steps.
    roots, rounds = (24, 2) if cls is ExIt else (6, 8)
    per_leaf = 1 if cls is ExIt else 2  # observed for the policy, and for the value
    assert counted.sizes.count(roots) >= rounds * per_leaf and max(counted.sizes) == roots
    assert len(counted.sizes) <= rounds * per_leaf * (1 + 12)


def test_a_tree_search_with_the_players_values_never_lets_a_win_or_a_draw_go() -> None:
    rules, search = Rules(5, 4), task(board="5x4").strong()

    def exact(state_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value_n = [float(np.sign(search.value(*position))) for position in rules.bits(state_n)]
        return np.ones((len(state_n), 5)), np.array(value_n)

    board_n = positions(rules, free=10, n=30)
    tree = Tree(rules, board_n, exact, simulations=60, exploration=1.0)
    best_na = np.sign(exhaustive(rules, board_n))
    assert (best_na[np.arange(30), tree.policy_ba.argmax(1)] == best_na.max(1)).all()
    assert not tree.policy_ba[~rules.legal(board_n)].any()


def test_without_any_knowledge_a_search_still_stops_a_row() -> None:
    rules, rng = Rules(7, 6), np.random.default_rng(0)
    board_1 = np.zeros((1, 6, 7), np.int8)
    board_1[0, 0, [2, 3, 4]], board_1[0, 1, [2, 3]], board_1[0, 0, 1] = -1, 1, 1

    def blind(state_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((len(state_n), 7)), random_playouts(rules, state_n, rng)

    assert Tree(rules, board_1, blind, simulations=150, exploration=1.5).policy_ba.argmax(1).tolist() == [5]
