"""opdbench's loop, one step at a time: `opd` with the full-vocabulary reverse KL, as `opdbench run` would do it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import workload
from benchmarks.pipe import Channel, arguments
from benchmarks.timing import Parts, clock_of, peak_bytes
from opdbench import hardware, worlds
from opdbench.baselines.opd import OPD
from opdbench.context import Context
from opdbench.ledger import Ledger
from opdbench.lm.model import load
from opdbench.lm.world import LanguageWorld
from opdbench.loop import Trainer
from opdbench.schema.spec import Budget, Training
from opdbench.task import Example, LanguageTask, Split


class FixedLength(LanguageTask):
    """Prompts of one length, completions of one length, nothing to grade."""

    name, version, summary, source, license, protocol = "fixed-length", 1, "", "", "", ""
    metric, teacher, student, training, budget = "none", None, None, {}, {}
    stop_at_eos = False

    def __init__(self, work: workload.Workload, tokenizer: Any) -> None:
        super().__init__()
        self.max_new_tokens = work.new  # type: ignore[misc]
        conversations = workload.prompts(tokenizer, work.prompt, max(256, work.batch))
        self._examples = [Example(str(index), messages, "") for index, messages in enumerate(conversations)]

    def examples(self, split: Split) -> Sequence[Example]:
        return self._examples

    def grade(self, example: Example, completion: str) -> dict[str, float]:
        return {self.metric: 0.0}

    def checksum(self) -> str:
        return "0" * 64


def make_trainer(folder: Path, batch: int, profile: str) -> Trainer:
    """opdbench's loop on a workload; precision, micro-batches and chunks are those of a shipped hardware profile."""
    work = workload.read(folder).with_batch(batch)
    execution = hardware.load(profile).execution()
    worlds.set_threads(execution)
    student = load(folder / "student", dtype=getattr(torch, execution.dtype), device=execution.device)
    teacher = load(folder / "teacher", dtype=getattr(torch, execution.teacher_dtype), device=execution.device)
    world = LanguageWorld(FixedLength(work, student.tokenizer.inner), student, teacher, seed=0,
                          generation_batch=execution.generation_batch, teacher_batch=execution.teacher_batch)
    training = Training(lr=work.lr, batch=batch, horizon=work.new)
    ctx = Context(world, training, Budget(steps=10**9), execution, Ledger(), 0)
    return Trainer(OPD(OPD.Params()), ctx)


def measure_parts(trainer: Trainer, parts: Parts) -> None:
    """Charge the loop's stages to generation, teacher and student; what is left is the rest."""
    world = trainer.ctx.world
    assert world.teacher is not None
    parts.wrap(world, "rollout", "generation")
    parts.wrap(world, "teacher_features", "teacher")
    parts.wrap(world.teacher, "project", "teacher")
    parts.wrap(trainer, "_accumulate", "student")


def main() -> None:
    channel, given = Channel(), arguments()
    trainer = make_trainer(Path(given["folder"]), given["batch"], given["profile"])
    device = trainer.ctx.execution.device
    parts = Parts(clock_of(device))
    measure_parts(trainer, parts)
    channel.send({"name": "opdbench", "version": f"torch {torch.__version__}"})
    ledger = trainer.ctx.ledger
    while channel.wait():
        tokens, flops, start = ledger.student_tokens, ledger.total_flops, parts.clock()
        figures = trainer.step()
        channel.send({"seconds": parts.clock() - start, "parts": parts.pop(), "loss": figures["loss"],
                      "tokens": ledger.student_tokens - tokens, "flops": ledger.total_flops - flops,
                      "memory": peak_bytes(device)})


if __name__ == "__main__":
    main()
