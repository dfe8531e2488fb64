"""What a student of several games keeps of each while it learns the others."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean
from typing import Any

from opdbench.context import Context
from opdbench.errors import UserError
from opdbench.probes.base import Look, Probe
from opdbench.stats import continual

EPISODES = 20  # of each game, at each look


class Forgetting(Probe):
    """Greedy validation scores of every game at the start and whenever another equal share of the budget is spent, as
    many as there are games; at the end forgetting, backward and forward transfer (`opdbench.stats.continual`), which
    are those of a method that learns the games one after another in these shares. With a budget of `steps` a look is
    exactly where a share ends; on other axes the batch that is being learnt from counts already."""

    def begin(self, ctx: Context) -> None:
        if not ctx.world.task.games():
            raise UserError(f"probe {self.name} looks at several games, and {ctx.world.task.id} is one",
                            "leave it out, or choose a task such as several:cartpole+acrobot")

    def looks(self, ctx: Context) -> int:
        return len(ctx.world.task.games())

    def figures(self, look: Look) -> dict[str, float]:
        return self._scores(look.ctx)

    def summary(self, ctx: Context) -> dict[str, Any]:
        names = [game.name for game in ctx.world.task.games()]
        if ctx.progress < 1 or len(self.series) != len(names):
            return {}
        final = self._scores(ctx)
        score_kj = [[row[name] for name in names] for row in (*self.series, final)]
        return {"at_the_end": final, "mean_score": fmean(final.values()), "forgetting": continual.forgetting(score_kj),
                "backward_transfer": continual.backward_transfer(score_kj),
                "forward_transfer": continual.forward_transfer(score_kj)}

    def _scores(self, ctx: Context) -> dict[str, float]:
        """The mean score of each game, by name."""
        found = defaultdict(list)
        for outcome in ctx.world.evaluate(ctx.student, split="validation", mode="greedy", n=EPISODES, seed=0):
            found[outcome.id.rpartition("/")[0]].append(outcome.score)
        return {name: fmean(scores) for name, scores in found.items()}
