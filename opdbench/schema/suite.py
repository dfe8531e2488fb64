"""A suite: which methods meet on which tasks, at what budget, and how a setting is chosen for each before they do."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from opdbench.errors import UserError, unknown
from opdbench.schema.spec import Frozen


class Where(Frozen):
    """A task as the suite runs it."""

    budget: str = Field(description="AXIS=N, the same for every method")
    set: list[str] = Field(default_factory=list, description="KEY=VALUE settings of the task or of training")
    teacher: str | None = Field(None, description="other than the task's own")
    student: str | None = Field(None, description="other than the task's own")


class Arm(Frozen):
    """A method as the suite runs it."""

    method: str
    preset: str | None = None
    set: list[str] = Field(default_factory=list, description="KEY=VALUE settings")
    teacher: str | None = Field(None, description="other than the task's own, for methods that need another")
    student: str | None = Field(None, description="other than the task's own, such as fresh:16x16 on a control task")
    tasks: list[str] | None = Field(None, description="only on these; everywhere by default")


class Tuning(Frozen):
    """One setting, chosen for each method from one grid, on validation problems and a seed of its own."""

    key: str = Field("lr", description="the setting")
    values: list[float] = Field(min_length=2, description="the grid, the same for all")
    seed: int = Field(ge=0, description="not one of the suite's seeds")
    examples: int = Field(200, ge=1, description="validation problems, answered greedily when the budget is spent")
    joint: bool = Field(False, description="one value for all tasks of an arm, the one of the highest mean score, "
                                            "instead of one for each task")


class Suite(Frozen):
    """What `opdbench run suite:NAME` runs."""

    title: str
    seeds: str = Field("0:5", description="A:B, from A up to, not including, B")
    tasks: dict[str, Where]
    arms: dict[str, Arm]
    tune: Tuning | None = None

    def tuned_with(self, task: str, arm: str) -> list[tuple[str, str]]:
        """(task, arm), the pairs whose scores choose this one's setting."""
        joint = self.tune is not None and self.tune.joint
        return [place for place in self.places() if place[1] == arm and (joint or place[0] == task)]

    def places(self) -> list[tuple[str, str]]:
        """(task, arm), every pair that the suite runs."""
        return [(task, name) for task in self.tasks for name, arm in self.arms.items()
                if arm.tasks is None or task in arm.tasks]


def names() -> list[str]:
    """The suites that come with opdbench."""
    return sorted(file.name.removesuffix(".yaml") for file in (files("opdbench.configs") / "suites").iterdir()
                  if file.name.endswith(".yaml"))


def read(reference: str) -> tuple[str, Suite]:
    """A shipped suite by name, or one in a YAML file by path; with its name.

    Raises:
        UserError: there is none, or it says something that a suite cannot say.
    """
    path = Path(reference)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"there is no suite file {path}", "pass the name of a shipped suite, or a YAML file")
        name, text = path.stem, path.read_text()
    elif reference in names():
        name, text = reference, (files("opdbench.configs") / "suites" / f"{reference}.yaml").read_text()
    else:
        raise unknown("suite", reference, names())
    try:
        content: Any = yaml.safe_load(text)
        suite = Suite.model_validate(content)
    except yaml.YAMLError as error:
        raise UserError(f"suite {reference} is not YAML: {str(error).splitlines()[0]}", "mend the file") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"suite {reference}: {place}: {first['msg']}", "mend the file") from error
    for arm_name, arm in suite.arms.items():
        for task in set(arm.tasks or ()) - set(suite.tasks):
            raise UserError(f"suite {reference}: arm {arm_name} names the task {task}, which the suite does not have",
                            f"the suite's tasks are {', '.join(suite.tasks)}")
    return name, suite
