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
from opdbench.pieces import Pieces, Shared, pieces_of
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class GOLD(Distiller):
    """Where two tokenizers break a text at the same bytes, what both models say of it can be compared.

        L = E_{y ~ q} sum over pieces c of y of  w JSD(beta)(P_M || Q_M) + (1 - w) sum_i |sort(P_U)_i - sort(Q_U)_i|
        P(v) = p(v | before the head of c) * product over the other tokens of c of p(token | before it),   Q likewise

    A piece is the smallest stretch of text that both cover with whole tokens. M are the tokens that both vocabularies
    have, compared one with another; U are the rest, of which only sizes can be compared (ULD); w = |M| / |teacher's
    vocabulary|. With one tokenizer every token is a piece and M is everything: GKD.

    Deviations from the paper:
        There is no paper, but a report and TRL's code (trl/experimental/gold). P is not a distribution where a piece has
        several tokens: it is exact for the piece's text and for nothing else. So here such a piece is compared as two
        events, its text and any other (`whole_text=false` compares P, as TRL). And JSD is of M with one more event for
        all else, where TRL compares M alone, unnormalised and clamped at 1e-8. M are tokens that spell the same bytes
        (TRL: the same surface, so that "Ġthe" is not "▁the"). The end token is compared (TRL skips it, and so leaves
        its student to stop as before). A piece counts once, in the mean over all the student's tokens (TRL: over pieces).
        `merge=observed` (TRL's default) takes P at a piece's first token, and TRL reads the later tokens' probabilities
        one place off: its slices begin at the answer's first token and so hold the predictions of the next ones, from
        which it gathers the token before. That is not imitated. `merge=bayesian`, from an earlier version, takes P at
        the last token. `--preset trl` sets lmbda and temperature of its defaults, and leaves its hybrid loss off: ULD
        over whole vocabularies. Its top_p of 0.95 in sampling is not there.
        What GOLD cannot see: a token that begins another one. Where a teacher writes "12" in one token, its "1" is
        unlikely, and a student that writes digit by digit is told so of its "1".
    """

    name: ClassVar[str] = "gold"
    paper: ClassVar[str] = "Patiño et al. 2025, Unlocking On-Policy Distillation for Any Model Family (Hugging Face)"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    bridges: ClassVar[bool] = True
    row_wise: ClassVar[bool] = False  # a piece spans rows
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "trl": {"lmbda": 0.5, "temperature": 0.9, "hybrid": False, "whole_text": False}}

    class Params(Distiller.Params):
        lmbda: float = Field(1.0, ge=0, le=1, description="share of steps on the student's own samples; 1 = on-policy")
        beta: float = Field(0.5, gt=0, lt=1, description="of JSD(beta): towards 0 like forward KL, towards 1 reverse")
        hybrid: bool = Field(True, description="compare shared tokens one by one; false: sorted distance of everything")
        whole_text: bool = Field(True, description="a piece of several tokens is one event, its text")
        merge: Literal["observed", "bayesian"] = Field(
            "observed", description="the token of a piece where distributions are taken: its first, or its last")
        matched_weight: float | None = Field(None, ge=0, le=1, description="w; None: |M| / |teacher's vocabulary|")
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
        return ctx.score_pieces(rollouts, "first" if self.params.merge == "observed" else "last")

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        pieces = pieces_of(rows)
        if ctx.world.bridge is None:
            value_c = generalized_jsd(pieces.teacher, pieces.student, self.params.beta)
        else:
            value_c = self.compare(pieces, ctx.world.bridge.shared)
        return Loss(pieces.spread(value_c), {
            "pieces": pieces.spread(torch.ones_like(value_c)),
            "log_ratio": pieces.spread(pieces.teacher_logp_c - pieces.student_logp_c.detach())})

    def compare(self, pieces: Pieces, shared: Shared) -> Tensor:
        """One value a piece [C]."""
        params = self.params
        if not params.hybrid:
            return sorted_distance(*pieces.unmatched(None))
        weight = params.matched_weight
        if weight is None:
            weight = len(shared.teacher_m) / pieces.teacher.logits_na.shape[-1]
        value_c = pieces.teacher_rest_c.new_zeros(len(pieces.row_c))
        by_token_c = pieces.single_c if params.whole_text else torch.ones_like(pieces.single_c)
        tokens, texts = pieces.where(by_token_c), pieces.where(~by_token_c)
        tokens_c = (weight * generalized_jsd(*tokens.matched(shared), params.beta)
                    + (1 - weight) * sorted_distance(*tokens.unmatched(shared)))
        texts_c = weight * generalized_jsd(*texts.texts(), params.beta)
        return value_c.index_put((by_token_c,), tokens_c).index_put((~by_token_c,), texts_c)
