"""The rules of a leaderboard, as data: `leaderboards/<board>/board.yaml`. The tables beside it are made by these rules
from the records and from nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, PositiveFloat, ValidationError

from opdbench.errors import UserError, nearest
from opdbench.schema.spec import Frozen

RULES = "board.yaml"


TASK_ID = r"^[^@\s]+@[0-9]+$"


class Rules(Frozen):
    """What every board says."""

    title: str = Field(min_length=1, description="what the board is called")
    about: str = Field("", description="one or two sentences under the title")
    rank_by: Literal["greedy", "sampled", "mean"] = Field(
        "mean", description="the gap recovered that sorts the board; mean is over both modes")
    min_seeds: int = Field(5, ge=2, description="fewer are shown and not ranked")
    seeds: str = Field("0:10", pattern=r"^[0-9]+:[0-9]+$", description="the published list, A up to, not including, B; "
                       "who submits runs the first of them, without a gap")
    alpha: float = Field(0.05, gt=0, lt=1, description="error of all of the board's comparisons together (Holm)")
    smallest_effect: PositiveFloat = Field(
        0.1, description="gap recovered; a tie that could not have shown so large a difference is underpowered")


class Timed(Frozen):
    """Whose time is 1, and which time; both are said, since each other choice makes another table."""

    reference: str = Field(min_length=1, description="the method whose time is 1")
    measure: Literal["cpu_seconds", "seconds"] = Field(
        description="of training: what a busy machine can compare (CPU), or what a user waits for (wall clock, and "
        "whatever computes on an accelerator)")


class Board(Rules):
    """Which runs of one task a board compares, and how."""

    division: Literal["closed", "open"] = Field(
        "closed", description="closed: one setting for each method; open: every setting is an entry of its own")
    task: str = Field(pattern=TASK_ID, description="name@version")
    task_params: dict[str, Any] = Field(
        default_factory=dict, description="values that the task's parameters must have; the others may have any")
    examples: int | None = Field(None, gt=0, description="test problems or episodes; None is the task's own number")
    teacher: str | None = Field(None, description="reference, or sha256 (at least its first 12 digits)")
    student: str | None = Field(None, description="the starting student, likewise")
    budget: dict[str, PositiveFloat] | tuple[dict[str, PositiveFloat], ...] = Field(
        min_length=1, description="axis and amount, such as {steps: 60}; or a list, of which any will do")
    settings: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by method, values that its settings must have, such as {gkd: {lr: 0.002}}; "
        "for a closed board with records of several")
    timed: Timed | None = Field(None, description="times are shown as ratios to one method's, of the same machine and "
                                "sitting; None: as the means of what was measured")

    @property
    def budgets(self) -> tuple[dict[str, float], ...]:
        return (self.budget,) if isinstance(self.budget, dict) else self.budget

    @property
    def task_ids(self) -> tuple[str, ...]:
        return (self.task,)


class TaskOfSuite(Frozen):
    """One task of a board over several: its budget and settings are those that the suite runs it with."""

    suite: str = Field(description="the suite whose runs count; its arms are the methods")
    teacher: str | None = Field(None, description="reference, or sha256 (at least its first 12 digits)")
    student: str | None = Field(None, description="the starting student, likewise")


class SuiteBoard(Rules):
    """Which methods a board compares over several tasks: the arms of suites, each with the setting that the suite's
    grid chose for it on validation problems of the task. Only methods that ran on every task are ranked."""

    division: Literal["closed"] = Field("closed", description="one setting for each method and task, chosen by a grid")
    tasks: dict[Annotated[str, Field(pattern=TASK_ID)], TaskOfSuite] = Field(
        min_length=1, description="by name@version")

    @property
    def task_ids(self) -> tuple[str, ...]:
        return tuple(self.tasks)


AnyBoard = Board | SuiteBoard


def read_board(folder: Path) -> AnyBoard:
    """The rules in `folder`: of a board over several tasks when they have the key `tasks`.

    Raises:
        UserError: no such file, not YAML, an unknown key (names the nearest), or a value that is none.
    """
    path = folder / RULES
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return _kind(content).model_validate(content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}", "opdbench board list") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError):
        raise UserError(f"{path} is not YAML that can be read") from None
    except ValidationError as error:
        raise _invalid(path, error, _kind(content)) from None


def _kind(content: Any) -> type[Board] | type[SuiteBoard]:
    return SuiteBoard if isinstance(content, dict) and "tasks" in content else Board


def _invalid(path: Path, error: ValidationError, kind: type[Rules]) -> UserError:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return UserError(f"{path}: unknown key {place!r}", nearest(place, kind.model_fields))
    return UserError(f"{path}: {place or 'the file'}: {first['msg']}", "correct it; README says what the keys mean")
