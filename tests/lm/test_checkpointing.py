"""Gradient checkpointing and low precision: how a gradient is computed, and in what, changes nothing but rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opdbench.actors import Student, uniform_table
from opdbench.distributions import Categorical
from opdbench.errors import UserError
from opdbench.lm.generate import generate
from opdbench.lm.hf import HfPolicy
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy
from tests.test_run import execute, plan_of

Made = Callable[[str], tuple[Path, object]]
NAMES = ("qwen3", "gpt2", "gemma2-soft-capped")  # native; transformers, split and whole


def loss_and_gradients(policy: LanguagePolicy) -> tuple[Tensor, list[Tensor]]:
    input_bt = torch.arange(4, 24).view(2, 10)
    features_bth = policy.features(input_bt, torch.tensor([10, 7]))
    loss = Categorical(policy.project(features_bth[:, :7].flatten(0, 1))).logp_na[:, 5].sum()
    loss.backward()
    return loss, [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]


def saved_bytes(policy: LanguagePolicy) -> int:
    """Bytes that a forward pass keeps for its gradient."""
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        policy.features(torch.zeros(4, 32, dtype=torch.int64), torch.full((4,), 32))
    return total


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_gradient_are_equal_and_less_is_kept(name: str, made: Made) -> None:
    policy = load(made(name)[0], dtype=torch.float64)
    loss, gradients = loss_and_gradients(policy)
    policy.zero_grad()
    kept = saved_bytes(policy)
    policy.checkpointing = True
    again, gradients_again = loss_and_gradients(policy)
    torch.testing.assert_close(again, loss, rtol=1e-12, atol=0)
    assert len(gradients) == len(gradients_again) > 0
    for one, other in zip(gradients, gradients_again, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-12)
    assert saved_bytes(policy) < 0.5 * kept


def test_dropout_stays_off(made: Made) -> None:
    policy = load(made("gpt2")[0])
    assert isinstance(policy, HfPolicy) and policy.model.config.resid_pdrop > 0
    policy.checkpointing = True
    policy.train()
    input_bt = torch.arange(4, 24).view(2, 10)
    first, second = (policy.features(input_bt, torch.tensor([10, 10])) for _ in range(2))
    assert first.requires_grad and torch.equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_generation_is_not_affected(name: str, made: Made) -> None:
    policy, written = load(made(name)[0]), []
    for policy.checkpointing in (False, True):
        table = uniform_table(2, 6, torch.Generator().manual_seed(0))
        written.append(generate(Student(), policy, None, [[5, 6], [7]], max_new_tokens=6, eos_ids=frozenset({1}),
                                uniform_tbd=table))
    assert written[0] == written[1]


def test_a_model_without_such_layers_is_refused(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(made("gpt2")[0])
    policy.checkpointing = True
    monkeypatch.setattr("transformers.modeling_layers.GradientCheckpointingLayer", Exception)
    with pytest.raises(UserError, match="cannot recompute the layers of gpt2"):
        policy.features(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([3]))


def test_it_is_no_part_of_the_recipe_and_changes_no_loss(tmp_path: Path) -> None:
    plans = [plan_of("gkd", "curve_points=0", "dtype=float64", "teacher_dtype=float64", f"gradient_checkpointing={on}",
                     task="chain-sum", budget="steps=3") for on in ("false", "true")]
    assert plans[0].spec.recipe.digest() == plans[1].spec.recipe.digest()
    plain, again = (execute(plan, tmp_path / str(number))[0] for number, plan in enumerate(plans))
    for one, other in zip(plain.curve, again.curve, strict=True):
        assert other == pytest.approx(one, rel=1e-10)
    assert plain.ledger["total_flops"] == again.ledger["total_flops"]


@pytest.mark.parametrize("name", NAMES)
def test_a_bfloat16_model_is_normalised_in_float32(name: str, made: Made) -> None:
    """The values are those of the rounded logits, normalised in float64, to float32's rounding."""
    policy = load(made(name)[0], dtype=torch.bfloat16)
    features_bth = policy.features(torch.arange(4, 24).view(2, 10), torch.tensor([10, 10]))
    assert features_bth.dtype == torch.bfloat16
    logits_na = policy.project(features_bth.flatten(0, 1))
    logp_na = Categorical(logits_na).logp_na
    assert logits_na.dtype == logp_na.dtype == torch.float32
    exact_na = logits_na.double().log_softmax(-1)
    assert (logp_na - exact_na).abs().max() < 2e-6 * exact_na.abs().max()
    assert (logits_na.bfloat16().log_softmax(-1) - exact_na).abs().max() > 1e-3  # what bfloat16 would have lost
