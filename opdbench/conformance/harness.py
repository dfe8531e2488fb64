"""Small exact runs of a method: worlds in float64, trainers, one minibatch, its gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal, NamedTuple, get_args, get_origin

import torch
from annotated_types import Ge, Le
from pydantic.fields import FieldInfo
from torch import Tensor

from opdbench import seeds
from opdbench.actors import Actor
from opdbench.conformance.enumerable import EnumerableWorld, PrefixPolicy
from opdbench.conformance.tabular import StatePolicy, TabularTask
from opdbench.context import Context
from opdbench.distiller import Distiller
from opdbench.ledger import Ledger
from opdbench.loop import Trainer
from opdbench.policy import Policy
from opdbench.rl.world import ControlWorld
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows, RowTable, row_weights, visited
from opdbench.schema.spec import Budget, Execution, Training
from opdbench.world import World

Domain = Literal["lm", "rl"]
_DOMAINS: tuple[Domain, ...] = ("lm", "rl")
TRAINING = Training(lr=0.05, batch=8, horizon=3)
ALL = 1_000_000  # larger than any batch: nothing is cut
SEED = 7  # its first batch earns some reward, whether prompts are repeated or not: without, GRPO has nothing to learn


class Variant(NamedTuple):
    """A domain, and the parameters that differ from their defaults.

    Attributes:
        extreme: a number was moved to the end of its range, where a method may have nothing left to learn from.
    """

    domain: Domain
    overrides: dict[str, Any]
    extreme: bool = False

    def __str__(self) -> str:
        return ", ".join([self.domain, *(f"{name}={value}" for name, value in self.overrides.items())])


def variants(cls: type[Distiller]) -> Iterator[Variant]:
    """In every domain: the defaults, then one change at a time: every other choice of a parameter that is a choice, and
    both ends of one that is a share (a float with closed bounds)."""
    for domain in _DOMAINS:
        if domain in cls.domains:
            yield Variant(domain, {})
            for name, field in cls.Params.model_fields.items():
                for value in _choices(field.annotation):
                    if value != field.default:
                        yield Variant(domain, {name: value})
                for value in _ends(field):
                    if value != field.default:
                        yield Variant(domain, {name: value}, extreme=True)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if annotation is bool:
        return (False, True)
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _ends(field: FieldInfo) -> tuple[Any, ...]:
    low = [limit.ge for limit in field.metadata if isinstance(limit, Ge)]
    high = [limit.le for limit in field.metadata if isinstance(limit, Le)]
    return (*low, *high) if field.annotation is float and low and high else ()


def make_method(cls: type[Distiller], variant: Variant) -> Distiller:
    return cls(cls.Params(**variant.overrides))


def make_world(domain: Domain, *, seed: int = 0, teacher: Literal["other", "same", "none"] = "other") -> World:
    """A nearly uniform student, and a teacher with opinions, the student's very weights, or no teacher."""
    student = _policy(domain, "student", scale=0.3)
    other = {"other": _policy(domain, "teacher", scale=3.0), "same": _policy(domain, "student", scale=0.3),
             "none": None}[teacher]
    if domain == "lm":
        return EnumerableWorld(student, other, seed=seed, echo=True)
    return ControlWorld(TabularTask(), student, other, seed=seed)


def _policy(domain: Domain, role: str, *, scale: float) -> Policy:
    generator = seeds.generator(0, "conformance", role)
    if domain == "lm":
        return PrefixPolicy(generator, scale=scale)
    tables = TabularTask().tables
    return StatePolicy(tables.n_states, tables.n_actions, generator, scale=scale, n_features=4)


def make_trainer(method: Distiller, world: World, *, seed: int = SEED, training: Training = TRAINING,
                 micro_batch: int = ALL, row_chunk: int = ALL) -> Trainer:
    execution = Execution(dtype="float64", teacher_dtype="float64", micro_batch=micro_batch, row_chunk=row_chunk)
    return Trainer(method, Context(world, training, Budget(steps=ALL), execution, Ledger(), seed))


