"""When a DAgger student is good enough: the same rule in both competitors. Standard library only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rules:
    """Stop after the first round whose student averages at least `target` over `episodes` greedy episodes.

    Attributes:
        first_look: episodes of a cheap look that must already average `target`; saves evaluations, nothing else.
        max_rounds: give up after as many.
    """

    target: float = 475.0
    episodes: int = 100
    first_look: int = 8
    max_rounds: int = 200


def reached(evaluate: Callable[[int], float], rules: Rules) -> float | None:
    """The mean return over `rules.episodes` episodes when it is high enough, else None.

    Args:
        evaluate: mean greedy return over so many episodes.
    """
    if evaluate(rules.first_look) < rules.target:
        return None
    score = evaluate(rules.episodes)
    return score if score >= rules.target else None
