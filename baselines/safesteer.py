"""SafeSteer: a model pushed towards refusing teaches itself, on the tokens that refusing is made of."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.copies import FrozenCopy
from opdbench.distiller import Distiller, Loss, Needs, Standing
from opdbench.errors import UserError
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.task import LanguageTask


class SafeSteer(Distiller):
    """A direction in a model's states is a teacher that costs nothing, and its tokens say where it may be followed.

        p = softmax of the starting student's logits at h + scale d,   d = mean h on marked prompts - mean on the others
        L = E_{y ~ q on marked prompts} sum_t sum_{v in S} q(v) log( q(v) / p(v) )
        S: the tokens most often among the top K' of  log p - log p_0  on the other prompts,   p_0 the starting student

    Not renormalised, so the loss may be negative. With S everything it is the reverse KL; with d = 0 it starts at rest.

    Deviations from the paper:
        From notes. The layer, scale and K' are not known: here d is added to the features before the output layer, with
        scale 1 and K' = 8. Marked prompts are harmful ones there; a task marks its own (`LanguageTask.marks`), which in
        the tiny tasks stand for nothing but themselves. d and S come from the first batch that has both kinds; batches
        before it, and without a marked prompt, make no update and are counted.
    """

    name: ClassVar[str] = "safesteer"
    paper: ClassVar[str] = "SafeSteer 2026 (arXiv 2606.02530)"
    standing: ClassVar[Standing] = "from notes"
    needs: ClassVar[Needs] = Needs.NOTHING
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})

    class Params(Distiller.Params):
        scale: float = Field(1.0, ge=0, description="of the direction that is added")
        top: int = Field(8, ge=1, description="K', tokens of every row that get a vote")
        tokens: int = Field(32, ge=1, description="size of S, the tokens with the most votes")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.start = FrozenCopy()
        self.found: dict[str, Tensor] = {}  # the direction [H], and which tokens are in S, bool [A]

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        start, task = self.start.of(ctx.student), ctx.world.task
        assert isinstance(task, LanguageTask)
        marked = [task.marks(example) for example in ctx.prompts.problems(rollouts)]
        if not self.found and True not in marked and not any(map(task.marks, task.examples("train"))):
            raise UserError(f"{self.name} learns on marked problems (prompts to refuse), and {task.id} marks none",
                            "choose another task, or one of your own with LanguageTask.marks")
        rollouts = rollouts.with_columns(per_step={"start_features": ctx.per_row(
            rollouts, lambda rows: rows.features_nh, policy=start)})
        if not self.found and True in marked and False in marked:
            self.found = self.find(rollouts, torch.tensor(marked, device=rollouts.input_bt.device), start)
        ctx.note("unmarked", marked.count(False))
        return rollouts.select([index for index, mark in enumerate(marked) if mark and self.found])

    @torch.no_grad()
    def find(self, rollouts: Rollouts, marked_b: Tensor, start: Policy) -> dict[str, Tensor]:
        """d from the last states of the prompts, and S from the rows of the unmarked ones."""
        features_bth, mask_bt = rollouts.columns["start_features"], rollouts.mask_bt
        first_bh = features_bth[torch.arange(len(mask_bt)), mask_bt.int().argmax(1)]
        direction_h = first_bh[marked_b].mean(0) - first_bh[~marked_b].mean(0)
        features_nh = features_bth[mask_bt & ~marked_b[:, None]]
        plain_na = start.project(features_nh).log_softmax(-1)
        gain_na = start.project(features_nh + self.params.scale * direction_h).log_softmax(-1) - plain_na
        top_nk = gain_na.topk(min(self.params.top, gain_na.shape[-1]), -1).indices
        votes_a = torch.bincount(top_nk.flatten(), minlength=gain_na.shape[-1])
        chosen_a = torch.zeros_like(votes_a, dtype=torch.bool)
        chosen_a[votes_a.topk(min(self.params.tokens, len(votes_a))).indices] = True
        return {"direction": direction_h, "chosen": chosen_a & (votes_a > 0)}

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        features_nh = rows.columns["start_features"] + self.params.scale * self.found["direction"]
        with torch.no_grad():
            logp_na = self.start.of(ctx.student).project(features_nh).log_softmax(-1)
        logq_na = rows.student.logp_na
        return Loss((logq_na.exp() * (logq_na - logp_na))[:, self.found["chosen"]].sum(-1))

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start.state_dict(), "found": dict(self.found)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start.load_state_dict(state["start"])
        self.found = dict(state["found"])
