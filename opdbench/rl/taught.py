"""Teachers of pixels that were taught themselves, by a player that sees as numbers what pixels only show.

Chen et al. 2019 (arXiv 1912.12294) call it learning by cheating: the player that sees more learns by trial and error in
minutes, and is imitated in the states that pixels' network visits. That is on-policy distillation, and it is done here
with the suite's own world, trainer and methods. While it learns, the network's states carry what the other player sees
in one more row of pixels, which it does not look at itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from opdbench.policy import Policy
from opdbench.rl.conv_policy import ConvPolicy

if TYPE_CHECKING:
    from opdbench.rl.train_teacher import Progress, TaughtRecipe
    from opdbench.task import ControlTask


def learn(task: ControlTask, recipe: TaughtRecipe, *, steps: int, seed: int, progress: Progress | None = None
          ) -> tuple[ConvPolicy, int]:
    """A network that imitates the recipe's guide, and the environment steps that it took.

    Args:
        progress: called after every round with the steps done, all of them, and the KL to the guide.

    Raises:
        UserError: the guide is missing or cannot be read, or the environment cannot be made.
    """
    from opdbench import models, registry, seeds
    from opdbench.context import Context
    from opdbench.ledger import Ledger
    from opdbench.loop import Trainer
    from opdbench.rl.load import load_policy
    from opdbench.rl.world import ControlWorld
    from opdbench.schema.spec import Budget, Execution, Training

    guide = load_policy(models.resolve(recipe.guide, role="teacher", task=task))
    view = task.guided()
    network = ConvPolicy.named(recipe.network, view.simulators.n_actions,
                               generator=seeds.generator(seed, "student", "initialisation"))
    network.network.in_bfloat16 = True
    world = ControlWorld(task, _Below(network, lambda seen_n: seen_n[:, :, :-1]), _Below(guide, view.numbers),
                         seed=seed, make=lambda _: view.simulators)
    method = registry.load("method", recipe.method)
    ctx = Context(world, Training(**recipe.training), Budget(tokens=steps), Execution(), Ledger(), seed)
    trainer = Trainer(method(method.Params(**recipe.params)), ctx)
    while not trainer.finished:
        figures = trainer.step()
        if progress is not None:
            progress(int(ctx.ledger.spent("tokens")), steps, figures["forward_kl"])
    return network, int(ctx.ledger.spent("tokens"))


class _Below(Policy):
    """A policy of one part of states [N, S, H + 1, W]: of the pictures, or of the numbers in the row below them."""

    def __init__(self, inner: Policy, part: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self._part = inner, part
        self.n_actions, self.n_features = inner.n_actions, inner.n_features

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        batch, horizon = input_bt.shape[:2]
        part_nt = self._part(input_bt.flatten(0, 1))[:, None]
        feature_nth = self.inner.features(part_nt, torch.ones(len(part_nt), dtype=torch.int64))
        return feature_nth.view(batch, horizon, -1)

    def project(self, features_nh: Tensor) -> Tensor:
        return self.inner.project(features_nh)

    def forward_flops(self, n_states: int, context: float) -> float:
        return self.inner.forward_flops(n_states, context)

    def save(self, folder: Path) -> None:
        self.inner.save(folder)
