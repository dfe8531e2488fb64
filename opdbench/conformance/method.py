"""What every method must satisfy, one named check each.

First what it says of itself; then, in each of its worlds and for every choice of its parameters that are choices, that
the real loop runs it and that its loss is what the contract promises: one value a row, pure, blind to padding, order
and cuts, repeatable, resumable, and pointing towards the teacher.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from annotated_types import Ge, Gt, Interval, Le, Lt
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from torch import Tensor

from opdbench import seeds
from opdbench.actors import Teacher
from opdbench.conformance import harness
from opdbench.conformance.check import Check, Failed, Skipped, judge, require
from opdbench.conformance.compare import copied, differences, other_random_state, random_state
from opdbench.conformance.harness import Unrewarded, Variant, Watched
from opdbench.distiller import Distiller, Needs
from opdbench.errors import UserError
from opdbench.loop import Trainer
from opdbench.rollouts import Rollouts
from opdbench.rows import Rows
from opdbench.schema.record import MEASURED_LEDGER
from opdbench.store import pack, unpack

ROUNDING = 1e-9  # float64 sums in another order
FLOAT32_ROUNDING = 1e-5  # a behaviour's log-probability is stored in float32
LEARNING_STEPS, MOST_LEARNING_STEPS = 10, 40  # ten, and ten more at a time for a method that learns slowly
LEAST_PROGRESS = 0.05  # in the probability of the teacher's action; sign errors make it fall


def check_method(cls: type[Distiller]) -> Iterator[Check]:
    """Run every check on a method, one by one.

    Args:
        cls: the class, not an instance; its parameters' defaults and their alternatives are all tried.
    """
    declared = [judge("class attributes", lambda: _check_attributes(cls)),
                judge("docstring is the method's page", lambda: _check_docstring(cls)),
                judge("parameters are documented and bounded", lambda: _check_parameters(cls)),
                judge("wrong parameters are refused", lambda: _check_refusals(cls))]
    yield from declared
    if all(check.passed for check in declared):
        for variant in harness.variants(cls):
            yield from _check_variant(cls, variant)


def _check_variant(cls: type[Distiller], variant: Variant) -> Iterator[Check]:
    """The checks that run the method; nothing else is worth saying about one that cannot take a step."""
    first = judge(f"takes a step [{variant}]", lambda: _check_step(cls, variant))
    yield first
    if not first.passed or first.message:
        return
    for name, check in _BEHAVIOUR.items():
        if variant.extreme and check in (_check_gradient, _check_learning):
            continue
        yield judge(f"{name} [{variant}]", lambda check=check: check(cls, variant))  # type: ignore[misc]


# --------------------------------------------------------------------------------------------- what it says of itself


def _check_attributes(cls: type[Distiller]) -> None:
    require(bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", getattr(cls, "name", ""))),
            "`name` must be set to lower-case words joined by hyphens, such as my-method")
    require(bool(getattr(cls, "paper", "").strip()), "`paper` must cite where the method is from, with the equation")
    require(isinstance(getattr(cls, "needs", None), Needs),
            "`needs` must be a Needs: what the teacher must reveal at default parameters")
    require(bool(cls.domains) and cls.domains <= {"lm", "rl"},
            f"`domains` must be some of 'lm' and 'rl', not {sorted(cls.domains)}")


def _check_docstring(cls: type[Distiller]) -> None:
    lines = (cls.__dict__.get("__doc__") or "").expandtabs().splitlines()
    require(bool(lines and lines[0].strip()), "the class docstring must begin with one line: what the method claims")
    equation = any(re.match(r"\s{8,}\S.*=", line) or re.match(r"\s{8,}\S.*(<-|~)", line) for line in lines[1:])
    require(equation, "the class docstring must state the equation, indented by four more spaces than the text")
    text = "\n".join(lines)
    require(bool(re.search(r"Deviations from the paper:\s*\S", text)),
            "the class docstring must have a section `Deviations from the paper:` (write None when there are none)")


def _check_parameters(cls: type[Distiller]) -> None:
    config = cls.Params.model_config
    require(config.get("extra") == "forbid" and bool(config.get("frozen")),
            "Params must derive from Distiller.Params: frozen, and refusing unknown names")
    for name, field in cls.Params.model_fields.items():
        require(not field.is_required(), f"parameter {name} has no default")
        require(bool(field.description), f"parameter {name} has no description: Field(..., description='its meaning')")
        if field.annotation in (int, float):
            require(_is_bounded(field), f"parameter {name} is a number without a bound: add ge=, gt=, le= or lt=")


def _is_bounded(field: FieldInfo) -> bool:
    return any(isinstance(limit, Ge | Gt | Le | Lt | Interval) for limit in field.metadata)


def _check_refusals(cls: type[Distiller]) -> None:
    wrong: list[dict[str, Any]] = [{"no_such_parameter": 1}]
    wrong += [{name: object()} for name in cls.Params.model_fields]
    wrong += [{name: value} for name, field in cls.Params.model_fields.items() for value in _beyond(field)]
    for values in wrong:
        try:
            cls.Params(**values)
        except ValidationError:
            continue
        raise Failed(f"Params accepts {values}, which is not valid")


def _beyond(field: FieldInfo) -> Iterator[float]:
    """Values just outside of a parameter's bounds."""
    for limit in field.metadata:
        if isinstance(limit, Ge):
            yield float(limit.ge) - 1  # type: ignore[arg-type]
        if isinstance(limit, Le):
            yield float(limit.le) + 1  # type: ignore[arg-type]
        if isinstance(limit, Gt):
            yield limit.gt  # type: ignore[misc]
        if isinstance(limit, Lt):
            yield limit.lt  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------ what it does


