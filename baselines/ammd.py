"""Adversarial moment matching: no action-value function should tell the student from the teacher."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import skip_init

from opdbench.actors import Actor, Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows

TEACHER_PART, STUDENT_PART = 0, 1


class AMMD(Distiller):
    """To match a teacher's values is enough: what no bounded Q can tell apart has no imitation gap.

        min_q max_{Q1, Q2}   E_{y ~ p} sum_t [ E_{a ~ p} Q1(s_t, a) - E_{a ~ q} Q1(s_t, a) ]
                           + E_{y ~ q} sum_t [ E_{a ~ p} Q2(s_t, a) - E_{a ~ q} Q2(s_t, a) ],     |Q| <= 1

    The first line matches moments in the teacher's states (off-policy), the second in the student's (on-policy). Over
    all bounded Q the maximum is twice the total variation in every state, and a small network sees less than that: it
    weighs states by what they have in common. `adversary` ascents of Q come before each step of the student. Q costs
    memory for rows x actions: with a vocabulary of 150,000, keep batches small.

    Deviations from the paper:
        There is no official code, and this is a reimplementation from the abstract and the stated objective, not from
        a reference: network, learning rates and the number of inner steps are ours. Expectations over actions are
        exact on both sides (the paper samples them), and the visited states are held fixed when the student is
        differentiated, as in the other methods here, so no policy gradient through later states.
        Being adversarial, it wants a smaller learning rate than the others: on text-maze the task's own 2e-3 makes the
        student worse than it was, 5e-4 trains it.
    """

    name: ClassVar[str] = "ammd"
    paper: ClassVar[str] = "Jia, NeurIPS 2024 (arXiv 2406.02959), adversarial moment matching, on- and off-policy"
    needs: ClassVar[Needs] = Needs.FULL

    class Params(Distiller.Params):
        states: Literal["both", "teacher", "student"] = Field(
            "both", description="whose states moments are matched in; the paper's ablations are one-sided")
        adversary: int = Field(30, ge=1, description="ascents of Q before each step of the student")
        adversary_lr: float = Field(1e-2, gt=0, description="learning rate of Q (Adam)")
        width: int = Field(64, ge=1, description="hidden units of Q, on the student's features")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.adversaries: nn.ModuleList | None = None  # Q1 and Q2, made when the sizes are known
        self.optimizer: torch.optim.Adam | None = None

    def collect(self, ctx: Context) -> Rollouts:
        actors: dict[str, Actor] = {"teacher": Teacher(ctx.training.teacher_temperature),
                                    "student": Student(ctx.training.temperature)}
        if self.params.states != "both":
            return ctx.rollout(actors[self.params.states])
        n_teacher = max(1, ctx.training.batch // 2)
        return Rollouts.cat_parts([ctx.rollout(actors["teacher"], n=n_teacher),
                                   ctx.rollout(actors["student"], n=max(1, ctx.training.batch - n_teacher))])

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        """Let the adversaries learn on this batch, the student held fixed."""
        if "part" not in rollouts.columns:
            rollouts = rollouts.with_columns(per_trajectory={"part": torch.zeros_like(rollouts.length_b)})
        mask_bt = rollouts.mask_bt
        seen_n = ctx.per_row(rollouts, lambda rows: torch.cat(
            [rows.features_nh, rows.teacher.p_na - rows.student.p_na], -1))[mask_bt]
        features_nh, difference_na = seen_n.tensor_split([seen_n.shape[1] - ctx.student.n_actions], 1)
        part_n = rollouts.columns["part"].repeat_interleave(mask_bt.sum(1))
        if self.adversaries is None:
            self._make(features_nh.shape[1], ctx.student.n_actions, features_nh)
            self._draw_first_layers(ctx.generator("adversary"))
        assert self.optimizer is not None
        for _ in range(self.params.adversary):
            self.optimizer.zero_grad()
            with torch.enable_grad():
                gap_n = (difference_na * self.q_values(features_nh, part_n)).sum(-1)
                (-gap_n.mean()).backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return rollouts

    def q_values(self, features_nh: Tensor, part_n: Tensor) -> Tensor:
        """Q1 in the teacher's part, Q2 in the student's: [N, A], between -1 and 1."""
        assert self.adversaries is not None
        features_nh = features_nh.detach().to(next(self.adversaries.parameters()).dtype)
        first_na, second_na = (adversary(features_nh) for adversary in self.adversaries)
        return torch.where((part_n == TEACHER_PART)[:, None], first_na, second_na).tanh()

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        with torch.no_grad():
            q_na = self.q_values(rows.features_nh, rows.columns["part"])
        gap_n = ((rows.teacher.p_na - rows.student.p_na) * q_na).sum(-1)
        share = 0.5 if self.params.states == "both" else 1.0  # parts are averaged apart and then summed
        return Loss(share * gap_n, {"moment_gap": gap_n})

    def _make(self, n_features: int, n_actions: int, like: Tensor) -> None:
        """Both adversaries and their optimizer. The last layers are zero: nothing is told apart before it is learnt."""
        def linear(n_inputs: int, n_outputs: int) -> nn.Module:  # without a draw from the global random state
            module: nn.Module = skip_init(  # type: ignore[no-untyped-call]
                nn.Linear, n_inputs, n_outputs, device=like.device, dtype=like.dtype)
            return module

        self.adversaries = nn.ModuleList(
            nn.Sequential(linear(n_features, self.params.width), nn.Tanh(), linear(self.params.width, n_actions))
            for _ in range(2))
        for parameter in self.adversaries.parameters():
            nn.init.zeros_(parameter)
        self.optimizer = torch.optim.Adam(self.adversaries.parameters(), lr=self.params.adversary_lr)

    def _draw_first_layers(self, generator: torch.Generator) -> None:
        assert self.adversaries is not None
        for adversary in self.adversaries:
            weight = adversary[0].weight  # type: ignore[index]
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float64) / weight.shape[1]**0.5
            with torch.no_grad():
                weight.copy_(drawn)

    def state_dict(self) -> dict[str, Any]:
        if self.adversaries is None or self.optimizer is None:
            return {}
        moments = {str(key): dict(value) for key, value in self.optimizer.state_dict()["state"].items()}
        return {"weights": dict(self.adversaries.state_dict()), "moments": moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not state:
            self.adversaries = self.optimizer = None
            return
        first, last = state["weights"]["0.0.weight"], state["weights"]["0.2.weight"]
        self._make(first.shape[1], last.shape[0], first)
        assert self.adversaries is not None and self.optimizer is not None
        self.adversaries.load_state_dict(state["weights"])
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({
            "state": {int(key): value for key, value in state["moments"].items()}, "param_groups": groups})
