"""Sequence-level knowledge distillation: maximum likelihood of what the teacher would answer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from opdbench.actors import Teacher
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import forward_kl, negative_log_likelihood
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class SeqKD(Distiller):
    """The mode of the teacher's distribution over whole sequences is an easier target than its tokens one by one.

        L = - (1 - w) log q(y^ | x) + w sum_t KL(p(. | y^_<t, x) || q(. | y^_<t, x)),   y^ = argmax_y p(y | x)

    With w = 0 this is fine-tuning on the teacher's outputs and needs nothing but its text. `decode=sample` draws
    y ~ p(y | x) instead of its mode: then the expected loss is the KL between whole sequences, up to a constant.

    Deviations from the paper:
        The mode is approximated by taking the most likely action at every step (a beam of 1; the paper's is 5), and
        decoded anew each time its prompt comes round, so that what it costs is on the ledger.
        `--preset code` is MiniLLM's script: samples at temperature 1, and word-level distillation on them at one half.
        TRL's `seq_kd` is another thing again (a JSD on teacher samples): gkd with lmbda=0.
    """

    name: ClassVar[str] = "seqkd"
    paper: ClassVar[str] = "Kim and Rush, EMNLP 2016 (arXiv 1606.07947), section 3.2, L_SEQ-KD; 3.3 for w > 0"
    needs: ClassVar[Needs] = Needs.TEXT
    compares: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"code": {"decode": "sample", "word_level": 0.5}}

    class Params(Distiller.Params):
        decode: Literal["greedy", "sample"] = Field(
            "greedy", description="the teacher's output: its most likely actions, or a draw at teacher_temperature")
        word_level: float = Field(0.0, ge=0, le=1, description="w, weight of word-level distillation on the outputs")

    vanishes_at_teacher = False  # the likelihood of a sample has a gradient at the teacher, zero only in its mean

    def requires(self) -> Needs:
        return Needs.TEXT if self.params.word_level == 0 else Needs.FULL

    def collect(self, ctx: Context) -> Rollouts:
        greedy = self.params.decode == "greedy"
        return ctx.rollout(Teacher(0.0 if greedy else ctx.training.teacher_temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        weight = self.params.word_level
        likelihood_n = negative_log_likelihood(rows.student, rows.action_n)
        if weight == 0:
            return Loss(likelihood_n)
        return Loss((1 - weight) * likelihood_n + weight * forward_kl(*rows.pair()))
