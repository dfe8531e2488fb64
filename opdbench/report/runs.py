"""Records read back: raw outcomes as arrays over seeds x examples, and nothing that they do not confirm.

A run whose record and outcomes disagree keeps its place, with the problem in words, and never a score. Everything read
here may come from a stranger: JSON only, file names from a fixed list, and every number checked to be one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from opdbench import untrusted
from opdbench.errors import UserError
from opdbench.parallel import chunks, mapped
from opdbench.report.outcomes import Means, Tested, read_tested
from opdbench.schema.record import Phase, Record, Score, gap_recovered
from opdbench.scores import Outcome
from opdbench.stamps import find, places
from opdbench.store import RECORD, read_whole
from opdbench.trust import SELF_REPORTED, trust_of

Array = NDArray[np.float64]
PHASES: tuple[Phase, ...] = get_args(Phase)
COSTS = ("student_tokens", "teacher_tokens", "teacher_scored", "total_flops", "cpu_seconds")
_CHUNK, FEW = 10, 100  # folders that a process reads at a time; from how many on a second process is worth its start
FRESH = "fresh "  # the reference of a network that is initialised from the run's seed


@dataclass(frozen=True)
class Run:
    """One run: its record, its outcomes by phase, and why none of its scores may be used, if so."""

    path: Path
    record: Record
    tested: Mapping[Phase, Tested] = field(default_factory=dict)
    problem: str | None = None
    trust: str = SELF_REPORTED  # how far somebody else than who made it confirmed it: `opdbench.trust`

    @property
    def seed(self) -> int:
        return self.record.recipe.seed

    @property
    def outcomes(self) -> dict[Phase, Sequence[Outcome]]:
        """By phase; they are put together anew each time."""
        return {phase: tested.outcomes for phase, tested in self.tested.items()}

    @property
    def usable(self) -> bool:
        return self.record.status == "completed" and self.problem is None


class Setting(NamedTuple):
    """What runs must share to be repetitions of each other: the recipe but for its seed."""

    task: str
    method: str
    digest: str  # first 8 digits of the sha256 of everything else


class Unreadable(NamedTuple):
    path: Path
    problem: str


class Study(NamedTuple):
    """The completed runs of one setting. All matrices have the same seeds and, by mode, the same examples."""

    seeds: tuple[int, ...]
    shared: bool  # whether every seed was tested on the same examples; episodes are each seed's own
    example_e: tuple[str, ...]
    score_se: Mapping[tuple[Phase, str], Array]  # by phase and mode

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(mode for phase, mode in self.score_se if phase == "after")


class Packed(NamedTuple):
    """A run on its way from one process to another: its record as text, which is the least work."""

    path: str
    record: str
    problem: str | None
    trust: str

    def run(self) -> Run:
        return Run(Path(self.path), Record.model_validate_json(self.record), problem=self.problem, trust=self.trust)


def read_records(results: Path) -> tuple[list[Run], list[Unreadable]]:
    """Every record below a results folder, or of one run's folder, in the order of their paths; outcomes not read, and
    without the curves.

    Raises:
        UserError: there is no such folder.
    """
    if not results.is_dir():
        raise UserError(f"there is no folder {results}", "name the folder of records with --results DIR")
    below = places(str(results), 2)
    if len(below) <= FEW:
        return read_below(below)
    parts = list(mapped(_read_chunk, None, chunks(below, _CHUNK)))
    return [each.run() for packed, _ in parts for each in packed], [each for _, unread in parts for each in unread]


def _read_chunk(_: None, some: Sequence[str]) -> tuple[list[Packed], list[Unreadable]]:
    runs, unreadable = read_below(some)
    return [pack(run) for run in runs], unreadable


def pack(run: Run) -> Packed:
    return Packed(str(run.path), run.record.model_dump_json(), run.problem, run.trust)


def read_below(some: Sequence[str]) -> tuple[list[Run], list[Unreadable]]:
    """Every record below some places; see `read_records`."""
    runs, unreadable = [], []
    for path in (path for place in some for path in find(place, RECORD)):
        try:
            run = read_run(Path(path))
        except UserError as error:
            unreadable.append(Unreadable(Path(path), error.problem))
        else:
            runs.append(replace(run, record=run.record.model_copy(update={"curve": []})))
    return runs, unreadable


def read_run(path: Path) -> Run:
    """One record file, its outcomes not read.

    Raises:
        UserError: it is no record.
    """
    record, content, sha256 = read_whole(path)
    problem = _recipe_problem(content) or _gap_in(record)
    return Run(path.parent, record, problem=problem, trust=trust_of(path.parent, sha256))


def with_outcomes(run: Run) -> Run:
    """The run with its raw outcomes, once its scores are recomputed and found to be what the record says."""
    if not run.usable:
        return run
    try:
        tested = {phase: _tested(run, phase) for phase in PHASES if getattr(run.record, phase)}
        _check_examples(tested)
    except UserError as error:
        # Boards show it, and must not differ from one machine to another.
        return replace(run, problem=error.problem.replace(f"{run.path}/", "").replace(str(run.path), run.path.name))
    return replace(run, tested=tested)


def setting_of(record: Record) -> Setting:
    """Which setting a run belongs to. Fresh networks count by their shape, since their weights are the seed's."""
    # Without defaults: a setting that a later version adds leaves earlier runs what they were.
    content = record.recipe.model_dump(mode="json", exclude={"seed"}, exclude_defaults=True)
    for role in ("teacher", "student"):
        model = content[role]
        if model is not None:
            content[role] = model["reference"] if model["reference"].startswith(FRESH) else model["sha256"]
    return Setting(record.recipe.task, record.recipe.method, _digest(content)[:8])


