"""From what a user typed to validated settings: `--set key=value` and `--budget axis=limit`.

A key may belong to the method's parameters, the shared training settings, the evaluation, the task's parameters or the
execution. It is written bare when one of them has it, and with the section's name before a dot when several do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from opdbench.errors import UsageError, nearest, unknown
from opdbench.schema.spec import Budget

SECTIONS = ("method", "training", "evaluation", "task", "execution")
Models = Mapping[str, type[BaseModel]]


@dataclass
class Layers:
    """Values by section, from weak to strong, with who set each: defaults < task < profile < preset < user."""

    values: dict[str, dict[str, Any]] = field(default_factory=lambda: {section: {} for section in SECTIONS})
    origins: dict[str, str] = field(default_factory=dict)

    def put(self, section: str, values: Mapping[str, Any], origin: str) -> None:
        for key, value in values.items():
            self.values[section][key] = value
            self.origins[f"{section}.{key}"] = origin


def parse_sets(settings: Sequence[str], models: Models) -> list[tuple[str, str, Any]]:
    """(section, key, value) of each `key=value`.

    Raises:
        UsageError: no `=`, a key that no section has (names the nearest), or one that several have.
    """
    parsed = []
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting!r} has no value", "write --set key=value, such as --set lr=0.001")
        section, name = locate(key.strip(), models)
        if (section, name) == ("execution", "profile"):
            raise UsageError("the profile is not a setting of its own", f"--profile {text}")
        parsed.append((section, name, _value(setting, text)))
    return parsed


def _value(setting: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: what looks like a date and is none
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise UsageError(f"--set {setting!r} has a value that cannot be read: {problem}",
                         "values are YAML, such as 0.5, true, null, name or [1, 2]; put quotes around others") from None


def locate(key: str, models: Models) -> tuple[str, str]:
    """The section and name of a key.

    Raises:
        UsageError: no section has it, or several do.
    """
    section, dot, name = key.partition(".")
    if dot and section in models:
        if name not in models[section].model_fields:
            raise unknown(f"{section} setting", name, models[section].model_fields)
        return section, name
    having = [section for section, model in models.items() if key in model.model_fields]
    if len(having) > 1:
        raise UsageError(f"{key!r} is a setting of several sections",
                         "write " + " or ".join(f"--set {section}.{key}=..." for section in having))
    if not having:
        every = [name for model in models.values() for name in model.model_fields]
        raise UsageError(f"unknown setting {key!r}", f"{nearest(key, every)} (opdbench show METHOD lists its "
                                                     "parameters; add --dry-run to see every setting)")
    return having[0], key


def validate(model: type[BaseModel], values: Mapping[str, Any], section: str) -> Any:
    """An instance of `model`.

    Raises:
        UsageError: a value has the wrong type or is out of bounds; says which, its meaning and what it may be.
    """
    try:
        return model(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        described = model.model_fields[key].description if key in model.model_fields else None
        meaning = f" ({described})" if described else ""
        raise UsageError(f"{section} setting {key} = {first.get('input')!r}: {first['msg']}{meaning}",
                         f"--set {key}=... with a valid value") from None


def parse_budget(texts: Sequence[str], default: Mapping[str, float]) -> tuple[Budget, str]:
    """The budget and who set it. A user's budget replaces the task's: `steps=100`, or several with commas.

    Raises:
        UsageError: unknown axis, or a limit that is not a positive number.
    """
    if not texts:
        return Budget(**default), "task"
    limits: dict[str, float] = {}
    for part in ",".join(texts).split(","):
        axis, equals, text = (word.strip() for word in part.partition("="))
        if not equals:
            raise UsageError(f"--budget {part!r} is not an axis and a limit",
                             f"write --budget steps=100; the axes are {', '.join(Budget.model_fields)}")
        if axis not in Budget.model_fields:
            raise unknown("budget", axis, Budget.model_fields)
        limits[axis] = _limit(part, axis, text)
    try:
        return Budget(**limits), "user"
    except ValidationError as error:
        first = error.errors()[0]
        axis = str(first["loc"][0])
        raise UsageError(f"--budget {axis}={first['input']}: {first['msg']}", f"write --budget {axis}=100") from None


def _limit(part: str, axis: str, text: str) -> float:
    """A number; whole ones as integers, but for seconds."""
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"--budget {part!r}: {text!r} is not a number", f"write --budget {axis}=100") from None
    return int(number) if axis != "seconds" and number.is_integer() else number
