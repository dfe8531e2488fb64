"""What a run cost. Counts are exact and repeat with the seed; times and memory are measured."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from opdbench.rollouts import Rollouts, Source


@dataclass
class Ledger:
    """Running totals of training; evaluation is not on it.

    Attributes:
        steps: rounds of collect and update; updates: optimizer steps.
        student_tokens, teacher_tokens: actions that each chose (tokens, or environment steps).
        data_tokens: actions of reference solutions.
        given_tokens: inputs of rollouts that are no decision's state: environment turns, and prompts without their last
            token (in which the first decision is taken).
        teacher_scored: states whose distribution, or part of it, the teacher was asked for.
        teacher_cached: states for which a cache of an earlier answer was read instead; nobody was asked.
        trained_rows: rows that went through a loss.
        flops: analytic, by part: student_rollout, teacher_rollout, student_score, teacher_score, student_train, and
            what a method adds (critic, target).
        seconds, cpu_seconds: of training; peak_memory_bytes: of the process, or of the accelerator when there is one.
    """

    steps: int = 0
    updates: int = 0
    student_tokens: int = 0
    teacher_tokens: int = 0
    data_tokens: int = 0
    given_tokens: int = 0
    teacher_scored: int = 0
    teacher_cached: int = 0
    trained_rows: int = 0
    flops: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0

    def count_rollout(self, rollouts: Rollouts) -> None:
        """Add what a rollout sampled."""
        self.student_tokens += rollouts.count(Source.STUDENT)
        self.teacher_tokens += rollouts.count(Source.TEACHER)
        self.given_tokens += int(rollouts.length_b.sum()) - rollouts.n_rows

    def count_demonstrations(self, rollouts: Rollouts) -> None:
        """Add what was read from the task's reference solutions."""
        self.data_tokens += rollouts.n_rows

    @property
    def tokens(self) -> int:
        """Actions collected, whoever chose them; what is used again is not counted again."""
        return self.student_tokens + self.teacher_tokens + self.data_tokens

    def add_flops(self, part: str, flops: float) -> None:
        self.flops[part] = self.flops.get(part, 0.0) + flops

    @property
    def total_flops(self) -> float:
        return sum(self.flops.values())

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Count the time spent inside; whatever happens outside (evaluation, checkpoints) is free."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - wall
            self.cpu_seconds += time.process_time() - cpu
            self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory())

    def spent(self, axis: str) -> float:
        """How much of a budget axis (`schema.spec.Budget`) is used."""
        return float(getattr(self, axis))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_flops": self.total_flops}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Ledger:
        return cls(**{name: value for name, value in values.items() if name != "total_flops"})




def peak_memory() -> int:
    """Peak bytes: of the accelerator when one is in use, else resident memory of this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