def by_setting(runs: Iterable[Run]) -> dict[Setting, list[Run]]:
    """Runs of equal settings together, each in the order of its seeds."""
    groups: dict[Setting, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run.seed, run.path)):
        groups.setdefault(setting_of(run.record), []).append(run)
    return dict(sorted(groups.items()))


def changed(record: Record) -> dict[str, Any]:
    """The settings that were asked for in place of defaults (by `--set` or `--preset`), by the key to set them with."""
    asked = [key.partition(".") for key, origin in sorted(record.origins.items())
             if origin == "user" or origin.startswith("preset ")]
    if not asked:
        return {}
    sections = {"method": record.recipe.params, "task": record.recipe.task_params,
                "training": record.recipe.training.model_dump(), "evaluation": record.recipe.evaluation.model_dump()}
    return {name: sections[section][name] for section, _, name in asked if name in sections.get(section, {})}


def study(runs: Sequence[Run]) -> Study | None:
    """The usable runs of one setting as arrays; None when there is none.

    Raises:
        UserError: they were tested on different examples, or a seed is there twice.
    """
    usable = [run for run in runs if run.usable]
    if not usable:
        return None
    seeds = tuple(run.seed for run in usable)
    if len(set(seeds)) < len(seeds):
        raise UserError(f"two records of one run: {usable[0].path.parent} and others hold a seed twice",
                        "keep one of the two folders")
    tables = [{(phase, mode): means for phase, tested in run.tested.items() for mode, means in tested.means.items()}
              for run in usable]
    examples = [_examples(table, run.path) for table, run in zip(tables, usable, strict=True)]
    if any(table.keys() != tables[0].keys() for table in tables) or len(set(examples)) > 1:
        raise UserError(f"the runs beside {usable[0].path} were not tested on the same examples",
                        "run them again with one version of the task")
    score_se = {key: np.array([table[key].score_e for table in tables]) for key in tables[0]}
    _check_means(usable, score_se)
    return Study(seeds, usable[0].tested["after"].has_texts, examples[0], score_se)


def _check_means(runs: Sequence[Run], score_se: Mapping[tuple[Phase, str], Array]) -> None:
    """Intervals over examples are for scores that are means over them, which a corpus's BLEU is not."""
    for (phase, mode), of_phase_se in score_se.items():
        for run, mean in zip(runs, of_phase_se.mean(1).tolist(), strict=True):
            stated: Score = getattr(run.record, phase)[mode]
            if not math.isclose(stated.mean, mean, rel_tol=1e-9, abs_tol=1e-12):
                raise UserError(f"{stated.metric} of {run.record.recipe.task} is no mean over examples, so it has no "
                                "interval over seeds and examples", "compare by a metric that is one")