def _check_step(cls: type[Distiller], variant: Variant) -> None:
    """One step of the loop; a variant may have a reason not to exist in this world, the defaults may not."""
    try:
        trainer = harness.make_trainer(harness.make_method(cls, variant), harness.make_world(variant.domain))
        figures = trainer.step()
    except (UserError, ValidationError) as error:
        if variant.overrides:
            raise Skipped(error.problem if isinstance(error, UserError) else "not valid on its own") from None
        raise
    except LookupError as error:
        raise Failed(f"reads what it did not ask the teacher for: {error}; `requires()` says "
                     f"{harness.make_method(cls, variant).requires()!s}") from None
    except RuntimeError as error:
        if "does not require grad" in str(error):
            raise Failed("the loss does not depend on the student: has something been detached?") from None
        raise
    require("loss" in figures, "made no update: `minibatches` must yield at least one batch in every step")


def _check_loss(cls: type[Distiller], variant: Variant) -> None:
    """The loss is one finite value a row, and so is every scalar that it logs."""
    batch = harness.first_batch(cls, variant, harness.make_world(variant.domain))
    rows = harness.make_rows(batch.ctx, batch.minibatch)
    loss = batch.method.loss(rows, batch.ctx)
    for name, value_n in {"the loss": loss.value_n, **loss.scalars}.items():
        require(tuple(value_n.shape) == (len(rows),), f"{name} must be one value a row: expected shape ({len(rows)},), "
                                                      f"got {tuple(value_n.shape)}; the loop does the averaging")
        require(bool(value_n.isfinite().all()), f"{name} is not finite on {int((~value_n.isfinite()).sum())} of "
                                                f"{len(rows)} rows")


