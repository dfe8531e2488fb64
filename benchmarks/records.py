"""Folders of records of runs that never were, as large as one likes: what the site's speed is measured on.

The shapes are those of real runs: a record of about 20 KB with a learning curve, and the raw outcomes of three phases
beside it. Every task has 25 methods x 10 seeds and a board with its table (whose intervals are made up, too); every
second task is a language task, whose outcomes hold texts. Two runs in a hundred failed, with a reason that is markup.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from opdbench.report.runs import setting_of
from opdbench.schema.record import OutcomeFile, Phase, Record, Times
from opdbench.schema.spec import Budget, Evaluation, Execution, ModelRef, Recipe, Training
from opdbench.scores import Outcome, scores

METHODS, SEEDS = 25, 10
PER_TASK = METHODS * SEEDS
EXAMPLES, POINTS = 60, 40
HOSTILE = "</script><script>alert(1)</script> the loss is nan"
DIAGNOSTICS = ("loss", "reverse_kl", "forward_kl", "entropy", "teacher_entropy", "agreement", "reward", "length",
               "truncated", "student_share", "sampler_gap")


def write_records(place: Path, count: int) -> tuple[Path, Path]:
    """`count` records in `place/results`, and their boards in `place/leaderboards`."""
    results, leaderboards = place / "results", place / "leaderboards"
    shared: dict[tuple[int, int, str], list[Outcome]] = {}
    for task in range(math.ceil(count / PER_TASK)):
        members = range(min(PER_TASK, count - task * PER_TASK))
        runs = [_write_run(results, task, *divmod(member, SEEDS), shared) for member in members]
        _write_board(leaderboards / f"toy-{task:03}", task, runs)
        shared.clear()
    return results, leaderboards


def _write_board(folder: Path, task: int, runs: list[Record]) -> None:
    folder.mkdir(parents=True)
    rules = {"title": f"Toy {task}", "about": "Runs that never were.", "task": f"toy-{task:03}@1",
             "teacher": f"toy-{task:03}/teacher", "budget": {"steps": 100}}
    (folder / "board.yaml").write_text(yaml.safe_dump(rules))
    groups: dict[str, list[Record]] = {}
    for run in runs:
        groups.setdefault(run.recipe.method, []).append(run)
    entries = sorted((_entry(group) for group in groups.values()), key=lambda entry: -entry["ranked_by"]["mean"])
    for rank, entry in enumerate(entries, 1):
        entry.update(rank=rank, tie=chr(ord("a") + rank // 4))
    content = {"title": rules["title"], "rules": rules, "shares": True, "entries": entries}
    (folder / "table.json").write_text(json.dumps(content, indent=1))


def _entry(runs: list[Record]) -> dict[str, Any]:
    """A board's line in the form of table.json."""
    done = [run for run in runs if run.status == "completed"]

    def around(values: list[float]) -> dict[str, float]:
        mean = float(np.mean(values))
        return {"mean": mean, "low": mean - 0.04, "high": mean + 0.04}

    gap = around([gap for run in done for gap in run.gap_recovered.values() if gap is not None])
    scores = {phase: {mode: around([getattr(run, phase)[mode].mean for run in done]) for mode in ("greedy", "sampled")}
              for phase in ("before", "teacher", "after")}
    costs = {name: float(np.mean([run.ledger[name] for run in done])) for name in (
        "student_tokens", "teacher_tokens", "teacher_scored", "total_flops", "cpu_seconds")}
    return {"rank": None, "tie": "", "method": runs[0].recipe.method, "setting": "", "examples": EXAMPLES,
            "setting_id": setting_of(runs[0]).digest, "seeds": [run.recipe.seed for run in done], "scores": scores,
            "gap_recovered": {"mean": gap}, "ranked_by": gap, "detectable": 0.05, "underpowered": False, "costs": costs,
            "hardware": ["a CPU, 2 cores"], "commit": ["e" * 9], "date": ["2026-01-01"], "trust": ["self-reported"],
            "failed": [{"seed": run.recipe.seed, "status": run.status, "reason": run.reason} for run in runs
                       if run.status != "completed"]}


