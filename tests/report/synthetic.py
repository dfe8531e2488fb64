"""Records of runs that never were, written by the same code as real ones, with outcomes drawn from a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opdbench.run import run_folder
from opdbench.schema.record import Phase, Record, Status, Times
from opdbench.schema.spec import Budget, Evaluation, Execution, ModelRef, Recipe, Training
from opdbench.scores import Outcome, scores
from opdbench.store import RunFolder

TEACHER, STUDENT = "a" * 64, "b" * 64
EXAMPLES = 60


def write_run(results: Path, method: str, seed: int, *, after: float = 0.6, task: str = "toy@1", lr: float = 0.001,
              status: Status = "completed", reason: str | None = None, text: bool = True, examples: int = EXAMPLES,
              params: Mapping[str, Any] | None = None, student: str | None = None) -> RunFolder:
    """One run that ended with accuracy `after`, from 0.2 and under a teacher of 0.95; of the task's own student, or of
    one that was named."""
    recipe = Recipe(
        method=method, method_sha256="c" * 64, params=dict(params or {}), task=task, task_sha256="d" * 64,
        teacher=ModelRef(reference="toy/teacher", sha256=TEACHER), student=ModelRef(
            reference=student, sha256=hashlib.sha256(student.encode()).hexdigest()) if student else ModelRef(
            reference="toy/student" if text else "fresh 8", sha256=STUDENT if text else f"{seed:064d}"),
        budget=Budget(steps=10), training=Training(lr=lr), evaluation=Evaluation(), seed=seed)
    digest = recipe.digest()
    record = Record(id=digest[:12], status=status, reason=reason, recipe=recipe, recipe_sha256=digest,
                    execution=Execution(), command="opdbench run", times=Times(started="2026-01-01T00:00:00+00:00",
                                                                               finished="2026-01-01T00:01:00+00:00"),
                    origins={**({} if lr == 0.001 else {"training.lr": "user"}),
                             **({"student": "user"} if student else {})},
                    provenance={"commit": "e" * 40, "dirty": False}, hardware={"cpu": "a CPU", "cores": 2, "gpus": []})
    folder = run_folder(results, recipe)
    if status == "completed":
        record.ledger = {"student_tokens": 100 + seed, "teacher_tokens": 0, "teacher_scored": 100, "total_flops": 2e9,
                         "cpu_seconds": 1.5}
        rng = np.random.default_rng([seed, *method.encode()])
        for phase, accuracy in (("before", 0.2), ("teacher", 0.95), ("after", after)):
            write_phase(folder, record, phase, draw(phase, accuracy, rng, examples, text))  # type: ignore[arg-type]
    folder.write_record(record)
    return folder


def draw(phase: str, accuracy: float, rng: np.random.Generator, examples: int, text: bool) -> list[Outcome]:
    """Both modes; before and teacher are one model each, so that every run has the same outcomes of them."""
    of_phase = rng if phase == "after" or not text else np.random.default_rng(0)
    return [Outcome(f"toy-{index}", mode, float(of_phase.random() < accuracy), 5, False, "text" if text else None, {})
            for mode in ("greedy", "sampled") for index in range(examples)]


def write_phase(folder: RunFolder, record: Record, phase: Phase, outcomes: list[Outcome]) -> None:
    """Store outcomes with the scores that they make."""
    record.outcomes[phase] = folder.write_outcomes(phase, outcomes)
    setattr(record, phase, scores(outcomes, "accuracy"))


def write_board(leaderboards: Path, name: str = "toy", **rules: Any) -> Path:
    """A board over the synthetic task."""
    import yaml

    content = {"title": "A toy", "task": "toy@1", "teacher": "toy/teacher", "budget": {"steps": 10}, **rules}
    folder = leaderboards / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "board.yaml").write_text(yaml.safe_dump(content))
    return folder
