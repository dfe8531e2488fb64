"""Many runs: every method of a suite on every task of it, each with a setting chosen on validation first.

Each run is the command that a user would type, in a process of its own. Runs are idempotent, so a suite can be stopped
and started at any time: what is finished is not run again, what was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from opdbench import sitting
from opdbench.report.timing import together
from opdbench.schema.suite import Scores, Suite
from opdbench.store import read_record, write_atomically

Say = Callable[[str], None]


class Job(NamedTuple):
    """One run of a suite."""

    task: str
    arm: str
    value: float | None  # of the tuned setting
    seed: int
    command: tuple[str, ...]  # what a user would type after `opdbench`

    @property
    def title(self) -> str:
        return f"{self.arm} on {self.task}{'' if self.value is None else f' at {self.value:g}'}, seed {self.seed}"


class Done(NamedTuple):
    """How a job ended."""

    job: Job
    record: Path | None  # None: it left none
    status: str
    reason: str | None
    seconds: float


class Choice(NamedTuple):
    """The setting that a method got on a task, and what each value of the grid scored on validation."""

    value: float
    scores: Scores


def tune(suite: Suite, results: Path, places: Sequence[tuple[str, str]], *, jobs: int, known: dict[str, Any],
         say: Say) -> dict[tuple[str, str], Choice]:
    """The best value of the tuned setting for each (task, arm): the highest greedy validation score when the budget is
    spent, in the mean over several tasks where the suite tunes jointly (their choices are found as well); the smaller
    value where two are equal. What `known` (an earlier `choices_as_json`) has is not run again."""
    assert suite.tune is not None
    runs = {place: None for other in places for place in suite.tuned_with(*other)}  # a dict, for the order
    grid = suite.tune.values
    extra = ("evaluation.examples=2", "evaluation.sampled=false", "evaluation.curve_points=1",
             f"evaluation.curve_examples={suite.tune.examples}")
    scores = {place: earlier for place in runs if (earlier := _known(known, place, grid)) is not None}
    found: dict[tuple[str, str], dict[str, float | None]] = {}
    wanted = [job(suite, task, arm, suite.tune.seed, value, results, extra)
              for task, arm in runs if (task, arm) not in scores for value in grid]
    for done in run_all(wanted, jobs=jobs, say=say):
        score = None
        if done.status == "completed" and done.record is not None:
            score = float(read_record(done.record).validation[-1]["score"])
        found.setdefault((done.job.task, done.job.arm), dict.fromkeys(f"{value:g}" for value in grid))[
            f"{done.job.value:g}"] = score
    scores |= found
    return {place: Choice(value, scores.get(place, {})) for place in {**dict.fromkeys(places), **runs}
            if (value := suite.tune.best([scores[other] for other in suite.tuned_with(*place)])) is not None}


def job(suite: Suite, task: str, arm_name: str, seed: int, value: float | None, results: Path,
        extra: Iterable[str] = ()) -> Job:
    """One run of a suite."""
    arm, where = suite.arms[arm_name], suite.tasks[task]
    models = {"--preset": arm.preset, "--teacher": arm.teacher or where.teacher,
              "--student": arm.student or where.student}
    tuned = [f"{suite.tune.key}={value:g}"] if suite.tune is not None and value is not None else []
    return Job(task, arm_name, value, seed, command(arm.method, task, seed, where.budget, models,
                                                    [*where.set, *arm.set, *tuned, *extra], results))


def command(method: str, task: str, seed: int, budget: str, models: Mapping[str, str | None], settings: Iterable[str],
            results: Path) -> tuple[str, ...]:
    """What is typed for one run.

    Args:
        models: flags that take a name, `--teacher` and the like; None leaves one out.
        settings: of `--set`.
    """
    words = ["run", "--method", method, "--task", task, "--seed", str(seed), "--budget", budget]
    for flag, given in models.items():
        words += [flag, given] if given is not None else []
    for setting in settings:
        words += ["--set", setting]
    return (*words, "--results", str(results))


def run_timed(wanted: Sequence[Job], *, fresh: bool, say: Say) -> list[Done]:
    """Run them so that the times of one task and seed compare: one after the other, and all of them again if some were
    made earlier, unless all were made then, in one sitting. The order turns from seed to seed, so that no arm always
    finds the machine as the first.

    Args:
        fresh: make all of them again in any case.
    """
    groups: dict[tuple[str, int], list[Job]] = {}
    for one in wanted:
        groups.setdefault((one.task, one.seed), []).append(one)
    ended = []
    for (task, seed), group in groups.items():
        first = seed % len(group)
        in_turn = [*group[first:], *group[:first]]
        done = [] if fresh else run_all(in_turn, jobs=1, say=say, threads=1)
        if fresh or not together([read_record(one.record) for one in done
                                  if one.record is not None and one.status == "completed"]):
            say(f"seed {seed} on {task}: all runs are made again" + ("" if fresh else ", to be of one sitting"))
            again = [one._replace(command=(*one.command, "--fresh")) for one in in_turn]
            done = run_all(again, jobs=1, say=say, threads=1)
        ended += done
    return ended


def run_all(wanted: Sequence[Job], *, jobs: int, say: Say, threads: int | None = None) -> list[Done]:
    """Run them, `jobs` at a time; a failed one stops no other. Each has its share of the cores as threads, unless their
    number is given."""
    ended: list[Done] = []
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_run, one, threads=threads, alone=jobs == 1) for one in wanted]
        try:
            for future in as_completed(futures):
                done = future.result()
                ended.append(done)
                what = done.status if done.reason is None else f"{done.status}: {done.reason}"
                say(f"[{len(ended)}/{len(wanted)}] {done.job.title}: {what} ({done.seconds:.0f} s)")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return ended


def _run(one: Job, *, threads: int, alone: bool) -> Done:
    began = time.perf_counter()
    # What runs beside others has times that compare with nothing: each such run is a sitting of its own.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), sitting.VARIABLE: sitting.token() if alone else ""}
    # Threads are how it is computed, so they are no part of the recipe; more of them than cores would only wait.
    words = [sys.executable, "-m", "opdbench", *one.command, "--set", f"threads={threads}", "--json"]
    ended = subprocess.run(words, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - began
    try:
        shown = json.loads(ended.stdout)
        return Done(one, Path(shown["record"]), shown["status"], shown.get("reason"), seconds)
    except (json.JSONDecodeError, KeyError, TypeError):
        lines = ended.stderr.splitlines() or ["no output"]
        said = [line for line in lines if line.startswith("opdbench:")] or lines
        return Done(one, None, "error", said[-1].removeprefix("opdbench: "), seconds)


def choices_as_json(suite: Suite, choices: dict[tuple[str, str], Choice]) -> dict[str, Any]:
    assert suite.tune is not None
    return {"key": suite.tune.key, "grid": suite.tune.values, "seed": suite.tune.seed,
            "validation_examples": suite.tune.examples, "joint": suite.tune.joint,
            "choices": {f"{task}/{arm}": {"value": choice.value, "scores": choice.scores}
                        for (task, arm), choice in sorted(choices.items())}}


def save_choices(path: Path, suite: Suite, choices: dict[tuple[str, str], Choice]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(choices_as_json(suite, choices), indent=1) + "\n").encode())


def _known(known: dict[str, Any], place: tuple[str, str], grid: Sequence[float]) -> Scores | None:
    entry = known.get("choices", {}).get("/".join(place))
    if entry is None or list(entry["scores"]) != [f"{value:g}" for value in grid]:
        return None
    scores: Scores = entry["scores"]
    return scores
