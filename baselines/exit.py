"""Expert iteration: a tree search that the student guides is the expert, and the student its apprentice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.replay import Aggregate
from opdbench.rl.planning import guided_by_student, model_of, numpy_rng
from opdbench.rl.search import Tree, random_playouts
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows

VISITS = "visits"  # [B, T, A], a column: the search's visit counts as probabilities


class ExIt(Distiller):
    """Search improves on the policy that guides it, and what it finds can be learnt: the expert grows as it does.

        round:  play with the apprentice;  n(s, .) <- search from every visited s, guided by the apprentice;
                tpt:  L = - sum_a n(s, a) / n(s) log pi(a | s)          (section 3.3, tree-policy targets)
                cat:  L = - log pi(argmax_a n(s, a) | s)                (chosen-action targets)

    It is DAgger whose teacher is a search: states of the student, labels aggregated. Tree-policy targets weigh an error
    by what it costs, and chosen actions do not.

    Deviations from the paper:
        The search is PUCT with the apprentice as prior (the paper adds a bonus to UCT), and leaves are valued by a
        random game to the end; the paper's value network is `alphazero`'s here. The apprentice is trained on from its
        current weights, and plays the task's opponents rather than itself.
    """

    name: ClassVar[str] = "exit"
    paper: ClassVar[str] = "Anthony, Tian and Barber, NeurIPS 2017 (arXiv 1705.08439), sections 3 and 4"
    needs: ClassVar[Needs] = Needs.NOTHING
    domains: ClassVar[frozenset[str]] = frozenset({"rl"})

    class Params(Distiller.Params):
        target: Literal["tpt", "cat"] = Field("tpt", description="the expert's visit counts, or its chosen action")
        simulations: int = Field(64, ge=1, description="of the search in every visited state")
        exploration: float = Field(1.5, gt=0, description="c of the search")
        updates: int = Field(16, ge=1, description="minibatches a round")
        minibatch: int = Field(64, ge=1, description="states in each")
        capacity: int = Field(20_000, ge=1, description="states that are kept")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.data = Aggregate(params.capacity)

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        model, rng, mask_bt = model_of(ctx), numpy_rng(ctx, "playouts"), rollouts.mask_bt
        evaluate = guided_by_student(ctx, model, lambda state_n: random_playouts(model, state_n, rng))
        tree = Tree(model, model.read(rollouts.input_bt[mask_bt].numpy(force=True)), evaluate,
                    simulations=self.params.simulations, exploration=self.params.exploration)
        visits_bta = torch.zeros(*mask_bt.shape, model.n_actions, dtype=torch.float32, device=mask_bt.device)
        visits_bta[mask_bt] = torch.from_numpy(tree.policy_ba).to(visits_bta)
        labelled = rollouts.with_columns(per_step={VISITS: visits_bta})
        self.data.add(ctx.separable(labelled))
        return labelled

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        rng = ctx.rng("minibatches")
        for _ in range(self.params.updates):
            yield self.data.sample(self.params.minibatch, rng)

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        visits_na = rows.columns[VISITS]
        if self.params.target == "cat":
            return Loss(-rows.student.logp(visits_na.argmax(-1)))
        return Loss(-(visits_na * rows.student.logp_na).sum(-1))

    def state_dict(self) -> dict[str, Any]:
        return {"data": self.data.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.data.load_state_dict(state["data"])
