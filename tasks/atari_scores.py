"""Human-normalised scores of the ten games that Rusu et al. 2016 distil: 0 is a player of random actions, 1 a human.

The constants are those that the literature shares, as DeepMind's dqn_zoo has them (dqn_zoo/atari_data.py, Apache-2.0).
They were measured without sticky actions.
"""

from __future__ import annotations

from opdbench.errors import unknown

RANDOM_HUMAN = {
    "beam-rider": (363.9, 16926.5), "breakout": (1.7, 30.5), "enduro": (0.0, 860.5), "freeway": (0.0, 29.6),
    "ms-pacman": (307.3, 6951.6), "pong": (-20.7, 14.6), "qbert": (163.9, 13455.0), "riverraid": (1338.5, 17118.0),
    "seaquest": (68.4, 42054.7), "space-invaders": (148.0, 1668.7)}


def human_normalised(game: str, score: float) -> float:
    """(score - random) / (human - random) of a mean return.

    Args:
        game: as in a task's name, "space-invaders".

    Raises:
        UsageError: the table does not have it.
    """
    if game not in RANDOM_HUMAN:
        raise unknown("game with known human and random scores:", game, RANDOM_HUMAN)
    random, human = RANDOM_HUMAN[game]
    return (score - random) / (human - random)
