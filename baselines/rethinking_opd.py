"""Rethinking OPD: the reverse KL on the student's own most likely tokens, as one advantage for each of them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.support import Comparison


class RethinkingOPD(Distiller):
    """What teacher and student both find likely is where distillation happens: a few overlapping tokens carry it all.

        equation:    L = E_{y ~ q} sum_t sum_{v in S_t} q~(v) log( q~(v) / p~(v) ),   S_t = the student's k likeliest
        advantages:  L = - E_{y ~ q} sum_t sum_{v in S_t} sg[ A(v) ] log q(v),   A(v) = - w(v) (log q(v) - log p(v))

    q~ and p~ are renormalised on S; w is q~, or p~, or uniform; the log-ratio of an advantage is not renormalised. So
    the two differ in gradient by [ log(q(S) / p(S)) + KL(q~ || p~) ] grad log q(S): advantages also move the student's
    mass towards the teacher's. The difference vanishes when S is everything.

    Deviations from the paper:
        The default is what the official code does (`form=advantages`), which made the published numbers; `--preset
        text` is the paper's equation. Code and paper first fine-tune on the teacher's own answers to other prompts,
        which is a run before this one (`--method seqkd`, then `--student` that run's).
    """

    name: ClassVar[str] = "rethinking-opd"
    paper: ClassVar[str] = "Rethinking On-Policy Distillation, 2026 (arXiv 2604.13016), top-k objective; official code"
    needs: ClassVar[Needs] = Needs.FULL
    presets: ClassVar[dict[str, dict[str, Any]]] = {"text": {"form": "equation"}}

    class Params(Distiller.Params):
        form: Literal["advantages", "equation"] = Field("advantages", description="as in the code, or as in the paper")
        top_k: int = Field(16, ge=1, description="k, size of the support")
        support: Literal["student", "teacher", "union", "intersection"] = Field(
            "student", description="S: the most likely tokens of either, of one of the two, or of both")
        weights: Literal["student", "teacher", "uniform"] = Field("student", description="w; `advantages` only")

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        comparison = Comparison(self.params.support, self.params.top_k, "renormalise")
        if self.params.form == "equation":
            return Loss(reverse_kl(*rows.pair(comparison)))
        inside_nm, logp_nm, logq_nm = comparison.inside(rows.teacher, rows.student)
        gap_nm = (logq_nm.detach() - logp_nm).where(inside_nm, 0.0)
        logq_nm = logq_nm.where(inside_nm, 0.0)
        return Loss((self.weight(inside_nm, logp_nm, logq_nm.detach()) * gap_nm * logq_nm).sum(-1))

    def weight(self, inside_nm: Tensor, logp_nm: Tensor, logq_nm: Tensor) -> Tensor:
        """w [N, M], which adds up to one over S, and is zero where S is empty."""
        logit_nm = {"student": logq_nm, "teacher": logp_nm, "uniform": torch.zeros_like(logq_nm)}[self.params.weights]
        p_nm = logit_nm.masked_fill(~inside_nm, -torch.inf).softmax(-1)
        return p_nm.where(inside_nm, 0.0)
