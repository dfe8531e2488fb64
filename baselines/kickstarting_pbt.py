"""Kickstarting whose weights of the teachers are tuned while it trains, by a population of students."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from opdbench.baselines.kickstarting import Kickstarting
from opdbench.context import Context
from opdbench.episodes import EpisodeReturns
from opdbench.rollouts import Rollouts
from opdbench.rows import TEACHER_FEATURES, TEACHER_LOGITS
from opdbench.teachers import Mixture


class KickstartingPBT(Kickstarting):  # type: ignore[misc]  # mypy does not see through the mapping of baselines/
    """When to let go of which teacher is found by selection, among students that differ in how much they listen.

        L_m = L_PPO + sum_i lambda_mi H(p_i(. | s), q_m(. | s)),    members m = 1 .. population
        lambda_mi = weight share_i spread^u,  u ~ U(-1, 1)          at the start
        exploit:  m meets another member n, drawn at random; if its last `window` episodes earned significantly more
                  (Welch's test, 5%), m takes over the weights of n, its optimizer and its lambda
        explore:  lambda_mi <- lambda_ni (1 + perturb) or lambda_ni (1 - perturb), a coin each

    Teachers are those of `--teacher mix:A=0.7,B=0.3`, with their shares; the sum of their cross-entropies is computed
    as Lambda H(sum_i lambda_i p_i / Lambda, q), which is the same. A budget counts the rounds of all members, and what
    the run hands on is the member that earned most of late, in training. See `opdbench.population`.

    Deviations from the paper:
        PPO in place of IMPALA, as in `kickstarting`. Learning rate and entropy cost are not tuned. The test and the
        factors 1.2 and 0.8 are Jaderberg et al.'s; the size of the population, the interval, the window and the first
        spread are ours. Members start from one student, and take turns. With weight 0 each is `ppo` to the bit.
    """

    name: ClassVar[str] = "kickstarting-pbt"
    paper: ClassVar[str] = ("Schmitt et al. 2018 (arXiv 1803.03835), section 3; Jaderberg et al. 2017 (arXiv "
                            "1711.09846), t-test selection")

    class Params(Kickstarting.Params):  # type: ignore[misc]
        decay: Literal["linear", "exponential", "constant"] = Field(
            "constant", description="a schedule that every member's lambda is multiplied with: see kickstarting")
        population: int = Field(4, ge=2, description="students")
        interval: int = Field(10, ge=1, description="rounds of each student between two comparisons")
        window: int = Field(10, ge=2, description="episodes that a comparison looks back on")
        spread: float = Field(4.0, ge=1, description="first lambdas lie between weight / spread and weight x spread")
        perturb: float = Field(0.2, ge=0, lt=1, description="share by which a lambda is changed that is taken over")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.factors: list[float] = []  # of each teacher's weight; what evolves
        self.returns = EpisodeReturns(params.window)
        self._joins = False  # whether running episodes were begun by a student that has been replaced

    @property
    def members(self) -> int:
        return int(self.params.population)

    @property
    def interval(self) -> int:
        return int(self.params.interval)

    def build(self, ctx: Context) -> None:
        super().build(ctx)
        rng = ctx.rng("lambda")
        self.factors = [self.params.spread ** rng.uniform(-1, 1) for _ in _shares(ctx)]

    def weights(self, ctx: Context) -> list[float]:
        """Every teacher's lambda."""
        weight = super().teacher_weight(ctx)
        return [weight * share * factor for share, factor in zip(_shares(ctx), self.factors, strict=True)]

    def teacher_weight(self, ctx: Context) -> float:
        return sum(self.weights(ctx))

    @torch.no_grad()
    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        if self._joins:
            self.returns.join(rollouts)
            self._joins = False
        self.returns.add(rollouts)
        for number, weight in enumerate(self.weights(ctx)):
            ctx.note(f"lambda_{number}", weight)
        prepared: Rollouts = super().prepare(rollouts, ctx)
        teacher = ctx.world.teacher
        if not isinstance(teacher, Mixture) or TEACHER_FEATURES not in prepared.columns:
            return prepared
        features_bth = prepared.columns[TEACHER_FEATURES]
        logits_na = teacher.project(features_bth.flatten(0, 1), self.weights(ctx))
        return prepared.with_columns(per_step={TEACHER_LOGITS: logits_na.view(*features_bth.shape[:2], -1)})

    def recent(self) -> Sequence[float]:
        return self.returns.last

    def adopt(self, other: KickstartingPBT, rng: Random) -> None:
        perturb = self.params.perturb
        self.factors = [factor * rng.choice((1 + perturb, 1 - perturb)) for factor in other.factors]
        self.returns, self._joins = EpisodeReturns(self.params.window), True

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "factors": self.factors, "returns": self.returns.state_dict(),
                "joins": self._joins}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.factors, self._joins = list(state["factors"]), bool(state["joins"])
        self.returns.load_state_dict(state["returns"])


def _shares(ctx: Context) -> Sequence[float]:
    teacher = ctx.world.teacher
    return teacher.weights if isinstance(teacher, Mixture) else (1.0,)