def _write_run(results: Path, task: int, method: int, seed: int,
               shared: dict[tuple[int, int, str], list[Outcome]]) -> Record:
    """Write one run's files, and return its record."""
    rng = np.random.default_rng([task, method, seed])
    text = task % 2 == 0
    recipe = _recipe(task, method, seed, text)
    digest = recipe.digest()
    failed = rng.random() < 0.02
    record = Record(
        id=digest[:12], status="diverged" if failed else "completed", recipe=recipe, recipe_sha256=digest,
        reason=HOSTILE if failed else None, stopped_by=None if failed else "steps",
        execution=Execution(), origins={"training.lr": "task", "budget": "task"},
        command=f"opdbench run --method {recipe.method} --task toy-{task:03} --seed {seed}",
        provenance={"commit": "e" * 40, "dirty": False, "python": "3.11.2", "packages": {"torch": "2.13.0"}},
        hardware={"cpu": "a CPU", "cores": 2, "gpus": [], "platform": "Linux"},
        times=Times(started="2026-01-01T00:00:00+00:00", finished="2026-01-01T00:01:00+00:00", total_seconds=60.0))
    folder = results / f"toy-{task:03}" / f"method-{method:02}" / f"s{seed}-{digest[:12]}"
    folder.mkdir(parents=True)
    if not failed:
        _complete(record, folder, (task, method, seed), rng, shared)
    (folder / "record.json").write_text(record.model_dump_json(indent=1) + "\n")
    return record


def _recipe(task: int, method: int, seed: int, text: bool) -> Recipe:
    name = f"toy-{task:03}"
    student = ModelRef(reference=f"{name}/student", sha256="b" * 64) if text else ModelRef(
        reference="fresh 32", sha256=f"{seed:064d}")
    return Recipe(
        method=f"method-{method:02}", method_sha256="c" * 64,
        params={"beta": 0.5, "labels": "soft"}, task=f"{name}@1", task_sha256="d" * 64,
        teacher=ModelRef(reference=f"{name}/teacher", sha256="a" * 64), student=student, budget=Budget(steps=100),
        training=Training(), evaluation=Evaluation(), seed=seed)


def _complete(record: Record, folder: Path, key: tuple[int, int, int], rng: np.random.Generator,
              shared: dict[tuple[int, int, str], list[Outcome]]) -> None:
    """Ledger, curve, and outcomes; the phases before and teacher are the same for every method of a task and seed."""
    task, method, seed = key
    text = task % 2 == 0
    tokens = int(40_000 * (1 + method / 10) * rng.uniform(0.9, 1.1))
    record.ledger = {
        "steps": 100, "updates": 100, "student_tokens": tokens, "teacher_tokens": 500 * (method % 3),
        "teacher_scored": tokens, "flops": {"student_rollout": 1e9 * tokens, "student_train": 3e9 * tokens},
        "total_flops": 4e9 * tokens, "seconds": tokens / 5000, "cpu_seconds": tokens / 5000,
        "peak_memory_bytes": 450_000_000}
    ability = float(np.clip(0.35 + 0.55 * method / METHODS + rng.normal(0, 0.02), 0, 1))
    for phase, accuracy in (("before", 0.2), ("teacher", 0.95), ("after", ability)):
        if phase == "after":
            outcomes = _outcomes(accuracy, rng, text)
        elif (outcomes := shared.get((task, seed, phase), [])) == []:
            outcomes = shared[task, seed, phase] = _outcomes(accuracy, np.random.default_rng([task, seed]), text)
        record.outcomes[phase] = _store(folder, phase, outcomes)  # type: ignore[index]
        setattr(record, phase, scores(outcomes, "accuracy"))
    record.gap_recovered = {mode: (record.after[mode].mean - record.before[mode].mean) /
                            (record.teacher[mode].mean - record.before[mode].mean) for mode in record.after}
    steps = np.linspace(1, 100, POINTS).round()
    values = np.exp(-steps[:, None] / 40) * rng.uniform(0.5, 2, len(DIAGNOSTICS)) + rng.uniform(
        0, 0.1, (POINTS, len(DIAGNOSTICS)))
    record.curve = [{"step": float(step), **dict(zip(DIAGNOSTICS, map(float, row), strict=True))}
                    for step, row in zip(steps, values, strict=True)]
    record.validation = [{"step": step, "student_tokens": step * tokens / 100, "score": ability * step / 100}
                         for step in (25.0, 50.0, 75.0, 100.0)]


def _outcomes(accuracy: float, rng: np.random.Generator, text: bool) -> list[Outcome]:
    hits = rng.random((2, EXAMPLES)) < accuracy
    return [Outcome(f"toy-test-{index}", mode, float(hits[row, index]), 24, False,
                    f"3 + {index} = {3 + index} <b>done</b>" if text else None, {})
            for row, mode in enumerate(("greedy", "sampled")) for index in range(EXAMPLES)]


def _store(folder: Path, phase: Phase | str, outcomes: list[Outcome]) -> OutcomeFile:
    """As `opdbench.store` does, without waiting for the disk."""
    lines = "".join(json.dumps(outcome._asdict()) + "\n" for outcome in outcomes)
    content: Any = gzip.compress(lines.encode(), compresslevel=1, mtime=0)
    (folder / f"{phase}.jsonl.gz").write_bytes(content)
    return OutcomeFile(file=f"{phase}.jsonl.gz", sha256=hashlib.sha256(content).hexdigest(), n=len(outcomes))
