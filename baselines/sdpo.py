"""Self-distillation policy optimisation: attempts are judged by a model that has seen one that was right."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.copies import SelfTeacher
from opdbench.distiller import Loss
from opdbench.divergences import forward_kl, generalized_jsd, reverse_kl
from opdbench.errors import UserError
from opdbench.policy_gradient import reinforce
from opdbench.privilege import feedback, informed, outcome, siblings
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.self_taught import SelfTaught
from opdbench.support import Comparison, Kind, Tail
from opdbench.task import NoteKind


class SDPO(SelfTaught):
    """A sibling that succeeded, or what the environment said, turns a single bit of reward into a dense signal.

        L = mean_t w_t [ (1 - alpha) KL(q || m) + alpha KL(p || m) ],   m = (1 - alpha) q + alpha p,
        w_t = min(q(y_t) / q_old(y_t), 2),  held constant;      c = a right answer of the group, or feedback on y

    p is a moving average of the student that is told c. alpha = 0 is the forward KL, alpha = 1 the reverse. Both sides
    are compared on the student's `top_k` actions and "anything else". Answers with nothing to tell (no sibling was
    right, no feedback) are left out of the mean; a batch of nothing else makes no update.

    Deviations from the paper:
        Defaults are the official run's (actor.yaml); the dataclass beside it has alpha 0, no top_k and threshold 1.
        The average's rate is 0.05 there and 0.01 in the script with rich feedback, under a key that nothing reads.
        TRL's SDPO is `--preset trl`, another algorithm: sampled tokens. No correction of the sampler's own rounding.
    """

    name: ClassVar[str] = "sdpo"
    paper: ClassVar[str] = "Hübotter et al. 2026 (arXiv 2601.20802), objective; official core_algos.py"
    presets: ClassVar[dict[str, dict[str, Any]]] = {"trl": {"estimator": "sampled", "alpha": 1.0}}

    class Params(SelfTaught.Params):
        alpha: float = Field(0.5, ge=0, le=1, description="the teacher's share of m; 0: forward KL, 1: reverse KL")
        estimator: Literal["distribution", "sampled"] = Field(
            "distribution", description="compare distributions, or only the tokens that were written (alpha = 1)")
        support: Kind = Field("student", description="actions that are compared: all, or the top_k of whom")
        top_k: int = Field(100, ge=1, description="size of the support")
        tail: Tail = Field("bucket", description="what lies outside of it")
        group: int = Field(8, ge=1, description="answers to each prompt; divides the batch")
        threshold: float = Field(0.5, ge=0, description="a reward from which on an answer is a success")
        feedback: Literal["without success", "always", "never"] = Field(
            "without success", description="when the task's feedback on the answer itself is told")
        rate: float = Field(0.05, ge=0, le=1, description="how fast the teacher follows the student")
        ratio: float = Field(2.0, gt=0, description="the most that an importance ratio counts")

        @model_validator(mode="after")
        def _sampled_is_reverse(self) -> SDPO.Params:
            if self.estimator == "sampled" and self.alpha != 1:
                raise ValueError("estimator=sampled knows the reverse KL only: alpha=1")
            return self

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.teacher = SelfTeacher(params.rate)

    def collect(self, ctx: Context) -> Rollouts:
        if self.params.group == 1 and self.params.feedback == "never":
            raise UserError(f"{self.name}: an answer alone has no siblings, and there is no feedback to tell",
                            "--set group=8, or --set feedback=always")
        return ctx.rollout(Student(ctx.training.temperature), repeat=self.params.group)

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        prompts = informed(ctx, rollouts, self.contexts(rollouts, ctx))
        scored = ctx.score_under(rollouts, prompts, policy=self.teacher.of(ctx.student))
        kept = [index for index, prompt in enumerate(prompts) if prompt is not None]
        ctx.note("without_context", len(prompts) - len(kept))
        return scored.select(kept)

    def contexts(self, rollouts: Rollouts, ctx: Context) -> list[dict[NoteKind, str] | None]:
        """What the teacher is told about every answer; None where there is nothing."""
        texts, heard = ctx.prompts.written(rollouts), feedback(ctx, rollouts)
        found: list[dict[NoteKind, str] | None] = []
        for index, others in enumerate(siblings(outcome(rollouts), rollouts.columns["group"], self.params.threshold)):
            notes: dict[NoteKind, str] = {"success": texts[others.successes[0]]} if others.successes else {}
            said, when = heard[index], self.params.feedback
            if said is not None and (when == "always" or (when == "without success" and not notes)):
                notes["feedback"] = said
            found.append(notes or None)
        return found

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        params, logq_n = self.params, rows.student.logp(rows.action_n)
        if params.estimator == "sampled":
            value_n = reinforce(logq_n, rows.teacher_logp_n - logq_n)
        else:
            sides = rows.pair(Comparison(params.support, params.top_k, params.tail))
            ends = {0.0: forward_kl, 1.0: reverse_kl}
            value_n = (ends[params.alpha](*sides) if params.alpha in ends
                       else generalized_jsd(*sides, params.alpha))
        ratio_n = (logq_n.detach() - rows.behaviour_logp_n).exp()
        return Loss(ratio_n.clamp(max=params.ratio) * value_n, {"importance_ratio": ratio_n})
