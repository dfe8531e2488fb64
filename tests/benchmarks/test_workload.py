from __future__ import annotations

from pathlib import Path

import torch

from benchmarks import workload
from benchmarks.timing import Parts
from benchmarks.workers.opdbench_steps import make_trainer, measure_parts
from opdbench.lm.model import load


def test_both_libraries_read_the_same_models_and_a_step_does_the_work_it_says(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    work = workload.TINY
    workload.write_models(work, tmp_path)
    assert workload.read(tmp_path) == work
    input_bt = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    for role in ("student", "teacher"):
        native = load(tmp_path / role)
        with torch.no_grad():
            mine = native.project(native.features(input_bt, torch.tensor([9, 9])).flatten(0, 1))
            theirs = AutoModelForCausalLM.from_pretrained(tmp_path / role)(input_ids=input_bt).logits.flatten(0, 1)
        assert torch.allclose(mine, theirs, atol=1e-4)

    trainer = make_trainer(tmp_path, work.batch, "cpu-2")
    assert {len(trainer.ctx.world._render(example, work.new, thinking=False))  # type: ignore[attr-defined]
            for example in trainer.ctx.world.task.examples("train")} == {work.prompt}  # type: ignore[attr-defined]
    parts = Parts()
    measure_parts(trainer, parts)
    for _ in range(2):
        figures = trainer.step()
    assert trainer.ctx.ledger.student_tokens == 2 * work.batch * work.new
    assert figures["truncated"] == 1.0 and figures["length"] == work.new  # nothing stopped early
    assert set(parts.pop()) == {"generation", "teacher", "student"}
