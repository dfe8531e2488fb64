"""LoRA students: the base model at first, adapters alone trained, kept, resumed and merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opdbench import seeds
from opdbench.copies import FrozenCopy
from opdbench.errors import UserError
from opdbench.lm.hf import HfPolicy
from opdbench.lm.lora import ADAPTER, LoraPolicy
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy
from opdbench.resolve import Request, resolve
from opdbench.signals import Cancelled
from opdbench.store import CHECKPOINT, unpack
from tests.test_run import Watcher, execute, plan_of

pytest.importorskip("peft", reason="LoRA needs peft: pip install 'opdbench[lora]'")

Made = Callable[[str], tuple[Path, object]]
RUN = {"task": "chain-sum", "budget": "steps=4"}
SETTINGS = ("lora_rank=2", "examples=4", "curve_points=0", "horizon=12")
NAMES = ("qwen3", "llama", "gpt2", "gemma2-soft-capped")


def adapted(folder: Path, *, seed: int = 0, rank: int = 3, moved: bool = False,
            dtype: torch.dtype = torch.float32) -> LoraPolicy:
    policy = LoraPolicy.adapt(folder, rank=rank, alpha=32, generator=seeds.generator(seed, "lora"), dtype=dtype,
                              device="cpu")
    if moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return policy


def logits(policy: LanguagePolicy) -> Tensor:
    input_bt = torch.arange(4, 24).view(2, 10)
    return policy.project(policy.features(input_bt, torch.tensor([10, 10])).flatten(0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_it_starts_as_the_base_model_exactly(name: str, made: Made) -> None:
    folder, _ = made(name)
    base = HfPolicy.load(folder, dtype=torch.float32, device="cpu", reason="")
    assert torch.equal(logits(adapted(folder)), logits(base))


def test_only_adapters_get_a_gradient_and_the_base_stays(made: Made) -> None:
    policy = adapted(made("qwen3")[0], moved=True)
    frozen = {name: value.clone() for name, value in policy.named_parameters() if ".lora_" not in name}
    logits(policy).logsumexp(-1).sum().backward()
    for name, parameter in policy.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name
    torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(value, frozen[name]) for name, value in policy.named_parameters() if name in frozen)


def test_every_linear_layer_but_the_output_is_adapted(made: Made) -> None:
    adapters = {name.split(".lora_")[0].rpartition(".")[2] for name in adapted(made("qwen3")[0]).state_dict()}
    assert adapters == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_adapters_start_from_the_seed_and_leave_the_global_state_alone(made: Made) -> None:
    folder, _ = made("qwen3")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = adapted(folder), adapted(folder), adapted(folder, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.equal(value, other.state_dict()[name]) == ("lora_B" in name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_saved_is_merged_and_the_adapters_lie_beside_it(name: str, made: Made, tmp_path: Path) -> None:
    policy = adapted(made(name)[0], moved=True, dtype=torch.float64)
    policy.save(tmp_path / "student")
    merged = load(tmp_path / "student", dtype=torch.float64)
    assert not any(".lora_" in key for key in merged.state_dict())
    same = HfPolicy.load(tmp_path / "student", dtype=torch.float64, device="cpu", reason="")
    torch.testing.assert_close(logits(same), logits(policy), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits(merged), logits(policy), rtol=1e-4, atol=1e-5)  # transformers' float32 rotations


def test_the_saved_adapters_are_pefts_own(made: Made, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, _ = made("qwen3")
    policy = adapted(folder, moved=True)
    policy.save(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with_adapters = PeftModel.from_pretrained(base, tmp_path / ADAPTER)
    torch.testing.assert_close(with_adapters(torch.arange(4, 24).view(2, 10)).logits.flatten(0, 1), logits(policy))


def test_its_state_is_the_adapters_alone_and_brings_them_back(made: Made) -> None:
    folder, _ = made("qwen3")
    trained, fresh = adapted(folder, moved=True), adapted(folder, seed=7)
    assert sum(value.numel() for value in trained.state_dict().values()) < 0.25 * trained.n_parameters()
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(logits(fresh), logits(trained))
    with pytest.raises(RuntimeError, match="not this student's adapters"):
        fresh.load_state_dict(dict(list(trained.state_dict().items())[1:]))


def test_a_frozen_copy_survives_a_checkpoint(made: Made) -> None:
    folder, _ = made("qwen3")
    copy, again, student = FrozenCopy(), FrozenCopy(), adapted(folder, moved=True)
    kept = copy.of(student)
    again.load_state_dict(copy.state_dict())
    assert torch.equal(logits(again.of(adapted(folder, seed=3))), logits(kept))  # type: ignore[arg-type]


def test_training_costs_two_thirds_where_adapters_are_small(made: Made) -> None:
    policy = adapted(made("qwen3")[0], rank=1)
    assert 2 < policy.train_flops(10, 5) / policy.forward_flops(10, 5) < 2.2
    base = load(made("qwen3")[0])
    assert base.train_flops(10, 5) == 3 * base.forward_flops(10, 5)


def test_a_run_trains_resumes_exactly_and_leaves_a_student(tmp_path: Path) -> None:
    plan = plan_of("gkd", *SETTINGS, **RUN)
    _, whole = execute(plan, tmp_path / "whole")

    def stop(step: int) -> None:
        if step == 2:
            raise Cancelled(2)

    with pytest.raises(Cancelled):
        execute(plan, tmp_path / "cut", Watcher(stop))
    checkpoint = whole.path.parents[3] / "cut" / whole.path.relative_to(tmp_path / "whole") / CHECKPOINT
    student = unpack(checkpoint.read_bytes())["trainer"]["student"]
    assert student and all(".lora_" in name for name in student)
    _, resumed = execute(plan, tmp_path / "cut")
    for file in ("model.safetensors", f"{ADAPTER}/adapter_model.safetensors"):
        ours, theirs = load_file(whole.student / file), load_file(resumed.student / file)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    again = plan_of("gkd", "examples=4", "curve_points=0", student=str(whole.student), **RUN)
    assert again.spec.recipe.student.sha256 != plan.spec.recipe.student.sha256


def test_the_rank_belongs_to_the_recipe() -> None:
    digests = {plan_of("gkd", *more, task="chain-sum").spec.recipe.digest()
               for more in ((), ("lora_rank=2",), ("lora_rank=4",), ("lora_rank=4", "lora_alpha=8"))}
    assert len(digests) == 4


@pytest.mark.parametrize(("task", "setting", "message"), [
    ("cartpole", "lora_rank=4", "is a control task"), ("chain-sum", "lora_alpha=8", "would change nothing")])
def test_where_it_makes_no_sense_it_is_refused(task: str, setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(Request(method="gkd", task=task, settings=(setting,)))


def test_without_peft_the_command_that_installs_it_is_named(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdbench.lm.lora.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'opdbench\[lora\]'"):
        adapted(made("qwen3")[0])
