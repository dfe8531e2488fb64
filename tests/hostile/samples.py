"""A small sound submission, made in milliseconds: a real task and grader, texts that nobody had to train for."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from opdbench.cli.new import METHOD
from opdbench.models import checksum, shipped_models
from opdbench.regrade import Grader
from opdbench.report.runs import read_records
from opdbench.schema.record import Phase, Record, Times, gap_recovered
from opdbench.schema.spec import Budget, Evaluation, Execution, ModelRef, Recipe, Training
from opdbench.scores import Outcome, scores
from opdbench.store import RunFolder, run_path
from opdbench.submissions.bundle import pack
from opdbench.submissions.make import About, files_of
from opdbench.submissions.method import code_sha256
from opdbench.submissions.verify import Place
from opdbench.tasks.text_maze import TextMaze

TASK, EXAMPLES, SEEDS = "text-maze", 8, 5
SHARE_RIGHT: dict[Phase, float] = {"before": 0.2, "teacher": 1.0, "after": 0.8}


@cache
def task() -> TextMaze:
    return TextMaze()


def write_method(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mine.py"
    file.write_text(METHOD.substitute(name="mine", module="mine", cls="Mine", title="Mine"))
    return file


def recipe(method_sha256: str, seed: int, **changes: Any) -> Recipe:
    def model(role: str) -> ModelRef:
        return ModelRef(reference=f"{TASK}/{role}", sha256=_checksum(f"{TASK}/{role}"))

    values = {"method": "mine", "method_sha256": method_sha256, "params": {"forward_weight": 0.5}, "task": task().id,
              "task_params": task().params.model_dump(), "task_sha256": task().checksum(), "teacher": model("teacher"),
              "student": model("student"), "budget": Budget(steps=4), "evaluation": Evaluation(examples=EXAMPLES),
              "training": Training(**task().training, horizon=task().max_new_tokens), "seed": seed}
    return Recipe(**{**values, **changes})


@cache
def _checksum(reference: str) -> str:
    return checksum(shipped_models()[reference])


def write_run(results: Path, recipe: Recipe, **changes: Any) -> RunFolder:
    """A completed run whose texts are solutions, or nonsense where it fails."""
    digest = recipe.digest()
    record = Record(
        id=digest[:12], status="completed", stopped_by="steps", recipe=recipe, recipe_sha256=digest,
        execution=Execution(), command="opdbench run --method mine", times=Times(started="2026-01-01T00:00:00+00:00",
                                                                                 finished="2026-01-01T00:01:00+00:00"),
        ledger={"steps": 4, "updates": 4, "student_tokens": 400, "teacher_tokens": 0, "teacher_scored": 400,
                "flops": {"student_train": 1e9}, "total_flops": 1e9, "seconds": 2.0, "cpu_seconds": 2.0,
                "peak_memory_bytes": 1_000_000},
        provenance={"commit": "f" * 40, "dirty": False, "packages": {"opdbench": "0.1.0"}, "python": "3.11.7",
                    "platform": "Linux"},
        hardware={"cpu": "a CPU", "cores": 2, "memory_gib": 8.0, "gpus": [], "platform": "Linux",
                  "driver_problem": None},
        curve=[{"step": 1.0, "loss": 0.5}], validation=[{"step": 4.0, "student_tokens": 400.0, "score": 0.5}])
    folder = RunFolder(results / run_path(record.recipe, record.id))
    for phase in SHARE_RIGHT:
        seed = recipe.seed if phase == "after" else 0
        record.outcomes[phase] = folder.write_outcomes(phase, answers(phase, random.Random(f"{phase} {seed}")))
        setattr(record, phase, scores(answers(phase, random.Random(f"{phase} {seed}")), task().metric))
    record.gap_recovered = {mode: gap_recovered(record.before[mode], record.teacher[mode], record.after[mode])
                            for mode in record.before}
    folder.write_record(record.model_copy(update=changes))
    return folder


def answers(phase: Phase, rng: random.Random) -> list[Outcome]:
    found = []
    for mode in ("greedy", "sampled"):
        for example in task().examples("test")[:EXAMPLES]:
            right = rng.random() < SHARE_RIGHT[phase]
            text = str(example.solution) if right else str(example.solution)[:-4]
            grades = task().grade(example, text)
            score = grades.pop(task().metric)
            found.append(Outcome(example.id, mode, score, len(text), not right, text, grades))
    return found


def write_submission(place: Path) -> dict[str, bytes]:
    """Five runs below `place/results`, a board that they belong on, and the files of their submission."""
    method = write_method(place)
    for seed in range(SEEDS):
        write_run(place / "results", recipe(code_sha256(method, "mine"), seed))
    board = {"title": "Small", "task": task().id, "budget": {"steps": 4}, "examples": EXAMPLES,
             "teacher": f"{TASK}/teacher", "student": f"{TASK}/student"}
    (place / "leaderboards" / "small").mkdir(parents=True)
    (place / "leaderboards" / "small" / "board.yaml").write_text(yaml.safe_dump(board))
    return files_of(read_records(place / "results")[0], About("MIT", "me@example.org", plugins=(str(method),)))


def place(root: Path) -> Place:
    """Compare with nothing but the board."""
    return Place(root / "none", root / "leaderboards", Grader())


def bundle(files: dict[str, bytes]) -> bytes:
    """A zip whose manifest describes its files, whatever they are: what a careful forger sends."""
    (path,) = [path for path in files if path.endswith("manifest.json")]
    manifest = json.loads(files[path])
    manifest["files"] = [{"path": name, "sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
                         for name, content in sorted(files.items()) if name != path]
    return pack({**files, path: json.dumps(manifest).encode()})


def packed(lines: Sequence[Any]) -> bytes:
    """Raw outcomes, from JSON values."""
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), mtime=0)
