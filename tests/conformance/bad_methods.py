"""Methods with one mistake each, and the check that must find it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import Field

from opdbench.actors import Student
from opdbench.context import Context
from opdbench.distiller import Distiller, Loss, Needs
from opdbench.divergences import reverse_kl
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows


class Good(Distiller):
    """The student's own states are where the student needs its teacher.

        L = E_{s ~ q} KL(q || p)

    Deviations from the paper:
        None.
    """

    name: ClassVar[str] = "good"
    paper: ClassVar[str] = "none: made for a test"
    needs: ClassVar[Needs] = Needs.FULL
    domains: ClassVar[frozenset[str]] = frozenset({"lm"})

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.rollout(Student(ctx.training.temperature))

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(rows.teacher, rows.student))


class NoName(Good):
    __doc__ = Good.__doc__
    name: ClassVar[str] = "No Name"


class NoPage(Good):
    """It has a claim and nothing else."""


class Undocumented(Good):
    __doc__ = Good.__doc__

    class Params(Distiller.Params):
        weight: float = 1.0


class Unbounded(Good):
    __doc__ = Good.__doc__

    class Params(Distiller.Params):
        weight: float = Field(1.0, description="a number that may be anything")


class Mean(Good):
    __doc__ = Good.__doc__

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(rows.teacher, rows.student).mean())


class WholeVocabulary(Good):
    """Logs a matrix where one value a row is wanted.

        L = E_{s ~ q} KL(q || p)

    Deviations from the paper: none.
    """

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(rows.teacher, rows.student), {"p": rows.teacher.p_na})


class Greedy(Good):
    """Reads the whole distribution and asks for one number.

        L = E_{s ~ q} KL(q || p)

    Deviations from the paper: none.
    """

    needs: ClassVar[Needs] = Needs.SAMPLED


class Detached(Good):
    __doc__ = Good.__doc__

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(rows.teacher, rows.student.detach()))


class Noisy(Good):
    __doc__ = Good.__doc__

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        loss_n = reverse_kl(rows.teacher, rows.student)
        return Loss(loss_n * torch.rand(loss_n.shape))


class Counting(Good):
    """Gives another loss every time.

        L_k = (1 + k) E_{s ~ q} KL(q || p)

    Deviations from the paper: none.
    """

    calls = 0

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        self.calls += 1
        return Loss(self.calls * reverse_kl(rows.teacher, rows.student))

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class InPlace(Good):
    __doc__ = Good.__doc__

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        rows.reward_n.add_(1)
        return Loss(reverse_kl(rows.teacher, rows.student))


class PreparesInPlace(Good):
    __doc__ = Good.__doc__

    def prepare(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        rollouts.reward_bt.sub_(1)
        return rollouts


class Whitened(Good):
    """Divides by a statistic of whatever rows happen to be in the chunk.

        L = E_{s ~ q} KL(q || p) / mean KL

    Deviations from the paper: none.
    """

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        loss_n = reverse_kl(rows.teacher, rows.student)
        return Loss(loss_n / loss_n.detach().mean())


class Ascending(Good):
    """Goes uphill.

        L = - E_{s ~ q} KL(q || p)

    Deviations from the paper: none.
    """

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(-reverse_kl(rows.teacher, rows.student))


class Likelihood(Good):
    """Has a gradient even at the teacher.

        L = - E_{s ~ q} log p

    Deviations from the paper: none.
    """

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(-(rows.student.p_na * rows.teacher.logp_na).sum(-1))


class Unmetered(Good):
    __doc__ = Good.__doc__

    def collect(self, ctx: Context) -> Rollouts:
        with torch.no_grad():
            return ctx.world.rollout(Student(), n=8, horizon=3, generator=ctx.generator("mine"))


class GlobalRandomness(Good):
    __doc__ = Good.__doc__

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        yield rollouts.select(torch.randperm(rollouts.n_trajectories)[:4])


class Forgetful(Good):
    """Anneals, and forgets how far it is.

        L_k = E_{s ~ q} KL(q || p) / (1 + k)

    Deviations from the paper: none.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.updates = 0

    def after_step(self, ctx: Context) -> None:
        self.updates += 1

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(reverse_kl(rows.teacher, rows.student) / (1 + self.updates))


class Idle(Good):
    __doc__ = Good.__doc__

    def minibatches(self, rollouts: Rollouts, ctx: Context) -> Iterator[Rollouts]:
        yield from ()


class Teacherless(Good):
    """Claims to need no teacher, and lets it act.

        L = E_{s ~ p} - log q

    Deviations from the paper: none.
    """

    needs: ClassVar[Needs] = Needs.NOTHING

    def collect(self, ctx: Context) -> Rollouts:
        from opdbench.actors import Teacher

        return ctx.rollout(Teacher())

    def loss(self, rows: Rows, ctx: Context) -> Loss:
        return Loss(-rows.student.logp(rows.action_n))


class Solutions(Good):
    __doc__ = Good.__doc__

    def collect(self, ctx: Context) -> Rollouts:
        return ctx.demonstrations()


class Mistake(NamedTuple):
    method: type[Distiller]
    check: str
    """Beginning of the name of the check that must fail."""
    message: str
    """Part of what it must say."""


MISTAKES = (
    Mistake(NoName, "class attributes", "lower-case words"),
    Mistake(NoPage, "docstring", "equation"),
    Mistake(Undocumented, "parameters", "weight has no description"),
    Mistake(Unbounded, "parameters", "weight is a number without a bound"),
    Mistake(Mean, "takes a step", "one value a row"),
    Mistake(WholeVocabulary, "loss is one finite value", "p must be one value a row"),
    Mistake(Greedy, "takes a step", "did not ask the teacher for"),
    Mistake(Detached, "takes a step", "has something been detached?"),
    Mistake(Noisy, "loss is pure", "draws random numbers"),
    Mistake(Counting, "loss is pure", "changes the method's state"),
    Mistake(InPlace, "loss is pure", "changes its input in place (reward_n)"),
    Mistake(PreparesInPlace, "prepare leaves", "changes its input in place"),
    Mistake(Whitened, "micro-batches", "belongs in `prepare`"),
    Mistake(Ascending, "student moves", "is a sign wrong?"),
    Mistake(Likelihood, "nothing to learn", "vanishes_at_teacher = False"),
    Mistake(Unmetered, "ledger", "0 are on the ledger"),
    Mistake(Solutions, "says whether", "`uses_solutions()` says that it does not"),
    Mistake(GlobalRandomness, "seeds reproduce", "two runs at one seed differ in student"),
    Mistake(Forgetful, "resumes", "`state_dict` must hold everything that moves"),
    Mistake(Idle, "takes a step", "made no update"),
    Mistake(Teacherless, "runs with what it asks for", ""),
)