def _check_gradient(cls: type[Distiller], variant: Variant) -> None:
    """Every weight of the student is reached, and none of the teacher."""
    world = harness.make_world(variant.domain)
    batch = harness.first_batch(cls, variant, world)
    loss_n = batch.method.loss(harness.make_rows(batch.ctx, batch.minibatch), batch.ctx).value_n
    _, gradient = harness.gradient(batch.method, batch.ctx, batch.minibatch)
    for name, value in gradient.items():
        require(bool(value.isfinite().all()), f"the gradient of the student's {name} is not finite")
        if batch.method.requires() != Needs.HIDDEN:  # which an output layer takes no part in
            require(bool((value != 0).any()), f"no gradient reaches the student's {name}")
    require(any(bool((value != 0).any()) for value in gradient.values()), "no gradient reaches the student")
    assert world.teacher is not None
    loss_n.sum().backward()  # type: ignore[no-untyped-call]
    reached = [name for name, parameter in world.teacher.named_parameters() if parameter.grad is not None]
    require(not reached, f"the loss is differentiated in the teacher's {', '.join(reached)}")


def _check_purity(cls: type[Distiller], variant: Variant) -> None:
    """The loss depends on its rows alone, and changes nothing: no draws, no state, no input."""
    batch = harness.first_batch(cls, variant, harness.make_world(variant.domain))
    rows = harness.make_rows(batch.ctx, batch.minibatch)
    inputs, state, randomness = _contents(rows), deepcopy(batch.method.state_dict()), random_state()
    weights = copied(batch.ctx.student.state_dict())
    first_n = batch.method.loss(rows, batch.ctx).value_n.detach().clone()
    _require_same(randomness, random_state(), "`loss` draws random numbers: draw in `prepare` and add a column")
    _require_same(inputs, _contents(rows), "`loss` changes its input in place")
    _require_same(state, batch.method.state_dict(), "`loss` changes the method's state: do that in `after_step`")
    _require_same(weights, batch.ctx.student.state_dict(), "`loss` changes the student's weights: the loop does that")
    again_n = batch.method.loss(harness.make_rows(batch.ctx, batch.minibatch), batch.ctx).value_n
    require(torch.equal(first_n, again_n), f"the same rows give another loss the second time: they differ by up to "
                                           f"{(first_n - again_n).abs().max():.2g}")


def _check_prepare(cls: type[Distiller], variant: Variant) -> None:
    """`prepare` returns what it adds, and leaves the rollouts that it was given as they are."""
    trainer = harness.make_trainer(harness.make_method(cls, variant), harness.make_world(variant.domain))
    method, ctx = trainer.method, trainer.ctx
    ctx.begin_step()
    needs = method.asks(ctx)
    rollouts = ctx.score(method.collect(ctx), needs)
    before = copied(rollouts.tensors())
    method.prepare(rollouts, ctx)
    _require_same(before, rollouts.tensors(), "`prepare` changes its input in place: use `rollouts.with_columns`")


def _check_cuts(cls: type[Distiller], variant: Variant) -> None:
    """Micro-batches and chunks of rows, which only memory decides, leave every weight where it would have been."""
    whole = _weights_after(cls, variant, steps=2)
    for micro_batch, row_chunk in ((harness.ALL, 5), (3, 4)):
        cut = _weights_after(cls, variant, steps=2, micro_batch=micro_batch, row_chunk=row_chunk)
        gap = harness.difference(whole, cut)
        require(gap < ROUNDING, f"with micro_batch={micro_batch} and row_chunk={row_chunk} the weights differ by "
                                f"{gap:.2g} after two steps: what looks across rows belongs in `prepare`; a loss that "
                                "looks across the rows of a trajectory needs `row_wise = False`")


def _check_padding(cls: type[Distiller], variant: Variant) -> None:
    """What lies beyond a trajectory's length has no influence, nor has the order of trajectories."""
    batch = harness.first_batch(cls, variant, harness.make_world(variant.domain))
    loss, gradient = harness.gradient(batch.method, batch.ctx, batch.minibatch)
    turned = batch.minibatch.select(list(reversed(range(batch.minibatch.n_trajectories))))
    padded = harness.pad_with_garbage(batch.minibatch, 2)
    for what, other in (("padding", padded), ("the order of trajectories", turned)):
        other_loss, other_gradient = harness.gradient(batch.method, batch.ctx, other)
        gap = max(abs(loss - other_loss), harness.difference(gradient, other_gradient))
        require(gap < ROUNDING, f"{what} changes the loss or its gradient, by {gap:.2g}")


