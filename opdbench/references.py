"""What `--teacher` may name besides one model: several, some quantised, or the student itself.

    FOLDER, owner/name, chain-sum/teacher       one model (opdbench.models)
    int8:MODEL, nf4:MODEL                       its linear layers in 8 or 4 bits
    mix:MODEL=0.7,MODEL=0.3                     probabilities mixed with these weights, which sum to one
    route:FIELD:VALUE=MODEL,VALUE=MODEL         by what a problem's `meta` says under FIELD
    route:game:NAME=MODEL,NAME=MODEL            by game, in a task of several
    student                                     a frozen copy of the starting student
    ema:0.99                                    the student's exponential moving average
    exact                                       computed from the rules of a control task that can

`--student` may name a model, or on a control task a network that is initialised from the run's seed:

    fresh:64x64                                 of these hidden layers, in place of the task's own

Quantisation is part of which teacher it is, not of how it is computed: four bits move its probabilities by far more
than rounding does, so a run with such a teacher is another recipe.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

from opdbench import models
from opdbench.errors import UserError
from opdbench.schema.spec import ModelRef
from opdbench.task import ControlTask, LanguageTask, Task

Quantisation = Literal["int8", "nf4"]
_QUANTISED = ("int8", "nf4")
_FRESH = "fresh:"
_WIDTHS = re.compile(r"[1-9]\d{0,3}(x[1-9]\d{0,3})*")
GAMES = "route:game:"  # how a teacher for each of several games begins
MOST_ROUTES = 256  # their numbers lie among the features, which may be bfloat16


class Model(NamedTuple):
    """Files on this machine."""

    path: Path
    activation: str | None = None
    quantisation: Quantisation | None = None


class Copy(NamedTuple):
    """The student as it was at the start, or its moving average when there is a decay."""

    decay: float | None = None


class Exact(NamedTuple):
    """What follows from a control task's own rules."""


class Mix(NamedTuple):
    """Probabilities of several teachers, mixed."""

    parts: tuple[Teacher, ...]
    weights: tuple[float, ...]


class Route(NamedTuple):
    """One teacher for each value that the problems' `meta` has under `field`."""

    parts: tuple[Teacher, ...]
    field: str
    values: tuple[str, ...]


Teacher: TypeAlias = Model | Copy | Exact | Mix | Route


class Named(NamedTuple):
    """A teacher, and how a recipe names it."""

    ref: ModelRef
    teacher: Teacher


def is_fresh(reference: str | None) -> bool:
    """Whether a student's reference asks for a new network."""
    return reference is not None and reference.startswith(_FRESH)


def fresh_widths(reference: str) -> tuple[int, ...] | None:
    """The hidden layers of `fresh:64x64`, as it is asked for, or of `fresh 64x64`, as a recipe has it; none of a table;
    None where a recipe names the task's own network (`fresh net3`).

    Raises:
        UserError: no widths are stated.
    """
    widths = reference.removeprefix(_FRESH).removeprefix("fresh ")
    if widths == "table":
        return ()
    if not _WIDTHS.fullmatch(widths):
        if not is_fresh(reference):
            return None
        raise UserError(f"{reference} does not say the widths of hidden layers", "write them like fresh:64x64")
    return tuple(map(int, widths.split("x")))


def as_new(reference: str | None) -> str | None:
    """What a user calls `fresh:64x64`, as a recipe has it; any other reference as it is."""
    return f"fresh {reference.removeprefix(_FRESH)}" if reference and is_fresh(reference) else reference


def fresh(network: Sequence[int] | str) -> str:
    """How a recipe names a new network: by its hidden layers, or by the name that the task has for it."""
    return f"fresh {network if isinstance(network, str) else 'x'.join(map(str, network)) or 'table'}"


def model(reference: str, role: models.Role, task: Task) -> tuple[ModelRef, Model]:
    """A model by what it contains; `model.zip#relu` also states a network's activation, which counts as content."""
    name, _, activation = reference.partition("#")
    path = models.resolve(name, role=role, task=task)
    digest = models.checksum(path)
    if activation:
        digest = _sha256(f"{digest}#{activation}")
    return ModelRef(reference=reference, sha256=digest), Model(path, activation or None)


def teacher(reference: str, task: Task, student: ModelRef) -> Named:
    """What `reference` names, in the grammar above.

    Raises:
        UserError: it breaks the grammar, names a model that is not there, or makes no sense for the task.
    """
    kind, _, rest = reference.partition(":")
    if kind == "mix":
        return _mix(reference, rest, task, student)
    if kind == "route":
        return _route(reference, rest, task, student)
    return _one(reference, task, student)


def leaves(named: Teacher) -> list[Model | Copy | Exact]:
    """The single teachers that it is made of."""
    return [leaf for part in named.parts for leaf in leaves(part)] if isinstance(named, Mix | Route) else [named]


def _one(reference: str, task: Task, student: ModelRef) -> Named:
    kind, _, rest = reference.partition(":")
    if reference == "student":
        return Named(ModelRef(reference=reference, sha256=student.sha256), Copy())
    if reference == "exact":
        return _exact(task)
    if kind == "ema":
        decay = _number(rest)
        if decay is None or not 0 < decay < 1:
            raise UserError(f"--teacher {reference} needs a decay between 0 and 1",
                            "--teacher ema:0.99, or --teacher student for a copy that never moves")
        return Named(ModelRef(reference=reference, sha256=_sha256(f"ema:{decay!r} {student.sha256}")), Copy(decay))
    if kind in ("http", "https"):
        raise UserError(f"--teacher: {reference} is a server, which cannot be part of a mix or a route",
                        "pass that server alone, or name models whose weights are here")
    if re.match(r"[\w.-]+:\d+($|[/#])", reference):
        raise UserError(f"--teacher {reference} looks like the address of a server", f"--teacher http://{reference}")
    if kind in ("mix", "route"):
        raise UserError(f"--teacher: {reference} stands inside another mix or route, which cannot be nested",
                        "name single models inside")
    if kind in _QUANTISED:
        return _quantised(reference, kind, rest, task)
    ref, found = model(reference, "teacher", task)
    return Named(ref, found)


