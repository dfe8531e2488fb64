"""The native decoder's own promises: precision, padding, checkpointing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opdbench.lm.architecture import Architecture, NotNative, qwen3_config
from opdbench.lm.decoder import NativePolicy
from opdbench.lm.model import load
from opdbench.lm.policy import pad_right
from tests.lm.models import NATIVE, tokenizer

Made = Callable[..., tuple[Path, object]]
SEQUENCES = [[5, 6, 7], [9, 3, 2, 8, 8, 4, 11], [20, 21, 22, 23, 24]]


@pytest.mark.parametrize("name", ["qwen3", "llama-yarn"])
def test_features_do_not_depend_on_padding_or_order(made: Made, name: str) -> None:
    policy = load(made(name)[0], dtype=torch.float64)
    tokens_bt, length_b = pad_right(SEQUENCES, policy.device)
    valid_bt = torch.arange(tokens_bt.shape[1]) < length_b[:, None]
    whole = policy.features(tokens_bt, length_b)
    other_padding = policy.features(torch.where(valid_bt, tokens_bt, 17), length_b)
    wider = policy.features(torch.nn.functional.pad(tokens_bt, (0, 6), value=4), length_b)
    order = torch.tensor([2, 0, 1])
    for row, sequence in enumerate(SEQUENCES):
        n = len(sequence)
        alone = policy.features(torch.tensor([sequence]), torch.tensor([n]))[0]
        for found in (whole[row, :n], other_padding[row, :n], wider[row, :n]):
            torch.testing.assert_close(found, alone, atol=1e-12, rtol=0)
    torch.testing.assert_close(policy.features(tokens_bt[order], length_b[order]), whole[order], atol=1e-12, rtol=0)
    assert torch.isfinite(wider).all()


@pytest.mark.parametrize("name", list(NATIVE))
def test_float64_is_float64_throughout(made: Made, name: str) -> None:
    """A change of 1e-10 in the first weights moves the logits by the derivative times 1e-10; float32 would lose it."""
    policy = load(made(name)[0], dtype=torch.float64)
    assert isinstance(policy, NativePolicy)
    tokens_bt, length_b = pad_right(SEQUENCES[1:2], policy.device)

    def total() -> torch.Tensor:
        return policy.project(policy.features(tokens_bt, length_b)[0])[-1, 5]

    total().backward()
    gain = policy.layers[0].get_parameter("attention_norm")
    direction = torch.ones_like(gain)
    assert gain.grad is not None
    slope = float((gain.grad * direction).sum())
    with torch.no_grad():
        before = float(total())
        gain.add_(direction, alpha=1e-8)
        after = float(total())
    assert (after - before) / 1e-8 == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_decoding_in_float64_agrees_with_the_whole_pass_to_float64(made: Made) -> None:
    policy = load(made("qwen3")[0], dtype=torch.float64)
    decoding = policy.start([[5, 6], [9, 3, 2, 8]], capacity=1)
    logits_ba = decoding.step(torch.tensor([7, 4]))
    tokens_bt, length_b = pad_right([[5, 6, 7], [9, 3, 2, 8, 4]], policy.device)
    features_bth = policy.features(tokens_bt, length_b)
    expected_ba = policy.project(features_bth[torch.arange(2), length_b - 1])
    torch.testing.assert_close(logits_ba, expected_ba, atol=1e-11, rtol=0)


def test_bfloat16_gives_float32_logits_close_to_float32(made: Made) -> None:
    folder = made("qwen3")[0]
    narrow, wide = load(folder, dtype=torch.bfloat16), load(folder)
    found, expected = (policy.start(SEQUENCES, capacity=2) for policy in (narrow, wide))
    token_b = torch.tensor([3, 4, 5])
    for left, right in ((found.logits_ba, expected.logits_ba), (found.step(token_b), expected.step(token_b))):
        assert left.dtype == torch.float32
        assert (left.softmax(-1) - right.softmax(-1)).abs().max() < 0.1


def test_checkpointing_changes_no_gradient(made: Made) -> None:
    policy = load(made("qwen3")[0], dtype=torch.float64)
    assert isinstance(policy, NativePolicy)
    gradients = []
    for policy.checkpointing in (False, True):
        policy.zero_grad()
        policy.features(*pad_right(SEQUENCES, policy.device)).square().sum().backward()
        gradients.append([parameter.grad for parameter in policy.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_training_works_after_generation_has_filled_the_tables(made: Made) -> None:
    policy = load(made("qwen3")[0])
    policy.start(SEQUENCES, capacity=3).step(torch.tensor([1, 2, 3]))
    policy.features(*pad_right(SEQUENCES, policy.device)).sum().backward()
    assert all(parameter.grad is not None for parameter in policy.parameters())


def test_a_new_model_is_the_same_for_the_same_generator_and_can_be_saved(tmp_path: Path) -> None:
    characters = tokenizer()
    config = qwen3_config(characters.n_tokens, hidden_size=16, n_layers=1, n_heads=2, n_kv_heads=1, context_length=32)
    one, two = (NativePolicy.initialise(config, characters, torch.Generator().manual_seed(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert 0.015 < float(one.embedding.detach().std()) < 0.025
    one.save(tmp_path / "new")
    again = load(tmp_path / "new")
    assert again.tokenizer.eos_ids == characters.eos_ids
    assert torch.equal(again.get_parameter("embedding"), one.embedding)


@pytest.mark.parametrize(("change", "reason"), [
    ({"model_type": "gpt2"}, "model_type"), ({"hidden_act": "gelu"}, "gelu"), ({"use_sliding_window": True,
     "layer_types": ["sliding_attention", "full_attention"]}, "sliding"), ({"quantization_config": {}}, "quantised"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"), ({"partial_rotary_factor": 0.5}, "partial")])
def test_what_is_not_implemented_is_refused_with_its_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(NotNative, match=reason):
        Architecture.from_config({**NATIVE["qwen3"], **change})


def test_the_old_names_of_the_rotary_parameters_are_read() -> None:
    scaling = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    config = {key: value for key, value in NATIVE["llama-3"].items() if key != "rope_parameters"}
    old = Architecture.from_config({**config, "rope_theta": 50.0, "rope_scaling": {"type": "llama3", **scaling}})
    new = Architecture.from_config(NATIVE["llama-3"])
    assert {key: value for key, value in old.rope.items() if key != "type"} == dict(new.rope)