def _check_fixed_point(cls: type[Distiller], variant: Variant) -> None:
    """A student that equals its teacher has nothing to learn from it."""
    method = harness.make_method(cls, variant)
    needs = method.requires()
    if needs not in (Needs.FULL, Needs.SAMPLED):
        raise Skipped(f"a loss on what the teacher reveals as {needs!s} does not vanish at the teacher")
    if not method.vanishes_at_teacher:
        raise Skipped("the method says vanishes_at_teacher = False")
    batch = harness.first_batch(cls, variant, harness.make_world(variant.domain, teacher="same"))
    _, gradient = harness.gradient(batch.method, batch.ctx, batch.minibatch)
    largest = max(float(value.abs().max()) for value in gradient.values())
    require(largest < FLOAT32_ROUNDING, f"with the teacher as student the gradient is {largest:.2g} and not 0; set "
                                        "vanishes_at_teacher = False if the method also follows rewards or data")


def _check_needs(cls: type[Distiller], variant: Variant) -> None:
    """A method that asks for nothing runs where there is no teacher."""
    if harness.make_method(cls, variant).requires() != Needs.NOTHING:
        raise Skipped("it asks for a teacher, without which a run is refused before it starts")
    world = harness.make_world(variant.domain, teacher="none")
    harness.make_trainer(harness.make_method(cls, variant), world).step()


def _check_ledger(cls: type[Distiller], variant: Variant) -> None:
    """Everything that the world was asked to sample is on the ledger."""
    watched = Watched(harness.make_world(variant.domain))
    trainer = harness.make_trainer(harness.make_method(cls, variant), watched)
    for _ in range(2):
        trainer.step()
    ledger = trainer.ctx.ledger
    counted = ledger.student_tokens + ledger.teacher_tokens
    require(counted == watched.decisions, f"{watched.decisions} actions were sampled and {counted} are on the ledger: "
                                          "use `ctx.rollout`, not `ctx.world.rollout`")


def _check_solutions(cls: type[Distiller], variant: Variant) -> None:
    """A method that reads reference solutions says so, so that a task without any refuses it before the run."""
    watched = Watched(harness.make_world(variant.domain))
    trainer = harness.make_trainer(harness.make_method(cls, variant), watched)
    for _ in range(3):
        trainer.step()
    require(not watched.demonstrated or trainer.method.uses_solutions(),
            "it calls `ctx.demonstrations`, and `uses_solutions()` says that it does not")


def _check_seeds(cls: type[Distiller], variant: Variant) -> None:
    """A run is decided by its seed: not by the global random state, nor by what ran before."""
    first = _run(cls, variant, steps=2)
    with other_random_state():
        second = _run(cls, variant, steps=2)
    _require_equal(first, second, "two runs at one seed differ in {}: draw from ctx.rng and ctx.generator only")


def _check_resume(cls: type[Distiller], variant: Variant) -> None:
    """Three steps, a checkpoint on disk, and three more steps are six steps, bit for bit."""
    whole = _run(cls, variant, steps=6)
    half = _run(cls, variant, steps=3)
    resumed = harness.make_trainer(harness.make_method(cls, variant), harness.make_world(variant.domain))
    resumed.load_state_dict(unpack(pack(half.state_dict())))
    for _ in range(3):
        resumed.step()
    _require_equal(whole, resumed, "a run that was resumed differs in {}: `state_dict` must hold everything that moves")