class Batch(NamedTuple):
    """What the loop has in its hands at the first update of a run."""

    method: Distiller
    ctx: Context
    rollouts: Rollouts
    """As scored, before `prepare`."""
    minibatch: Rollouts


def first_batch(cls: type[Distiller], variant: Variant, world: World) -> Batch:
    """Collect, score and prepare as the loop does, up to the first minibatch."""
    trainer = make_trainer(make_method(cls, variant), world)
    method, ctx = trainer.method, trainer.ctx
    ctx.begin_step()
    needs = method.asks(ctx)
    rollouts = ctx.score(method.collect(ctx), needs)
    minibatches = method.minibatches(method.prepare(rollouts, ctx), ctx)
    minibatch = next(minibatch for minibatch in minibatches if minibatch.n_rows)
    return Batch(method, ctx, rollouts, minibatch)


def make_rows(ctx: Context, minibatch: Rollouts) -> Rows:
    """All rows of a minibatch at once, with the graph to the student's weights."""
    student, teacher = ctx.student, ctx.teacher
    features_nh, layers_nlh = visited(student, minibatch)
    table = RowTable(minibatch, student, teacher, ctx.comparison)
    return table.chunk(features_nh, 0, len(features_nh), layers_nlh)


def gradient(method: Distiller, ctx: Context, minibatch: Rollouts) -> tuple[float, dict[str, Tensor]]:
    """The loss of a minibatch, as the loop reduces it, and its gradient by name of the student's parameter."""
    value_n = method.loss(make_rows(ctx, minibatch), ctx).value_n
    total = (value_n * row_weights(minibatch, ctx.training.reduction)).sum()
    names, parameters = zip(*ctx.student.named_parameters(), strict=True)
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return total.item(), {name: torch.zeros_like(parameter) if grad is None else grad
                          for name, parameter, grad in zip(names, parameters, found, strict=True)}


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """The largest absolute difference between two sets of tensors of the same names."""
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def pad_with_garbage(rollouts: Rollouts, steps: int) -> Rollouts:
    """The same trajectories with `steps` columns appended that nobody decided, full of misleading values."""
    def padded(name: str, value: Tensor) -> Tensor:
        if name in ("source_bt", "done_bt"):
            filler = torch.zeros_like(value[:, :1])
        elif value.is_floating_point() and name != "input_bt":
            filler = torch.full_like(value[:, :1], float("nan"))
        else:
            filler = torch.ones_like(value[:, :1])
        return torch.cat([value, *[filler] * steps], dim=1)

    fixed = {name for name in rollouts.tensors() if name.endswith("_bt")}
    names = fixed | {f"columns.{name}" for name in rollouts.step_columns}
    tensors = {name: padded(name, value) if name in names else value for name, value in rollouts.tensors().items()}
    return Rollouts.from_tensors(tensors, rollouts.step_columns)


class Unrewarded:
    """A world in which there is nothing to earn: all that a method can learn is what the teacher says."""

    def __init__(self, world: World) -> None:
        self._world = world

    def rollout(self, actor: Actor, **how: Any) -> Rollouts:
        rollouts = self._world.rollout(actor, **how)
        return replace(rollouts, reward_bt=torch.zeros_like(rollouts.reward_bt))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)


class Watched:
    """A world that counts what it hands out, to hold the ledger against."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.decisions = 0
        self.demonstrated = 0

    def rollout(self, actor: Actor, **how: Any) -> Rollouts:
        rollouts = self._world.rollout(actor, **how)
        self.decisions += rollouts.n_rows
        return rollouts

    def demonstrations(self, *, n: int, generator: torch.Generator) -> Rollouts:
        self.demonstrated += n
        return self._world.demonstrations(n=n, generator=generator)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)
