"""Revisiting OPD: the reverse KL on the teacher's most likely tokens, on samples from the student's nucleus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl
from opdbench.replay import epochs
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.support import Comparison


class RevisitingOPD(Distiller):
    """One sampled token is a noisy and fragile signal; the teacher's few likely ones, compared exactly, are neither.

        L = E_{y ~ top-p(q)} mean_t sum_{v in S_t} q~(v) log( q~(v) / p~(v) ),   S_t = the teacher's 32 likeliest tokens

    q~ and p~ are both renormalised on S, and the divergence is differentiated directly. So the loss does not see how
    much of the student lies outside of S; samples from its nucleus keep it from drifting there, and without
    renormalisation the paper reports collapse. With S = everything it is `opd`.

    Deviations from the paper:
        No mask for special tokens. The official README adds a gate on the fifth of tokens with the largest entropy,
        which the paper does not have, and so this does not either.
    """

    name: ClassVar[str] = "revisiting-opd"
    paper: ClassVar[str] = "Revisiting On-Policy Distillation, 2026 (arXiv 2603.25562), teacher top-k objective"
    needs: ClassVar[Needs] = Needs.FULL
    presets: ClassVar[dict[str, dict[str, Any]]] = {"unnormalised": {"renormalise": False}}  # its ablation

    class Params(Distiller.Params):
        top_k: int = Field(32, ge=1, description="size of S")
        top_p: float = Field(0.9, gt=0, le=1, description="nucleus that the student samples from; 1 is all of it")
        renormalise: bool = Field(True, description="compare within S only; false: the terms of S as they are")
        minibatches: int = Field(2, ge=1, description="updates a batch (the paper: 128 answers, 64 an update)")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature, self.params.top_p))

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        return epochs(rollouts, 1, self.params.minibatches, ctx.rng("minibatches"))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        comparison = Comparison("teacher", self.params.top_k, "renormalise")
        if self.params.renormalise:
            return Loss(reverse_kl(*rows.pair(comparison)))
        _, logp_nm, logq_nm = comparison.inside(rows.teacher, rows.student)
        possible_nm = logp_nm > -torch.inf
        return Loss((logq_nm.exp() * (logq_nm - logp_nm).where(possible_nm, 0.0)).sum(-1))