def _examples(table: Mapping[tuple[Phase, str], Means], path: Path) -> tuple[str, ...]:
    """The ids that every phase and mode was tested on."""
    names = {means.example_e for means in table.values()}
    if len(names) != 1:
        raise UserError(f"{path} was not tested on the same examples in every phase and mode",
                        "run it again, with --fresh")
    return names.pop()


def _tested(run: Run, phase: Phase) -> Tested:
    """One phase's outcomes.

    Raises:
        UserError: they are missing, altered, malformed, or do not make the scores that the record states.
    """
    stated: dict[str, Score] = getattr(run.record, phase)
    file = run.record.outcomes.get(phase)
    if file is None or file.file != f"{phase}.jsonl.gz":
        raise UserError(f"the scores {phase} have no raw outcomes beside them")
    try:
        found = read_tested(run.path, file, next(iter(stated.values())).metric)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise UserError(f"the raw outcomes {phase} are no outcomes") from None
    for mode in stated.keys() | found.scores.keys():
        if not _equal(stated.get(mode), found.scores.get(mode)):
            raise UserError(f"the raw outcomes {phase} do not make the {mode} score that the record states")
    if len(found) != file.n:
        raise UserError(f"there are {len(found)} raw outcomes {phase}, and the record says {file.n}")
    return found


def _check_examples(tested: Mapping[Phase, Tested]) -> None:
    """Every phase and mode must be of the same examples; else no comparison of them means anything."""
    if len({means.example_e for found in tested.values() for means in found.means.values()}) > 1:
        raise UserError("it was not tested on the same examples in every phase and mode")


def _gap_in(record: Record) -> str | None:
    """What no record that a run wrote would say, or what a completed one does not say."""
    for kind, name, pattern in (("method", record.recipe.method, untrusted.METHOD_NAME),
                                ("task", record.recipe.task, untrusted.TASK_NAME)):
        if not pattern.fullmatch(name):
            return f"its {kind}'s name is none"
    if record.status != "completed":
        return None
    if not record.before or record.after.keys() != record.before.keys():
        return "it is completed, and does not state scores before and after in the same modes"
    if missing := [cost for cost in COSTS if cost not in record.ledger]:
        return f"it is completed, and its ledger has no {', '.join(missing)}"
    made = {mode: gap_recovered(before, record.teacher[mode], record.after[mode])
            for mode, before in record.before.items() if mode in record.teacher}
    stated = record.gap_recovered
    if stated and (stated.keys() != made.keys() or not all(_close(stated[mode], made[mode]) for mode in made)):
        return "its scores do not make the gap recovered that it states"
    return None


def _equal(stated: Score | None, recomputed: Score | None) -> bool:
    """Equal up to the rounding of another machine's arithmetic."""
    if stated is None or recomputed is None or stated.n != recomputed.n:
        return False
    if vars(stated) == vars(recomputed):
        return True
    words = [(score.interval, score.metric, score.extra.keys()) for score in (stated, recomputed)]
    names = ("mean", "low", "high", "length", "truncated")
    return (words[0] == words[1] and all(_close(getattr(stated, name), getattr(recomputed, name)) for name in names)
            and all(_close(stated.extra[name], recomputed.extra[name]) for name in stated.extra))


def _close(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=1e-9, abs_tol=1e-12)


def _recipe_problem(content: Mapping[str, Any]) -> str | None:
    """Whether the recipe, as it is written, is the one that names the run; later versions may add settings to it."""
    recipe = dict(content["recipe"])
    for role in ("teacher", "student"):
        if recipe[role] is not None:
            recipe[role] = recipe[role]["sha256"]
    digest = _digest(recipe)
    if digest != content["recipe_sha256"] or digest[:12] != content["id"]:
        return "the recipe is not the one that the record's checksum names"
    return None


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def _digest(content: Any) -> str:
    return hashlib.sha256(_CANONICAL.encode(content).encode()).hexdigest()
