"""What the records say of arms of suites, for papers' cells and claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from opdbench.report import stages
from opdbench.report.arms import Chosen, Members, chosen, members
from opdbench.report.entries import Entry
from opdbench.report.runs import Run, read_records


class Evidence:
    """Records below a results folder, asked by suite, task and arm; outcomes are read once, when first needed."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self._runs: Sequence[Run] = read_records(results)[0]
        self._chosen: dict[str, Chosen] = {}
        self._members: dict[tuple[str, str], Members] = {}

    def suite(self, name: str) -> Chosen:
        if name not in self._chosen:
            self._chosen[name] = chosen(name, self.results)
        return self._chosen[name]

    def entry(self, suite: str, task: str, arm: str) -> Entry | None:
        """An arm's runs on a task, given as name@version; None without at least two completed seeds."""
        entry = self._of(suite, task).entries.get(arm)
        return entry if entry is not None and entry.seeds >= 2 else None

    def stage(self, recipe: str, task: str, stage: str) -> Entry | None:
        """A recipe's runs of one stage, on a task that is given as name@version; None without two completed seeds."""
        entry = stages.entry(recipe, stage, task, self._runs)
        return entry if entry is not None and entry.seeds >= 2 else None

    def completed(self, suite: str, task: str, arm: str) -> list[int]:
        """The seeds of an arm's completed runs on a task, given without a version."""
        versions = {run.record.recipe.task for run in self._runs if run.record.recipe.task.partition("@")[0] == task}
        entries = [self._of(suite, version).entries.get(arm) for version in sorted(versions)]
        return [seed for entry in entries if entry and entry.study for seed in entry.study.seeds]

    def _of(self, suite: str, task: str) -> Members:
        place = (suite, task)
        if place not in self._members:
            self._members[place] = members(self.suite(suite), task, self._runs, None, None)
        return self._members[place]
