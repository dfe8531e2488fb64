"""The same on an accelerator: `pytest -m gpu`. Deselected by default, and skipped where torch sees no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from opdbench import run
from opdbench.actors import Mixture
from opdbench.lm.model import load
from opdbench.lm.world import LanguageWorld
from opdbench.models import shipped_models
from opdbench.resolve import Request, resolve
from opdbench.seeds import generator
from opdbench.tasks.reasoning import ChainSum
from tests.test_run import Watcher

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")]


def test_a_language_model_gives_the_logits_that_it_gives_on_a_cpu() -> None:
    folder = shipped_models()["text-maze/teacher"]
    on_cpu, on_gpu = (load(folder, dtype=torch.float64, device=device) for device in ("cpu", "cuda"))
    tokens_bt = torch.tensor([on_cpu.tokenizer.encode("AB:^C>D")])
    length_b = torch.tensor([tokens_bt.shape[1]])
    expected = on_cpu.project(on_cpu.features(tokens_bt, length_b)[0])
    found = on_gpu.project(on_gpu.features(tokens_bt.cuda(), length_b.cuda())[0])
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-9, atol=1e-9)


def test_a_rollout_draws_what_it_draws_on_a_cpu() -> None:
    rollouts = []
    for device in ("cpu", "cuda"):
        student, teacher = (load(shipped_models()[f"chain-sum/{role}"], dtype=torch.float64, device=device)
                            for role in ("student", "teacher"))
        world = LanguageWorld(ChainSum(), student, teacher, seed=0, generation_batch=5)
        rollouts.append(world.rollout(Mixture(0.5), n=16, horizon=24, generator=generator(0, "test")).to("cpu"))
    on_cpu, on_gpu = rollouts
    assert torch.equal(on_cpu.input_bt, on_gpu.input_bt) and torch.equal(on_cpu.source_bt, on_gpu.source_bt)


@pytest.mark.parametrize("task", ["text-maze", "cartpole"])
@pytest.mark.parametrize("method", ["gkd", "opd", "dagger"])
def test_a_run_on_a_gpu_repeats_bit_for_bit(method: str, task: str, tmp_path: Path) -> None:
    settings = ("device=cuda", "batch=4", "horizon=8", "examples=4", "curve_points=0")
    plan = resolve(Request(method=method, task=task, profile="cpu-2", settings=settings, budget=("steps=3",)))
    records = [run.execute(plan, run.run_folder(tmp_path / name, plan.spec.recipe), Watcher()) for name in "ab"]
    assert records[0].status == "completed" and records[0].execution.device == "cuda"
    assert records[0].repeatable() == records[1].repeatable()
