"""An outer recipe: runs in sequence, each of which may start from an earlier one's student or learn from it."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from opdbench.schema import shipped
from opdbench.schema.spec import Frozen

STAGE = re.compile(r"stage:([a-z0-9-]+)")  # in a student or a teacher: the student that this stage left

BEST = "best:"  # before several of them, with commas: the one that was best on validation problems


class Stage(Frozen):
    """One run."""

    method: str
    task: str
    budget: str = Field(description="AXIS=N")
    preset: str | None = None
    set: list[str] = Field(default_factory=list, description="KEY=VALUE settings")
    student: str | None = Field(None, description="a model, or stage:NAME; the task's own by default")
    teacher: str | None = Field(None, description="a teacher, in which stage:NAME may stand, or best:stage:A,stage:B; "
                                "the task's own by default")

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
    return shipped.names("recipes")


def read(reference: str) -> tuple[str, OuterRecipe]:
    """A shipped recipe by name, or one in a YAML file by path; with its name.

    Raises:
        UserError: there is none, or it says something that a recipe cannot say.
    """
    name, text = shipped.by_reference("recipes", "recipe", reference)
    return name, shipped.parse(OuterRecipe, text, f"recipe {reference}")
