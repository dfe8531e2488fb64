from __future__ import annotations

import pytest

from benchmarks.dagger_rules import Rules, reached
from benchmarks.timing import Parts, Spread, matmul_peak, table


class FakeClock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Machine:
    """Something with methods that take time, one inside the other."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock

    def outer(self) -> str:
        self.clock.now += 1
        self.inner()
        self.clock.now += 2
        return "done"

    def inner(self) -> None:
        self.clock.now += 10


def test_a_part_inside_another_is_taken_out_of_the_outer_one() -> None:
    clock = FakeClock()
    machine, parts = Machine(clock), Parts(clock)
    parts.wrap(machine, "outer", "a")
    parts.wrap(machine, "inner", "b")
    assert machine.outer() == "done"
    clock.now += 100  # between calls: nobody's
    machine.inner()
    assert parts.pop() == {"a": 3.0, "b": 20.0}
    assert parts.pop() == {}


def test_time_is_charged_when_the_part_raises() -> None:
    clock = FakeClock()
    parts = Parts(clock)
    with pytest.raises(ZeroDivisionError), parts.measure("a"):
        clock.now += 5
        raise ZeroDivisionError
    clock.now += 7
    assert parts.pop() == {"a": 5.0}


def test_spread_and_table() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert str(Spread(0.25, 0.125, 1)) == "0.250 (0.125 to 1.000)"
    assert table(("a", "b"), [("x", 1)]) == "| a | b |\n| --- | --: |\n| x | 1 |"


def test_no_product_is_faster_than_the_measured_limit_by_much() -> None:
    small, large = matmul_peak(256, 5), matmul_peak(512, 5)
    assert 1e8 < small < 1e13 and large > small / 4


def test_the_target_must_hold_over_all_episodes_and_a_cheap_look_comes_first() -> None:
    asked: list[int] = []

    def evaluate(episodes: int, scores: dict[int, float]) -> float:
        asked.append(episodes)
        return scores[episodes]

    rules = Rules(target=475, episodes=100, first_look=8)
    assert reached(lambda n: evaluate(n, {8: 474.0}), rules) is None and asked == [8]
    assert reached(lambda n: evaluate(n, {8: 500.0, 100: 470.0}), rules) is None
    assert reached(lambda n: evaluate(n, {8: 500.0, 100: 475.0}), rules) == 475.0
