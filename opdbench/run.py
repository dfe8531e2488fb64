"""One run from plan to record: evaluate, train, evaluate again, and leave an honest record however it ends.

A run is idempotent. Its folder is named by its recipe: a finished run is shown and not run again, an interrupted one
goes on from its last checkpoint and ends as it would have ended, and what was evaluated once is not evaluated again.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from opdbench import hardware, population, probes, provenance, seeds, sitting, worlds
from opdbench.context import Context
from opdbench.errors import DivergedError, UserError
from opdbench.ledger import Ledger
from opdbench.loop import Trainer
from opdbench.oracle import Oracle
from opdbench.policy import Policy
from opdbench.population import Population
from opdbench.resolve import Plan
from opdbench.schema.record import Phase, Record, Status, Times, gap_recovered
from opdbench.schema.spec import Recipe
from opdbench.scores import scores
from opdbench.signals import Cancelled, signals
from opdbench.store import RunFolder, read_outcomes, run_path
from opdbench.world import World

CURVE_POINTS = 200  # of the diagnostics that a record keeps
Mode = Literal["greedy", "sampled"]


class Watcher(Protocol):
    """Sees a run as it goes: the command line's live display."""

    def phase(self, name: str) -> None:
        """An evaluation or training begins."""

    def step(self, progress: float, figures: dict[str, float], ledger: Ledger) -> None:
        """A training step has ended."""


def run_folder(results: Path, recipe: Recipe) -> RunFolder:
    """`results/<task>/<method>/s<seed>-<id>`."""
    return RunFolder(results / run_path(recipe, recipe.run_id()))


def execute(plan: Plan, folder: RunFolder, watcher: Watcher, *, fresh: bool = False) -> Record:
    """Run a plan to its end, or show that it has been.

    Args:
        fresh: forget what the folder holds and start again.

    Raises:
        UserError: what a user can mend; the record says so too.
        Cancelled: a signal; the record says `cancelled`, and a checkpoint lets the same command go on.
    """
    with folder.lock():
        earlier = None if fresh else folder.read_record()
        if earlier is not None and earlier.status == "completed":
            return earlier
        if fresh:
            folder.drop_checkpoint()
        return _Run(plan, folder, watcher, earlier).execute()


