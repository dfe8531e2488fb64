"""EOPD: where the teacher is of several minds, the student is also told which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.policy_gradient import ppo_clip
from opdbench.replay import epochs
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.support import top_k_forward_kl


class EOPD(Distiller):
    """The reverse KL is unstable where the teacher's entropy is high; a forward KL there keeps its alternatives alive.

        L_t = - min( rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t )
              + 1[ H(p) > tau ] sum_{v in S} p~(v) log( p~(v) / q(v) )
        A_t = log p(y_t) - log q_old(y_t),   rho = q / q_old,   S = the teacher's k most likely tokens

    p~ is the teacher renormalised on S; q is not, so the second term also rewards the student's mass in S, and is at
    least -log of it. tau = infinity is `opd` with sampled tokens, tau = 0 adds the forward KL everywhere.

    Deviations from the paper:
        Losses are averaged over tokens, as in the official code; the paper averages within answers first: `--set
        reduction=sequence`.
    """

    name: ClassVar[str] = "eopd"
    paper: ClassVar[str] = "EOPD, 2026 (arXiv 2603.07079), entropy-aware objective"
    needs: ClassVar[Needs] = Needs.FULL

    class Params(Distiller.Params):
        entropy: float = Field(0.8, ge=0, description="tau in nats: above it the teacher's alternatives count")
        top_k: int = Field(16, ge=1, description="k, how many of them")
        clip: float = Field(0.2, gt=0, description="eps of PPO")
        minibatches: int = Field(4, ge=1, description="updates a batch (the paper: 128 answers, 32 an update)")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        return epochs(rollouts, 1, self.params.minibatches, ctx.rng("minibatches"))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        clip, ratio_n = self.params.clip, rows.teacher_logp_n - rows.behaviour_logp_n
        surrogate_n = ppo_clip(rows.student.logp(rows.action_n), rows.behaviour_logp_n, ratio_n, clip, clip)
        unsure_n = (rows.teacher.entropy() > self.params.entropy).to(surrogate_n.dtype)
        covering_n = top_k_forward_kl(rows.teacher, rows.student, self.params.top_k)
        return Loss(surrogate_n + unsure_n * covering_n, {"sampled_reverse_kl": -ratio_n, "teacher_unsure": unsure_n})
