"""AlphaZero: act by search, and let the network become the search's policy and its games' outcomes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field

from opdbench.advantages import reward_to_go
from opdbench.baselines.exit import VISITS, ExIt
from opdbench.context import Context
from opdbench.critic import Critic
from opdbench.rl.planning import Searching, guided_by_student, model_of, numpy_rng
from opdbench.rl.search import Floats, States, Tree
from opdbench.rollouts import Rollouts


class AlphaZero(ExIt):  # type: ignore[misc]  # mypy cannot follow the mapping of opdbench.baselines
    """Policy and value learn from a search that they guide themselves: no teacher, no random games to the end.

        act:  a ~ n(s, .)^(1 / tau), visit counts of a search with prior pi and leaf values v
        L = (z - v(s))^2 - sum_a n(s, a) / n(s) log pi(a | s),   z the outcome of the game from s on

    The search is `exit`'s, over all running games at once. `noise` puts Dirichlet noise on the roots' priors (weight
    1/4), so that every move is tried at some time; tau is the student's sampling temperature.

    Deviations from the paper:
        v is a network of its own (the paper's shares its body with pi), fitted by Adam. Games are played against the
        task's opponents and not against itself; positions of games that a round cuts off teach pi but not v. No
        acceptance matches between old and new networks, no symmetries. L2 is AdamW's `weight_decay`.
    """

    name: ClassVar[str] = "alphazero"
    paper: ClassVar[str] = "Silver et al., Science 2018 (arXiv 1712.01815); Silver et al., Nature 2017, methods"

    class Params(ExIt.Params):  # type: ignore[misc]
        noise: float = Field(1.0, ge=0, description="concentration of the roots' Dirichlet noise; 0 is none")
        value_lr: float = Field(3e-3, gt=0, description="learning rate of v")
        value_hidden: int = Field(128, ge=0, description="hidden units of v")

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.critic = Critic(hidden=params.value_hidden, lr=params.value_lr, bounded=True)

    def collect(self, ctx: Context) -> Rollouts:
        model, rng, params = model_of(ctx), numpy_rng(ctx, "noise"), self.params

        def value(state_n: States) -> Floats:
            observation_n = torch.from_numpy(model.observe(state_n))
            return self.critic.values(observation_n).double().numpy(force=True)

        def grow(state_b: States) -> Tree:
            noise_ba = rng.dirichlet([params.noise] * model.n_actions, len(state_b)) if params.noise else None
            return Tree(model, state_b, guided_by_student(ctx, model, value), simulations=params.simulations,
                        exploration=params.exploration, root_noise_ba=noise_ba)

        actor = Searching(model, grow, ctx.training.temperature)
        rollouts = ctx.rollout(actor)
        return rollouts.with_columns(per_step={VISITS: torch.stack(actor.policies, 1).float()})

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask_bt, done_bt = rollouts.mask_bt, rollouts.done_bt
        columns = {"outcome": reward_to_go(rollouts.reward_bt, mask_bt, done_bt),
                   "known": reward_to_go(done_bt.float(), mask_bt, done_bt) > 0}
        self.data.add(ctx.separable(rollouts.with_columns(per_step=columns)))
        everything = self.data.all()
        known_n = everything.columns["known"][:, 0]
        if known_n.any():
            self.critic.fit(everything.input_bt[known_n, 0], everything.columns["outcome"][known_n, 0],
                            generator=ctx.generator("value"), steps=self.params.updates, batch=self.params.minibatch)
        return rollouts

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.critic.load_state_dict(state["critic"])
