"""Runs in sequence: every stage is the command that a user would type, by the machinery of suites.

What is finished is not run again, so that a recipe can be stopped and typed again; a stage that another recipe shares
is run once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from opdbench.errors import UserError
from opdbench.schema.outer import BEST, STAGE, OuterRecipe, Stage
from opdbench.schema.record import Record
from opdbench.store import RECORD, RunFolder, read_record
from opdbench.suite import Job, Say, command, run_all


class Ended(NamedTuple):
    """One stage's run."""

    stage: str
    folder: Path
    record: Record


def play(recipe: OuterRecipe, seed: int, results: Path, say: Say) -> Iterator[Ended]:
    """The stages, one after the other, at one seed.

    Raises:
        UserError: a stage did not complete.
    """
    folders: dict[str, Path] = {}
    for name, stage in recipe.stages.items():
        (done,) = run_all([job(name, stage, seed, results, folders)], jobs=1, say=say)
        if done.record is None or done.status != "completed":
            raise UserError(f"stage {name} did not complete: {done.status}: {done.reason}",
                            "opdbench " + " ".join(done.job.command))
        folders[name] = done.record.parent if done.record.name == RECORD else done.record
        yield Ended(name, folders[name], read_record(folders[name] / RECORD))


def job(name: str, stage: Stage, seed: int, results: Path, folders: Mapping[str, Path]) -> Job:
    """The run of one stage, with the students that earlier stages left (in `folders`)."""

    def named(given: str | None) -> str | None:
        if given is None:
            return None
        return STAGE.sub(lambda found: str(_student(found.group(1), folders)), _best(given, folders))

    models = {"--preset": stage.preset, "--teacher": named(stage.teacher), "--student": named(stage.student)}
    return Job(stage.task, f"{name}: {stage.method}", None, seed,
               command(stage.method, stage.task, seed, stage.budget, models, stage.set, results))


def _best(given: str, folders: Mapping[str, Path]) -> str:
    """Of "best:stage:A,stage:B" the stage whose student was the best on validation problems at its end, the earlier one
    of equals; where not all have been run it stays as it is, and so does any other reference."""
    stages = STAGE.findall(given)
    if not given.startswith(BEST) or not {*stages} <= {*folders}:
        return given
    return f"stage:{max(stages, key=lambda stage: _validated(stage, folders))}"


def _validated(stage: str, folders: Mapping[str, Path]) -> float:
    scores = read_record(folders[stage] / RECORD).validation
    if not scores:
        raise UserError(f"stage {stage} was not scored on validation problems, so nobody can say which stage was best",
                        f"leave evaluation.curve_points of stage {stage} above 0, and run the recipe again")
    return scores[-1]["score"]


def _student(stage: str, folders: Mapping[str, Path]) -> Path:
    """Where a stage's student is, or is going to be."""
    return RunFolder(folders[stage]).student if stage in folders else Path(f"stage:{stage}")
