"""KEPO: reinforcement learning, distilled where the student succeeds, and hinted at where a whole group fails."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Handover
from opdbench.advantages import masked
from opdbench.baselines.grpo import GRPO
from opdbench.context import Context
from opdbench.distiller import Loss, Needs
from opdbench.divergences import generalized_jsd
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class KEPO(GRPO):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """A teacher's preferences on failed answers mislead; on successful ones they help, and a hint can make one.

        L = L_GRPO + gamma E_{y ~ q} 1[ R(y) >= 1 ] sum_t JSD(1/2)( p(. | y_<t) || q(. | y_<t) )

    In a group without a single success, answers with a hint take the place of as many failed ones: the teacher writes
    the first tokens, the student the rest, and up to five times until one is right. What still fails is left as it was,
    and counted in the record (`groups_failed`, `groups_hinted`).

    Deviations from the paper:
        Its hint is a text by the teacher in the prompt, and the answers are then trained on below the prompt without
        it. Here the hint is the beginning of the answer itself, since small models take no advice; the tokens that the
        teacher wrote keep their own sampling probability. `--set reduction=sequence` is the paper's mean.
    """

    name: ClassVar[str] = "kepo"
    paper: ClassVar[str] = "KEPO, 2026 (arXiv 2602.00400), quality-gated distillation with GRPO; official code"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})  # successes, and problems to go back to
    gated_by_reward = True

    class Params(GRPO.Params):  # type: ignore[misc]
        distillation: float = Field(1.0, ge=0, description="gamma, weight of the JSD on successful answers")
        hint: int = Field(8, ge=0, description="tokens of an answer that a hint is; 0: no hints")
        hinted: int = Field(2, ge=1, description="failed answers of a group that hinted ones replace")
        attempts: int = Field(5, ge=1, description="times that a failed group is given hints")

    def collect(self, ctx: Context) -> Rollouts:
        rollouts: Rollouts = super().collect(ctx)
        failed = failed_groups(rollouts)
        ctx.note("groups_failed", len(failed))
        for _ in range(self.params.attempts if self.params.hint else 0):
            if not failed:
                break
            rollouts = self.with_hints(rollouts, failed, ctx)
            ctx.note("groups_hinted", len(failed) - len(failed := failed_groups(rollouts)))
        return rollouts

    def with_hints(self, rollouts: Rollouts, failed: list[int], ctx: Context) -> Rollouts:
        """The rollouts with new answers to the problems of failed groups; those of a group that succeed replace some of
        the old ones."""
        group_b, number = rollouts.columns["group"], min(self.params.hinted, self.params.group)
        first = {group: int((group_b == group).nonzero()[0]) for group in failed}
        problems = [int(rollouts.columns["example"][first[group]]) for group in failed]
        actor = Handover(self.params.hint, ctx.training.temperature, ctx.training.teacher_temperature)
        answers = ctx.rollout(actor, problems=problems, repeat=number)
        answers = answers.with_columns(per_trajectory={
            "group": torch.tensor(failed, device=group_b.device).repeat_interleave(number)})
        order = list(range(rollouts.n_trajectories))
        right = succeeded(answers).view(len(failed), number).any(1).tolist()
        for place, group in enumerate(failed):
            if right[place]:
                taken = range(place * number, (place + 1) * number)
                order[first[group]:first[group] + number] = [rollouts.n_trajectories + index for index in taken]
        return Rollouts.cat([rollouts, answers]).select(order)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        succeeded_b = succeeded(rollouts).to(torch.float32)
        prepared: Rollouts = super().prepare(rollouts, ctx)
        return prepared.with_columns(per_trajectory={"succeeded": succeeded_b})

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        reward, gate_n = super().loss(rows, ctx), rows.columns["succeeded"]
        distance_n = generalized_jsd(rows.teacher, rows.student, 0.5)
        return Loss(reward.value_n + self.params.distillation * gate_n * distance_n,
                    {**reward.scalars, "succeeded": gate_n})


def succeeded(rollouts: Rollouts) -> Tensor:
    """bool [B]: full marks."""
    return masked(rollouts.reward_bt, rollouts.mask_bt).sum(1) >= 1


def failed_groups(rollouts: Rollouts) -> list[int]:
    """The groups in which no answer earned anything."""
    group_b = rollouts.columns["group"]
    earned_b = masked(rollouts.reward_bt, rollouts.mask_bt).sum(1) > 0
    return sorted(set(group_b.tolist()) - set(group_b[earned_b].tolist()))