class _Run:
    """The state of one execution."""

    def __init__(self, plan: Plan, folder: RunFolder, watcher: Watcher, earlier: Record | None) -> None:
        self.plan, self.folder, self.watcher = plan, folder, watcher
        self.recipe = plan.spec.recipe
        self.resuming = earlier is not None
        self.began = time.perf_counter()
        self.record = self._first_record(earlier)
        self.curve: list[dict[str, float]] = []

    def execute(self) -> Record:
        """Write `started`, do the work, and turn every way of ending into a status with its reason."""
        self.folder.write_record(self.record)
        try:
            with signals.handled():
                self._work()
            self._finish("completed", None)
            self.folder.drop_checkpoint()
        except DivergedError as error:
            self._finish("diverged", str(error))
        except Cancelled as error:
            self._finish("cancelled", f"stopped by {error.name}")
            raise
        except UserError as error:
            self._finish("error", error.problem)
            raise
        except Exception as error:
            if not _out_of_memory(error):
                self._finish("error", f"{type(error).__name__}: {error}")
                raise
            self._finish("oom", str(error).strip().splitlines()[0])
        return self.record

    def _work(self) -> None:
        worlds.set_threads(self.plan.spec.execution)
        self.watcher.phase("loading")
        world = worlds.build(self.plan)
        self.record.scorer = world.task.scorer()
        self._evaluate("before", world, world.student)
        teacher = world.teacher or world.oracle
        if teacher is not None:
            self._evaluate("teacher", world, teacher)
        self._train(world)
        world.student.save(self.folder.student)
        self._evaluate("after", world, world.student)

    def _train(self, world: World) -> None:
        ctx = Context(world, self.recipe.training, self.recipe.budget, self.plan.spec.execution, Ledger(),
                      self.recipe.seed)
        trainer = population.start(self.plan.new_method, ctx, probes.make(self.plan.spec.execution.probes))
        self._resume(trainer)
        self.watcher.phase(f"training goes on after step {ctx.step}" if ctx.step else "training")
        last_checkpoint = time.perf_counter()
        try:
            signals.defer = True  # until a step is whole and can be checkpointed
            while not trainer.finished:
                figures = trainer.step()
                self.curve.append({"step": ctx.step, **figures})
                self._validate(world, ctx, trainer.student)
                self.watcher.step(ctx.progress, figures, ctx.ledger)
                if time.perf_counter() - last_checkpoint >= self.plan.spec.execution.checkpoint_seconds:
                    self._checkpoint(trainer)
                    last_checkpoint = time.perf_counter()
                signals.check()
        except Cancelled:
            self._checkpoint(trainer)
            raise
        finally:
            signals.defer = False
            self.record.ledger = ctx.ledger.as_dict()
            self.record.curve = [finite(entry) for entry in thin(self.curve, CURVE_POINTS)]
            self.record.probes = {probe.name: {"series": probe.series, **probe.summary(ctx)}
                                  for probe in trainer.probes}
        self.record.stopped_by = next(axis for axis, limit in self.recipe.budget.limits().items()
                                      if ctx.ledger.spent(axis) >= limit)
        # Training is over: a crash in the last evaluation must not cost it.
        self._checkpoint(trainer)
        if trainer.student is not world.student:  # but another member of a population
            world.student.load_state_dict(trainer.student.state_dict())

    def _resume(self, trainer: Trainer | Population) -> None:
        if not self.folder.has_checkpoint():
            return
        state = self.folder.read_checkpoint()
        trainer.load_state_dict(state["trainer"])
        self.curve, self.record.validation = state["curve"], state["validation"]
        self.record.times.resumed += 1

    def _checkpoint(self, trainer: Trainer | Population) -> None:
        self.folder.write_checkpoint({"trainer": trainer.state_dict(), "curve": self.curve,
                                      "validation": self.record.validation})

    def _validate(self, world: World, ctx: Context, student: Policy) -> None:
        """A greedy score on validation problems whenever another share of the budget is spent; off the clock."""
        points = self.recipe.evaluation.curve_points
        if int(ctx.progress * points) <= len(self.record.validation):
            return
        outcomes = world.evaluate(student, split="validation", mode="greedy",
                                  n=self.recipe.evaluation.curve_examples,
                                  seed=evaluation_seed(self.recipe, "validation"))
        self.record.validation.append({"step": ctx.step, "student_tokens": ctx.ledger.student_tokens,
                                       "score": scores(outcomes, world.task.metric)["greedy"].mean})

    def _evaluate(self, phase: Phase, world: World, policy: Policy | Oracle) -> None:
        """Score a policy on the test problems, or read what an earlier attempt of this run stored."""
        self.watcher.phase(f"evaluating: {phase}")
        if phase not in self.record.outcomes:
            modes: tuple[Mode, ...] = ("greedy", "sampled") if self.recipe.evaluation.sampled else ("greedy",)
            outcomes = [outcome for mode in modes for outcome in world.evaluate(
                policy, split="test", mode=mode, n=self.recipe.evaluation.examples,
                seed=evaluation_seed(self.recipe, mode))]
            self.record.outcomes[phase] = self.folder.write_outcomes(phase, outcomes)
            setattr(self.record, phase, scores(outcomes, world.task.metric))
            self.folder.write_record(self.record)
        else:
            read_outcomes(self.folder.path, self.record.outcomes[phase])  # still there and unaltered, or an error

    def _finish(self, status: Status, reason: str | None) -> None:
        record = self.record
        record.status, record.reason = status, reason
        record.gap_recovered = {
            mode: gap_recovered(before, record.teacher[mode], record.after[mode])
            for mode, before in record.before.items() if mode in record.teacher and mode in record.after}
        record.times.finished = _now()
        record.times.total_seconds += time.perf_counter() - self.began
        self.folder.write_record(record)

    def _first_record(self, earlier: Record | None) -> Record:
        """`started`; an interrupted run keeps what it had evaluated before training."""
        plan = self.plan
        record = Record(id=self.recipe.run_id(), recipe=self.recipe, recipe_sha256=self.recipe.digest(),
                        execution=plan.spec.execution, origins=plan.spec.origins, command=plan.request.command(),
                        provenance=provenance.collect(), hardware=hardware.probe().as_json(),
                        times=Times(started=_now(), sitting=sitting.current()))
        if earlier is not None:
            record.times = earlier.times.model_copy(update={"sitting": record.times.sitting})
            record.before, record.teacher = earlier.before, earlier.teacher
            record.outcomes = {phase: file for phase, file in earlier.outcomes.items() if phase != "after"}
        return record


def evaluation_seed(recipe: Recipe, mode: str) -> int:
    """Equal for before, teacher and after, and for every method at this seed: common random numbers."""
    return seeds.derive(recipe.seed, "evaluation", mode)


def thin(curve: list[dict[str, float]], points: int) -> list[dict[str, float]]:
    """At most about `points` entries, evenly spaced, the last one included."""
    stride = max(1, -(-len(curve) // points))
    return [entry for index, entry in enumerate(curve) if (len(curve) - 1 - index) % stride == 0]


def finite(entry: dict[str, float]) -> dict[str, float]:
    """The figures that are numbers: JSON knows no infinity, and a divergence may be infinite."""
    return {name: value for name, value in entry.items() if math.isfinite(value)}


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
