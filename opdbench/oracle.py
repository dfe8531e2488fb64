"""A teacher that is asked and not run: behind a server, or a cache of what one said."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from opdbench.distiller import Needs
from opdbench.rollouts import Rollouts


class Answer(NamedTuple):
    """What an oracle says about some rollouts.

    Attributes:
        columns: per step, by the names of `opdbench.rows`.
        n_asked: rows that it was asked about; `n_cached`: rows that it had answered before.
    """

    columns: dict[str, Tensor]
    n_asked: int
    n_cached: int


class Oracle(Protocol):
    """It reveals what the worlds' `Policy` computes, but never a whole distribution or features."""

    def columns(self, rollouts: Rollouts, needs: Needs, top_k: int) -> Answer:
        """What `needs` asks for in every row. FULL means the `top_k` most likely actions.

        Raises:
            UserError: it cannot be reached, answers nonsense, or does not reveal this.
        """
