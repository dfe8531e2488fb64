"""opdbench's training loop on given hidden states: a world whose models are a table of features and an output layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from opdbench import output_layer
from opdbench.baselines.gkd import GKD
from opdbench.conformance.enumerable import EnumerableWorld
from opdbench.context import Context
from opdbench.diagnostics import StepMeter
from opdbench.distiller import Needs
from opdbench.ledger import Ledger
from opdbench.lm.policy import widen
from opdbench.loop import Trainer
from opdbench.policy import Policy
from opdbench.rollouts import Rollouts, Source
from opdbench.rows import row_weights
from opdbench.schema.spec import Budget, Execution, Training

if TYPE_CHECKING:
    from benchmarks.memory import Problem


class Table(Policy):
    """The features of state number i are row i of a table; projected as language models project theirs."""

    def __init__(self, features_nh: nn.Parameter, weight_ah: nn.Parameter) -> None:
        super().__init__()
        self.table, self.weight = features_nh, weight_ah
        self.n_actions = len(weight_ah)

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        return self.table[input_bt]

    def project(self, features_nh: Tensor) -> Tensor:
        return widen(output_layer.project(features_nh, self.weight, self.n_actions))

    def forward_flops(self, n_states: int, context: float) -> float:
        return 2.0 * n_states * self.weight.numel()

    def save(self, folder: Path) -> None:
        save_file(self.state_dict(), folder / "model.safetensors")


def make_trainer(problem: Problem, divergence: str, device: str, trajectories: int, **execution: Any
                 ) -> tuple[Trainer, Rollouts, Tensor, StepMeter]:
    """The loop with `gkd`, a scored micro-batch of all rows, their weights (a mean), and the step's meter."""
    student = Table(problem.student_nh, problem.student_ah)
    teacher = Table(problem.teacher_nh, problem.teacher_ah)
    method = GKD(GKD.Params(divergence=divergence))
    settings = Execution(device=device, micro_batch=trajectories, **execution)
    # Of the world one update needs its two models and nothing else.
    ctx = Context(EnumerableWorld(student, teacher), Training(batch=trajectories, horizon=1), Budget(steps=1), settings,
                  Ledger(), seed=0)
    rollouts = ctx.score(_visits(len(problem.student_nh), trajectories, device), Needs.FULL)
    return Trainer(method, ctx), rollouts, row_weights(rollouts, "token"), StepMeter()


def _visits(n_rows: int, trajectories: int, device: str) -> Rollouts:
    """Every state of the table once."""
    input_bt = torch.arange(n_rows, device=device).view(trajectories, -1)
    n_steps = input_bt.shape[1]
    zeros_bt = torch.zeros(input_bt.shape, device=device)
    return Rollouts(
        input_bt=input_bt, action_bt=torch.zeros_like(input_bt), behaviour_logp_bt=zeros_bt, reward_bt=zeros_bt,
        source_bt=torch.full_like(input_bt, int(Source.STUDENT), dtype=torch.uint8),
        done_bt=torch.zeros_like(input_bt, dtype=torch.bool),
        length_b=torch.full((trajectories,), n_steps, device=device),
        truncated_b=torch.zeros(trajectories, dtype=torch.bool, device=device))
