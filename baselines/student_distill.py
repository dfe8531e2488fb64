"""On-policy policy distillation: the student acts, the teacher says in every state what it would have done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl
from opdbench.replay import epochs
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class StudentDistill(Distiller):
    """Imitating the teacher's distribution in the states that the student itself visits leaves no mismatch.

        L = E_{s ~ q} H(p(. | s), q(. | s))

    The update is no gradient of any function (the states depend on q too), and can cycle; in a table, with every state
    visited, it converges all the same (section 5.2). In the Distilling Policy Distillation paper it is "on-policy
    distill" and about three times faster than the teacher-driven form (`kd`).

    Deviations from the paper:
        The logged value is the KL, which has the cross-entropy's gradient. The code of Proximal Policy Distillation
        also regresses the teacher's value function, which a distilled policy does not need. One pass over each batch is
        `gkd` with lmbda = 1 and the forward KL; `epochs` and `minibatches` make more of its samples.
    """

    name: ClassVar[str] = "student-distill"
    paper: ClassVar[str] = "Czarnecki et al., AISTATS 2019 (arXiv 1902.02186), table 1, on-policy distill"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"rl"})
    compares: ClassVar[bool] = True

    class Params(Distiller.Params):
        epochs: int = Field(1, ge=1, description="passes over each batch")
        minibatches: int = Field(1, ge=1, description="optimizer steps a pass")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        states = ctx.separable(rollouts)
        return epochs(states, self.params.epochs, self.params.minibatches, ctx.rng("minibatches"))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(forward_kl(*rows.pair()))
