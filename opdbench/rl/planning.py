"""Search in the states of a run, guided by its student: what methods whose teacher is a search have in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from opdbench.actors import ACTION, Decision, sample
from opdbench.context import Context
from opdbench.errors import UserError
from opdbench.rl.search import Evaluate, Floats, Model, States, Tree
from opdbench.rollouts import Source
from opdbench.task import ControlTask

Value = Callable[[States], Floats]  # of states [N, ...], to whoever is to move


def model_of(ctx: Context) -> Model:
    """The rules of the run's task.

    Raises:
        UserError: it does not give any.
    """
    task = ctx.world.task
    model = task.model() if isinstance(task, ControlTask) else None
    if model is None:
        raise UserError(f"the method plans ahead, and task {task.id} gives no rules to plan with",
                        "choose a board game (opdbench list tasks), or give the task class a `model`")
    return model


def guided_by_student(ctx: Context, model: Model, value: Value) -> Evaluate:
    """Leaves evaluated by the student's policy and by `value`; on the ledger as "search"."""
    like = next(ctx.student.parameters())

    @torch.no_grad()
    def evaluate(state_n: States) -> tuple[Floats, Floats]:
        observation_n1 = torch.from_numpy(model.observe(state_n)[:, None]).to(like.device)
        one_n = torch.ones(len(state_n), dtype=torch.int64, device=like.device)
        logits_na = ctx.student.project(ctx.student.features(observation_n1, one_n)[:, 0])
        ctx.ledger.add_flops("search", ctx.student.forward_flops(len(state_n), 1))
        return logits_na.double().softmax(-1).numpy(force=True), value(state_n)

    return evaluate


class Searching:
    """An actor that searches in the state it is in and draws from the visit counts. Its actions are the student's,
    whose network guides the search.

    Attributes:
        policies: the visit counts of every step so far as probabilities, [B, A] each.
    """

    uses_student = False
    uses_teacher = False

    def __init__(self, model: Model, grow: Callable[[States], Tree], temperature: float) -> None:
        self._model, self._grow, self._temperature = model, grow, temperature
        self.policies: list[Tensor] = []

    def look(self, observation_b: Tensor) -> None:
        tree = self._grow(self._model.read(observation_b.numpy(force=True)))
        self.policies.append(torch.from_numpy(tree.policy_ba))

    def act(self, student_logits_ba: Tensor | None, teacher_logits_ba: Tensor | None, uniform_bd: Tensor) -> Decision:
        action_b, logp_b = sample(self.policies[-1].log(), self._temperature, uniform_bd[:, ACTION])
        return Decision(action_b, logp_b, torch.full(action_b.shape, int(Source.STUDENT), dtype=torch.uint8))


def numpy_rng(ctx: Context, purpose: str) -> np.random.Generator:
    return np.random.default_rng(ctx.rng(purpose).getrandbits(64))
