"""What every task must satisfy, one named check each: common declarations here, and each world's checks beside it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

from opdbench.conformance.check import Check, Skipped, judge, require
from opdbench.conformance.compare import other_random_state
from opdbench.conformance.control_task import control_checks
from opdbench.conformance.language_task import language_checks
from opdbench.errors import UserError
from opdbench.models import shipped_models
from opdbench.schema.spec import Budget, Training
from opdbench.settings import validate
from opdbench.task import ControlTask, LanguageTask, Split, Task

_TEXTS = ("name", "summary", "source", "license", "protocol", "metric")


def check_task(cls: type[Task], *, data: str | None = None) -> Iterator[Check]:
    """Run every check on a task, one by one.

    Args:
        cls: the class, not an instance.
        data: where its problems are, for a task that reads any; what needs data that are not at hand is skipped.
    """
    declared = [judge("class attributes", lambda: _check_attributes(cls)),
                judge("parameters are documented", lambda: _check_parameters(cls)),
                judge("defaults for training and budget", lambda: _check_defaults(cls)),
                judge("can be made", lambda: cls(data=data, params=cls.Params()))]
    yield from declared
    if not all(check.passed for check in declared):
        return

    def fresh() -> Any:
        return cls(data=data, params=cls.Params())

    task = fresh()
    if isinstance(task, LanguageTask):
        at_hand = judge("data are at hand", lambda: _check_data(task))
        yield at_hand
        if at_hand.message:
            return
    checks: dict[str, Callable[[], None]] = {
        "checksum is stable": lambda: _check_checksum(task, fresh),
        "shipped models exist": lambda: _check_shipped(task),
        **(language_checks(task, fresh) if isinstance(task, LanguageTask) else control_checks(task))}
    for name, check in checks.items():
        yield judge(name, check)


def _check_data(task: LanguageTask) -> None:
    """What must be downloaded first may be missing; nothing more can be said of the task then."""
    try:
        for split in get_args(Split):
            task.examples(split)
    except UserError as error:
        raise Skipped(str(error).replace("\n  fix: ", "; ")) from None


def _check_attributes(cls: type[Task]) -> None:
    require(issubclass(cls, LanguageTask | ControlTask), "a task must derive from LanguageTask or ControlTask")
    for name in _TEXTS:
        require(bool(str(getattr(cls, name, "")).strip()), f"`{name}` must be set (see opdbench.task.Task)")
    require(bool(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*(:.+)?", cls.name)),
            f"`name` must be lower-case words joined by hyphens, such as my-task, and not {cls.name!r}")
    require(isinstance(getattr(cls, "version", None), int) and cls.version >= 1, "`version` must be 1 or more")
    require("\n" not in cls.summary, "`summary` must be one line")
    for name in ("teacher", "student"):
        require(hasattr(cls, name), f"`{name}` must name a model, or be None when the user or the profile names one")


def _check_parameters(cls: type[Task]) -> None:
    config = cls.Params.model_config
    require(config.get("extra") == "forbid" and bool(config.get("frozen")),
            "Params must derive from Task.Params: frozen, and refusing unknown names")
    for name, field in cls.Params.model_fields.items():
        require(not field.is_required(), f"parameter {name} has no default")
        require(bool(field.description), f"parameter {name} has no description: Field(..., description='its meaning')")


def _check_defaults(cls: type[Task]) -> None:
    """They are settings that exist, with valid values."""
    validate(Training, cls.training, "training")
    limits = validate(Budget, cls.budget, "budget").limits()
    require(bool(limits), "`budget` must say where training stops, such as {'steps': 100}")


def _check_checksum(task: Task, fresh: Callable[[], Task]) -> None:
    """The same for two instances, whatever the global random state."""
    first = task.checksum()
    with other_random_state():
        second = fresh().checksum()
    require(bool(re.fullmatch(r"[0-9a-f]{64}", first)), f"`checksum` must be a sha256 in hexadecimal, not {first!r}")
    require(first == second, "`checksum` is not the same for two instances of the task")


def _check_shipped(task: Task) -> None:
    """Names of the form folder/teacher and folder/student promise a model that comes with the task."""
    named = [name for name in (task.teacher, task.student)
             if name and name.endswith(("/teacher", "/student")) and not name.startswith("route:")]
    if not named:
        raise Skipped("it ships no models")
    missing = [name for name in named if name not in shipped_models(task)]
    require(not missing, f"no model in the folder `models` beside the task for {' and '.join(missing)}")
