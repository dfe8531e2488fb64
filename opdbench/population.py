"""Population based training: students of one method that are trained side by side, and settings that evolve with them.

    exploit:  a member that another one, drawn at random, beats significantly takes over its weights and its settings
    explore:  and then changes the settings a little                      (Jaderberg et al. 2017, arXiv 1711.09846)

A method asks for it by saying what `Evolves` says. Its members take turns, a round of the loop each, on one ledger: a
budget counts what all of them spend. They share the task and the teacher; each has environments, draws and an optimizer
of its own. The run's student is the member with the best returns of late, in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from statistics import fmean, variance
from typing import Any, Protocol, Self, runtime_checkable

from opdbench.context import Context
from opdbench.copies import averages
from opdbench.distiller import Distiller
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.policy import Policy
from opdbench.probes.base import Probe


@runtime_checkable
class Evolves(Protocol):
    """What a method says besides, that is to be trained as a population.

    Attributes:
        members: how many students; at least 2.
        interval: rounds of each between two comparisons.
    """

    @property
    def members(self) -> int: ...

    @property
    def interval(self) -> int: ...

    def recent(self) -> Sequence[float]:
        """What this member's last episodes earned; empty when nothing is known."""

    def adopt(self, other: Self, rng: Random) -> None:
        """Take over another member's settings, changed a little; what is known of one's own returns is void."""


class Population:
    """Trainers of one method that take turns; to `opdbench.run` it is one trainer."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self.trainers = list(trainers)
        self.ctx, self.probes = trainers[0].ctx, trainers[0].probes

    @property
    def finished(self) -> bool:
        return self.ctx.progress >= 1

    @property
    def best(self) -> int:
        """The number of the member whose last episodes earned most; the first of equals, and while nothing is known."""
        means = [fmean(returns) if (returns := _method(trainer).recent()) else float("-inf")
                 for trainer in self.trainers]
        return means.index(max(means))

    @property
    def student(self) -> Policy:
        return self.trainers[self.best].ctx.student

    def step(self) -> dict[str, float]:
        """One round of the member whose turn it is; after the last one's, perhaps a comparison. See `Trainer.step`."""
        number = self.ctx.step % len(self.trainers)
        figures = self.trainers[number].step()
        rounds, waiting = divmod(self.ctx.step, len(self.trainers))
        replaced = 0
        if not waiting and rounds % _method(self.trainers[0]).interval == 0:
            replaced = self.evolve(self.ctx.rng("population"))
        return {**figures, "member": float(number), "replaced": float(replaced), "best": float(self.best)}

    def evolve(self, rng: Random) -> int:
        """Every member in turn meets another one, and becomes a copy where it is beaten; returns how many did."""
        replaced = 0
        for number, trainer in enumerate(self.trainers):
            other = self.trainers[rng.choice([index for index in range(len(self.trainers)) if index != number])]
            if beats(_method(other).recent(), _method(trainer).recent()):
                trainer.adopt(other)
                _method(trainer).adopt(_method(other), rng)
                replaced += 1
        return replaced

    def state_dict(self) -> dict[str, Any]:
        return {"members": [trainer.state_dict() for trainer in self.trainers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for trainer, saved in zip(self.trainers, state["members"], strict=True):
            trainer.load_state_dict(saved)


def start(new_method: Callable[[], Distiller], ctx: Context, probes: Sequence[Probe] = ()) -> Trainer | Population:
    """The trainer of a method, or a population where it asks for one; probes watch the first member.

    Raises:
        UserError: the teacher follows a student, and there are several; or it is no control task.
    """
    from opdbench.rl.world import ControlWorld

    method = new_method()
    first = Trainer(method, ctx, probes)
    if not isinstance(method, Evolves):
        return first
    if averages(ctx.world.teacher):
        raise UserError(f"the teacher follows the student, and {method.name} trains {method.members} students",
                        "name a teacher that does not move")
    if not isinstance(ctx.world, ControlWorld):
        raise UserError(f"{method.name} trains a population, and {ctx.world.task.id} is no control task",
                        "choose a control task (opdbench list tasks)")
    others = [ctx.member(number, ctx.world.twin) for number in range(1, method.members)]
    return Population([first, *(Trainer(new_method(), other) for other in others)])


def beats(theirs: Sequence[float], mine: Sequence[float], level: float = 0.05) -> bool:
    """Whether their mean is larger, by Welch's one-sided test at `level`; not with fewer than two returns on a side."""
    if min(len(theirs), len(mine)) < 2 or fmean(theirs) <= fmean(mine):
        return False
    parts = [variance(returns) / len(returns) for returns in (theirs, mine)]
    if sum(parts) == 0:
        return True
    from scipy.special import stdtr

    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(theirs) - 1) + parts[1] ** 2 / (len(mine) - 1))
    return float(stdtr(freedom, (fmean(mine) - fmean(theirs)) / sum(parts) ** 0.5)) < level


def _method(trainer: Trainer) -> Evolves:
    assert isinstance(trainer.method, Evolves)
    return trainer.method
