"""An outer recipe: runs in sequence, each of which may start from an earlier one's student or learn from it."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from opdbench.errors import UserError, unknown
from opdbench.schema.spec import Frozen

STAGE = re.compile(r"stage:([a-z0-9-]+)")  # in a student or a teacher: the student that this stage left


class Stage(Frozen):
    """One run."""

    method: str
    task: str
    budget: str = Field(description="AXIS=N")
    preset: str | None = None
    set: list[str] = Field(default_factory=list, description="KEY=VALUE settings")
    student: str | None = Field(None, description="a model, or stage:NAME; the task's own by default")
    teacher: str | None = Field(None, description="a teacher, in which stage:NAME may stand; the task's own by default")

    def builds_on(self) -> frozenset[str]:
        """The stages whose students it names."""
        return frozenset(name for reference in (self.student, self.teacher) if reference
                         for name in STAGE.findall(reference))


class Line(Frozen):
    """One line of the table at the end: a score of a stage's record."""

    label: str
    stage: str
    phase: Literal["before", "after", "teacher"]


class OuterRecipe(Frozen):
    """What `opdbench run recipe:NAME` runs."""

    title: str
    about: str = ""
    stages: dict[str, Stage] = Field(min_length=1)
    report: list[Line] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_are_known(self) -> OuterRecipe:
        seen: set[str] = set()
        for name, stage in self.stages.items():
            if missing := sorted(stage.builds_on() - seen):
                raise ValueError(f"stage {name} builds on {missing[0]}, which is no earlier stage")
            seen.add(name)
        for line in self.report:
            if line.stage not in self.stages:
                raise ValueError(f"line {line.label!r} is of stage {line.stage}, which there is not")
        return self


def names() -> list[str]:
    """The recipes that come with opdbench."""
    return sorted(file.name.removesuffix(".yaml") for file in (files("opdbench.configs") / "recipes").iterdir()
                  if file.name.endswith(".yaml"))


def read(reference: str) -> tuple[str, OuterRecipe]:
    """A shipped recipe by name, or one in a YAML file by path; with its name.

    Raises:
        UserError: there is none, or it says something that a recipe cannot say.
    """
    path = Path(reference)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"there is no recipe file {path}", "pass the name of a shipped recipe, or a YAML file")
        name, text = path.stem, path.read_text()
    elif reference in names():
        name, text = reference, (files("opdbench.configs") / "recipes" / f"{reference}.yaml").read_text()
    else:
        raise unknown("recipe", reference, names())
    try:
        content: Any = yaml.safe_load(text)
        return name, OuterRecipe.model_validate(content)
    except yaml.YAMLError as error:
        raise UserError(f"recipe {reference} is not YAML: {str(error).splitlines()[0]}", "mend the file") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"recipe {reference}: {place or 'the file'}: {first['msg']}", "mend the file") from error
