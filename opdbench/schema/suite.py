"""A suite: which methods meet on which tasks, at what budget, and how a setting is chosen for each before they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from opdbench.schema import shipped
from opdbench.schema.spec import Frozen

Scores = Mapping[str, float | None]  # on validation, by value of the tuned setting; None: that run failed


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
    joint: bool | list[str] = Field(False, description="one value for all tasks of an arm, the one of the highest mean "
                                    "score over them, or over the tasks that are named; instead of one for each task")

    def best(self, scores: Sequence[Scores]) -> float | None:
        """The value of the highest mean score over the places whose scores are given, among those that failed in none;
        the smaller of two that are equal; None where all failed somewhere, or there are no scores."""
        if not scores:
            return None
        columns = [(value, [of.get(f"{value:g}") for of in scores]) for value in self.values]
        means = [(sum(known) / len(known), -value) for value, found in columns
                 if len(known := [score for score in found if score is not None]) == len(found)]
        return -max(means)[1] if means else None


class Suite(Frozen):
    """What `opdbench run suite:NAME` runs."""

    title: str
    seeds: str = Field("0:5", description="A:B, from A up to, not including, B")
    tasks: dict[str, Where]
    arms: dict[str, Arm]
    tune: Tuning | None = None
    timed: bool = Field(False, description="for a timed board: the runs of one task and seed are made in one sitting, "
                        "one at a time and on one thread, and all of them again where one is of another")

    @model_validator(mode="after")
    def _arms_name_tasks_of_the_suite(self) -> Suite:
        for name, arm in self.arms.items():
            for task in sorted(set(arm.tasks or ()) - set(self.tasks)):
                raise ValueError(f"arm {name} names the task {task}, and the suite's are {', '.join(self.tasks)}")
        if self.tune is not None and isinstance(self.tune.joint, list):
            for task in sorted(set(self.tune.joint) - set(self.tasks)):
                raise ValueError(f"the task {task} is to choose {self.tune.key}, and the suite's are "
                                 f"{', '.join(self.tasks)}")
            for place in self.places():
                if not self.tuned_with(*place):
                    raise ValueError(f"arm {place[1]} runs on none of the tasks that choose its {self.tune.key}, "
                                     f"{', '.join(self.tune.joint)}")
        return self

    def tuned_with(self, task: str, arm: str) -> list[tuple[str, str]]:
        """(task, arm), the pairs whose scores choose this one's setting."""
        joint = self.tune.joint if self.tune is not None else False
        tasks = joint if isinstance(joint, list) else list(self.tasks) if joint else [task]
        return [place for place in self.places() if place[1] == arm and place[0] in tasks]

    def places(self) -> list[tuple[str, str]]:
        """(task, arm), every pair that the suite runs."""
        return [(task, name) for task in self.tasks for name, arm in self.arms.items()
                if arm.tasks is None or task in arm.tasks]


def names() -> list[str]:
    """The suites that come with opdbench."""
    return shipped.names("suites")


def read(reference: str) -> tuple[str, Suite]:
    """A shipped suite by name, or one in a YAML file by path; with its name.

    Raises:
        UserError: there is none, or it says something that a suite cannot say.
    """
    name, text = shipped.by_reference("suites", "suite", reference)
    return name, shipped.parse(Suite, text, f"suite {reference}")
