"""Universal logit distillation (ULD): the shape of the teacher's distribution, whatever its vocabulary."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from opdbench.actors import Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import negative_log_likelihood, universal_logit_distance
from opdbench.pieces import pieces_of
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class ULD(Distiller):
    """The Wasserstein distance between two vocabularies, if all pairs of tokens are as far apart, needs no common ones.

        L = sum_t  - log q(y_t | y_<t)  +  lmbda sum_i |sort(p_t)_i - sort(q_t)_i|,   y ~ the teacher

    p_t and q_t are the distributions at the t-th token of the same answer, each in its own tokens, as far as both go;
    the smaller vocabulary is filled up with zeros (section 3.2). The distance is zero for any permutation of the
    teacher's distribution, so that what to say comes from the likelihood, and only how surely from the teacher.

    Deviations from the paper:
        None in the objective; answers are drawn fresh from the teacher at each step. The t-th tokens of two tokenizers
        stand at different places of the text; nothing corrects that here, as in the paper (gold aligns them). Official
        code (Nicolas-BZRD/llm-recipes, models/distillation_model.py) averages the distance within answers and then over
        them, but the likelihood over all tokens (`--preset code` does both within answers first); it takes an answer
        to begin one place after its first run of ignored labels, so that earlier revisions, without the correction by
        one, compared predictions of the next tokens. TRL's ULD (`--preset trl`) has no likelihood at all: alone, the
        distance makes a student surer of whatever it believes.
    """

    name: ClassVar[str] = "uld"
    paper: ClassVar[str] = "Boizard et al., TMLR 2025 (arXiv 2402.12030), section 3.2, eq. 5 and 6"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})
    bridges: ClassVar[bool] = True
    vanishes_at_teacher = False  # the likelihood does not
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "code": {"reduction": "sequence"}, "trl": {"likelihood": 0.0, "lmbda": 1.0}}

    class Params(Distiller.Params):
        lmbda: float = Field(1.5, ge=0, description="weight of the distance")
        likelihood: float = Field(1.0, ge=0, description="weight of the likelihood")

    def asks(self, ctx: Context) -> Needs:
        return Needs.TEXT  # `prepare` asks for more, on the teacher's own tokens

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Teacher(ctx.training.teacher_temperature))

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        return ctx.score_pieces(rollouts, "position")

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        pairs = pieces_of(rows)
        distance_n = pairs.spread(universal_logit_distance(pairs.teacher, pairs.student))
        likelihood_n = negative_log_likelihood(rows.student, rows.action_n)
        return Loss(self.params.likelihood * likelihood_n + self.params.lmbda * distance_n, {"distance": distance_n})