def _exact(task: Task) -> Named:
    if not isinstance(task, ControlTask) or type(task).exact_teacher is ControlTask.exact_teacher:
        raise UserError(f"--teacher exact: nothing computes an exact teacher for {task.id}",
                        f"leave it out for the task's own, {task.teacher}" if task.teacher else "name a model")
    return Named(ModelRef(reference="exact", sha256=_sha256(f"exact {task.checksum()}")), Exact())


def _quantised(reference: str, kind: str, rest: str, task: Task) -> Named:
    if not rest:
        raise UserError(f"--teacher {reference} names no model", f"--teacher {kind}:MODEL")
    if not isinstance(task, LanguageTask):
        raise UserError(f"--teacher {reference}: quantisation is for language models, and {task.id} is a control task",
                        f"--teacher {rest}")
    ref, found = model(rest, "teacher", task)
    return Named(ModelRef(reference=reference, sha256=_sha256(f"{kind} {ref.sha256}")),
                 found._replace(quantisation=cast(Quantisation, kind)))


def _mix(reference: str, rest: str, task: Task, student: ModelRef) -> Named:
    how = "such as --teacher mix:A=0.5,B=0.5 (fractions such as 1/3 will do)"
    pairs = _pairs(reference, rest, how, lambda part: part.rpartition("="))
    numbers = [_number(weight) for _, weight in pairs]
    weights = [number for number in numbers if number is not None and number > 0]
    if len(weights) < len(numbers):
        wrong = next(weight for (_, weight), number in zip(pairs, numbers, strict=True) if not (number and number > 0))
        raise UserError(f"--teacher {reference}: the weight {wrong!r} is not a positive number", how)
    if not math.isclose(sum(weights), 1, abs_tol=1e-9):
        raise UserError(f"--teacher {reference}: the weights sum to {sum(weights):g} and not to 1", how)
    named = [_one(name, task, student) for name, _ in pairs]
    content = "".join(f"{part.ref.sha256}={weight!r}\n" for part, weight in zip(named, weights, strict=True))
    ref = ModelRef(reference=reference, sha256=_sha256(f"mix\n{content}"), parts=tuple(part.ref for part in named))
    return Named(ref, Mix(tuple(part.teacher for part in named), tuple(weights)))


def _route(reference: str, rest: str, task: Task, student: ModelRef) -> Named:
    how = "such as --teacher route:subject:algebra=A,geometry=B"
    field, _, parts = rest.partition(":")
    pairs = [(name, value) for value, name in _pairs(reference, parts, how, lambda part: part.partition("="))]
    values = [value for _, value in pairs]
    if len(set(values)) < len(values):
        raise UserError(f"--teacher {reference} names two teachers for one value", how)
    if len(values) > MOST_ROUTES:
        raise UserError(f"--teacher {reference[:60]}... names {len(values)} teachers", f"name at most {MOST_ROUTES}")
    _check_routes(reference, field, values, task)
    named = [_one(name, task, student) for name, _ in pairs]
    content = "".join(f"{value}={part.ref.sha256}\n" for value, part in zip(values, named, strict=True))
    ref = ModelRef(reference=reference, sha256=_sha256(f"route {field}\n{content}"),
                   parts=tuple(part.ref for part in named))
    return Named(ref, Route(tuple(part.teacher for part in named), field, tuple(values)))


def _check_routes(reference: str, field: str, values: list[str], task: Task) -> None:
    """Every problem of the task, or every game, must have a teacher, before anything is started."""
    if task.games():
        _check_games(reference, field, values, [game.name for game in task.games()])
        return
    if not isinstance(task, LanguageTask):
        raise UserError(f"--teacher {reference}: a control task has no problems to route by",
                        "--teacher mix:A=0.5,B=0.5")
    for split in ("train", "validation", "test"):
        for example in task.examples(split):
            if field not in example.meta:
                known = ", ".join(sorted(example.meta)) or "nothing"
                raise UserError(f"--teacher {reference}: problem {example.id} of {task.id} does not say its {field!r}",
                                f"route by what its problems say: {known}")
            if str(example.meta[field]) not in values:
                raise UserError(f"--teacher {reference} names no teacher for {field} = {example.meta[field]}, which "
                                f"problem {example.id} of {task.id} has", f"add {example.meta[field]}=MODEL")


def _check_games(reference: str, field: str, values: list[str], games: list[str]) -> None:
    how = f"--teacher {GAMES}{','.join(f'{game}=MODEL' for game in games)}"
    if f"route:{field}:" != GAMES:
        raise UserError(f"--teacher {reference}: several games have teachers by game, and not by {field!r}", how)
    if set(values) != set(games):
        raise UserError(f"--teacher {reference} must name one teacher for each of {', '.join(games)}", how)


def _pairs(reference: str, text: str, how: str, cut: Callable[[str], tuple[str, str, str]]) -> list[tuple[str, str]]:
    """The two sides of every `a=b` in a list with commas."""
    cuts = [cut(part.strip()) for part in text.split(",")]
    if not all(left and sign and right for left, sign, right in cuts):
        raise UserError(f"--teacher {reference} cannot be read", how)
    return [(left, right) for left, _, right in cuts]


def _number(text: str) -> float | None:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
