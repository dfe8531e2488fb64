"""General on-policy logit distillation (GOLD): GKD from a teacher with another tokenizer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from opdbench.actors import Student, Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import generalized_jsd, sorted_distance
from opdbench.pieces import Pieces, Vocabularies, pieces_of
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class GOLD(Distiller):
    """Where two tokenizers break a text at the same bytes, what both models say of it can be compared.

        L = E_{y ~ q} sum over the pieces c of y of
              JSD(beta) of how the text goes on, at each of the student's tokens in c           match=text
              w JSD(beta)(P_M || Q_M) + (1 - w) sum_i |sort(P_U)_i - sort(Q_U)_i|               match=tokens
              sum_i |sort(P)_i - sort(Q)_i|                                                     match=nothing
        P(v) = p(v | before the head of c) * product over the other tokens of c of p(token | before it),   Q likewise

    A piece is the smallest stretch of text that both cover with whole tokens. GOLD as published compares P and Q: one
    by one on M, the tokens that both vocabularies have, and by size on the rest U, w = |M| / |teacher's vocabulary|.
    With one tokenizer every token is a piece and M is everything: GKD, whatever `match` says.

    Deviations from the paper:
        There is a report and TRL's code (trl/experimental/gold), and no paper. M mixes up different events: where a
        teacher writes "12" in one token, its "1" is unlikely, and P_M tells a student that writes digit by digit that a
        number cannot begin so. Hence `match=text`, ours, the default: how the text goes on, in the student's tokens. A
        teacher's token counts for the one that it begins with; inside it, what may follow is known from the teacher's
        longer and shorter tokens. Exact where the student's tokens are the finer ones; where they are coarser, a piece
        of several of the teacher's tokens is one event, given how it begins.
        In `match=tokens` JSD is of M and one event for all else (TRL: of M alone, unnormalised, clamped at 1e-8), M are
        tokens that spell the same bytes (TRL: the same surface, so that "Ġthe" is not "▁the"), and what the teacher
        cannot read (special tokens in the text) has probability zero instead of being free. End tokens are compared
        (TRL skips them). A piece counts once, in the mean over the student's tokens (TRL: over pieces).
        `merge=observed` (TRL's default) takes P at a piece's first token. TRL gathers the later tokens' probabilities
        one place off: its slices begin at the answer's first token and hold the predictions of the next ones. That is
        not imitated. `merge=bayesian`, from an earlier version, takes P at the last token. `--preset trl` is
        `match=nothing`, the sorted distance over whole vocabularies, and `--preset hybrid` is `match=tokens`; top_p of
        0.95 in sampling is not there.
    """

    name: ClassVar[str] = "gold"
    paper: ClassVar[str] = "Patiño et al. 2025, Unlocking On-Policy Distillation for Any Model Family (Hugging Face)"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    bridges: ClassVar[bool] = True
    row_wise: ClassVar[bool] = False  # a piece spans rows
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "trl": {"lmbda": 0.5, "temperature": 0.9, "match": "nothing"},
        "hybrid": {"lmbda": 0.5, "temperature": 0.9, "match": "tokens"}}

    class Params(Distiller.Params):
        lmbda: float = Field(1.0, ge=0, le=1, description="share of steps on the student's own samples; 1 = on-policy")
        beta: float = Field(0.5, gt=0, lt=1, description="of JSD(beta): towards 0 like forward KL, towards 1 reverse")
        match: Literal["text", "tokens", "nothing"] = Field(
            "text", description="what is compared one by one: how the text goes on, shared tokens (hybrid), or nothing")
        merge: Literal["observed", "bayesian"] = Field(
            "observed", description="the token of a piece where P is taken: its first, or its last; not for match=text")
        data: Literal["teacher", "solutions"] = Field(
            "teacher", description="the other texts: the teacher's samples, or the task's reference solutions")

    def uses_solutions(self) -> bool:
        return super().uses_solutions() and self.params.lmbda < 1

    def asks(self, ctx: Context) -> Needs:
        return Needs.TEXT  # `prepare` asks for more, on the teacher's own tokens

    def collect(self, ctx: Context) -> Rollouts:
        if ctx.rng("data").random() < self.params.lmbda:
            return ctx.rollout(Student(ctx.training.temperature))
        if self.params.data == "solutions":
            return ctx.demonstrations()
        return ctx.rollout(Teacher(ctx.training.teacher_temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        first = self.params.match == "text" or self.params.merge == "observed"
        return ctx.score_pieces(rollouts, "first" if first else "last")

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        pieces, bridge = pieces_of(rows), ctx.world.bridge
        if bridge is None:
            value_n = generalized_jsd(pieces.teacher, pieces.student, self.params.beta)
        elif self.params.match == "text":
            value_n = self.by_text(pieces, bridge.vocabularies)
        else:
            value_n = pieces.spread(self.by_tokens(pieces, bridge.vocabularies))
        return Loss(value_n, {
            "pieces": pieces.spread(torch.ones_like(pieces.teacher_rest_c)),
            "log_ratio": pieces.spread(pieces.teacher_logp_c - pieces.student_logp_c.detach())})

    def by_text(self, pieces: Pieces, both: Vocabularies) -> Tensor:
        """How the text goes on, one value a row [N]."""
        beta = self.params.beta
        value_n = pieces.spread(generalized_jsd(*pieces.beginnings(both), beta))
        for row_r, teacher, student in (pieces.continuations(both), pieces.rests(both)):
            value_n = value_n.index_add(0, row_r, generalized_jsd(teacher, student, beta))
        return value_n

    def by_tokens(self, pieces: Pieces, both: Vocabularies) -> Tensor:
        """What GOLD as published compares, one value a piece [C]."""
        if self.params.match == "nothing":
            return sorted_distance(*pieces.merged())
        weight = len(both.teacher_m) / pieces.teacher.logits_na.shape[-1]
        matched_c = generalized_jsd(*pieces.matched(both), self.params.beta)
        sizes_c = sorted_distance(*pieces.unmatched(both))
        impossible_c = generalized_jsd(*pieces.texts(), self.params.beta)
        return torch.where(pieces.possible_c, weight * matched_c + (1 - weight) * sizes_c, impossible_c)