def _check_learning(cls: type[Distiller], variant: Variant) -> None:
    """In the teacher's states, the student comes to do what the teacher would do, where no reward says otherwise."""
    method = harness.make_method(cls, variant)
    if method.requires() == Needs.NOTHING:
        raise Skipped("it does not ask the teacher")
    if method.gated_by_reward:
        raise Skipped("the method says gated_by_reward = True")
    if harness.make_method(cls, variant).requires() == Needs.HIDDEN:
        raise Skipped("it compares features, and what an output layer makes of them is the student's own")
    if harness.make_method(cls, variant).reads():
        raise Skipped("its teacher is told more than the student reads")
    probe = harness.make_world(variant.domain, seed=1)
    rollouts = probe.rollout(Teacher(), n=64, horizon=3, generator=seeds.generator(1, "conformance"))
    trainer = harness.make_trainer(harness.make_method(cls, variant), Unrewarded(harness.make_world(variant.domain)))
    before = after = _agreement(trainer, rollouts)
    while after - before <= LEAST_PROGRESS and trainer.ctx.step < MOST_LEARNING_STEPS:
        for _ in range(LEARNING_STEPS):
            trainer.step()
        after = _agreement(trainer, rollouts)
    require(after - before > LEAST_PROGRESS, f"after {trainer.ctx.step} steps the student gives the teacher's action a "
                                             f"probability of {after:.3f}, and {before:.3f} before: is a sign wrong?")


_BEHAVIOUR: Mapping[str, Callable[[type[Distiller], Variant], None]] = {
    "loss is one finite value a row": _check_loss,
    "gradient reaches the student, and only it": _check_gradient,
    "loss is pure": _check_purity,
    "prepare leaves its input alone": _check_prepare,
    "micro-batches and row chunks do not matter": _check_cuts,
    "padding and batch order do not matter": _check_padding,
    "nothing to learn from oneself": _check_fixed_point,
    "runs with what it asks for": _check_needs,
    "ledger counts every action": _check_ledger,
    "says whether it reads solutions": _check_solutions,
    "seeds reproduce": _check_seeds,
    "resumes exactly": _check_resume,
    "student moves towards the teacher": _check_learning,
}


# ----------------------------------------------------------------------------------------------------------- helpers


def _run(cls: type[Distiller], variant: Variant, *, steps: int, **cuts: int) -> Trainer:
    method, world = harness.make_method(cls, variant), harness.make_world(variant.domain)
    trainer = harness.make_trainer(method, world, **cuts)  # type: ignore[arg-type]
    for _ in range(steps):
        trainer.step()
    return trainer


def _weights_after(cls: type[Distiller], variant: Variant, *, steps: int, **cuts: int) -> dict[str, Tensor]:
    return dict(_run(cls, variant, steps=steps, **cuts).ctx.student.state_dict())


def _require_same(before: Any, after: Any, message: str) -> None:
    found = list(differences(before, after))
    require(not found, f"{message} ({', '.join(path for path in found[:5] if path) or 'global state'})")


def _require_equal(first: Trainer, second: Trainer, message: str) -> None:
    """Whole states, without what a clock measured; `message` has a place for the names of the parts that differ."""
    found = [path for path in differences(first.state_dict(), second.state_dict())
             if path.removeprefix("ledger.") not in MEASURED_LEDGER]
    require(not found, message.format(", ".join(found[:5])))


def _agreement(trainer: Trainer, rollouts: Rollouts) -> float:
    """Mean probability that the student gives to the teacher's most likely action."""
    world = trainer.ctx.world
    assert world.teacher is not None
    scored = trainer.ctx.score(rollouts, Needs.ACTION)
    with torch.no_grad():
        rows = harness.make_rows(trainer.ctx, scored)
        return float(rows.student.logp(rows.columns["teacher_action"]).exp().mean())


def _contents(rows: Rows) -> dict[str, Tensor]:
    """Copies of everything that a loss is given."""
    fixed = ("features_nh", "action_n", "source_n", "behaviour_logp_n", "reward_n")
    return copied({**{name: getattr(rows, name) for name in fixed}, **rows.columns})
