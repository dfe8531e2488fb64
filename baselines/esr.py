"""ESR: the first hundred tokens of an answer are enough to distil from."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class ESR(Distiller):
    """What a student must change shows early in an answer; the rest is most of the cost, and rambling at that.

        y ~ q(. | x), stopped after N tokens;   L = E_y sum_{t <= N} KL( q(. | y_<t) || p(. | y_<t) )

    With N no less than the longest answer it is `opd`.

    Deviations from the paper:
        From a note on the paper. Whether its code sums over tokens or averages is open: the run's `reduction` decides,
        which by default averages over all tokens. A task whose answers are shorter than N needs a smaller one to show
        anything (`--set tokens=8`). Models with different tokenizers are `gold`'s and `dpca`'s business.
    """

    name: ClassVar[str] = "esr"
    paper: ClassVar[str] = "Early-stopped rollouts, 2026 (arXiv 2605.27028)"
    needs: ClassVar[Needs] = Needs.FULL
    standing: ClassVar[Standing] = "from notes"
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        tokens: int = Field(100, ge=1, description="N; the note has 50 to 200 as equally good")

    def collect(self, ctx: Context) -> Rollouts:
        horizon = min(self.params.tokens, ctx.training.horizon or self.params.tokens)
        return ctx.rollout(Student(ctx.training.temperature), horizon=horizon)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(*rows.pair()))
