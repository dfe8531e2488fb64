"""Both implementations against transformers' own forward pass and `generate`, on the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from opdbench.actors import Student, uniform_table
from opdbench.lm.decoder import NativePolicy
from opdbench.lm.generate import generate
from opdbench.lm.hf import HfPolicy
from opdbench.lm.model import load
from opdbench.lm.policy import LanguagePolicy, pad_right
from tests.lm.models import EOS, GENERIC, NATIVE

Made = Callable[[str], tuple[Path, PreTrainedModel]]

PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16, 17, 18]]
EVERY = [*NATIVE, *GENERIC]


def logits_bta(policy: LanguagePolicy, sequences: list[list[int]]) -> Tensor:
    tokens_bt, length_b = pad_right(sequences, policy.device)
    with torch.no_grad():
        features_bth = policy.features(tokens_bt, length_b)
        return policy.project(features_bth.flatten(0, 1)).view(*tokens_bt.shape, -1)


def expected_ta(model: PreTrainedModel, sequence: list[int]) -> Tensor:
    """One sequence at a time: no padding is involved."""
    with torch.no_grad():
        return model(torch.tensor([sequence])).logits[0]


def assert_close(found: Tensor, expected: Tensor, name: str = "") -> None:
    """Equal up to float32 rounding of logits of size 30; Mamba's scan sums in another order for another batch."""
    torch.testing.assert_close(found, expected, atol=1e-3 if name == "mamba" else 5e-5, rtol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_the_fast_path_runs_what_it_claims_to_and_nothing_else(made: Made, name: str) -> None:
    policy = load(made(name)[0])
    assert isinstance(policy, NativePolicy if name in NATIVE else HfPolicy)
    assert ("not the native decoder" in policy.describe()) == (name in GENERIC)


@pytest.mark.parametrize("name", EVERY)
def test_logits_are_those_of_transformers(made: Made, name: str) -> None:
    folder, model = made(name)
    found = logits_bta(load(folder), PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        assert_close(found[row, :len(prompt)], expected_ta(model, prompt), name)


@pytest.mark.parametrize("name", EVERY)
def test_greedy_output_is_that_of_transformers_generate(made: Made, name: str, generator: torch.Generator) -> None:
    folder, model = made(name)
    policy = load(folder)
    completions = generate(Student(0.0), policy, None, PROMPTS, max_new_tokens=24, eos_ids=policy.tokenizer.eos_ids,
                           uniform_tbd=uniform_table(len(PROMPTS), 24, generator))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt):]
        assert completion.tokens == expected.tolist()
        assert completion.ended == (completion.tokens[-1] == EOS)
    assert len({token for completion in completions for token in completion.tokens}) > 2, "too dull to prove anything"


@pytest.mark.parametrize("name", EVERY)
def test_every_step_of_decoding_gives_the_logits_of_the_whole_prefix(made: Made, name: str) -> None:
    folder, model = made(name)
    decoding = load(folder).start(PROMPTS, capacity=9)
    sequences = [list(prompt) for prompt in PROMPTS]
    for step in range(9):
        for row, sequence in enumerate(sequences):
            assert_close(decoding.logits_ba[row], expected_ta(model, sequence)[-1], name)
        if step == 4:  # finished sequences may leave, and the order may change
            decoding.keep(torch.tensor([2, 0]))
            sequences = [sequences[2], sequences[0]]
        token_b = torch.tensor([(7 * step + 3 * row) % 30 + 2 for row in range(len(sequences))])
        decoding.step(token_b)
        for sequence, token in zip(sequences, token_b.tolist(), strict=True):
            sequence.append(token)


@pytest.mark.parametrize("name", ["qwen3", "llama-3", "gpt2", "gemma2-soft-capped"])
def test_a_smaller_vocabulary_is_a_cut_of_the_logits(made: Made, name: str) -> None:
    folder, model = made(name)
    policy = load(folder)
    policy.limit_vocabulary(30)
    assert policy.n_actions == 30
    assert_close(logits_bta(policy, PROMPTS)[0, :4], expected_ta(model, PROMPTS[0])[:, :30])
    assert policy.start(PROMPTS, capacity=1).logits_ba.shape == (3, 30)


@pytest.mark.parametrize("name", ["qwen3", "qwen3-untied-biases", "llama", "gpt2", "gpt-neox", "gemma2-soft-capped"])
def test_gradients_are_those_of_transformers(made: Made, name: str) -> None:
    folder, model = made(name)
    policy = load(folder)
    tokens_bt, length_b = pad_right([PROMPTS[2]], policy.device)
    policy.train()
    policy.project(policy.features(tokens_bt, length_b)[0]).log_softmax(-1)[:, 3].sum().backward()
    model.zero_grad()
    model(tokens_bt).logits[0].log_softmax(-1)[:, 3].sum().backward()
    total = sum(float(parameter.grad.square().sum()) for parameter in policy.parameters() if parameter.grad is not None)
    expected = sum(float(parameter.grad.square().sum()) for parameter in model.parameters())
    assert total == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["qwen3", "llama-3", "gpt2", "gemma2-soft-capped", "mamba"])
def test_a_saved_folder_is_read_by_transformers_and_by_us(made: Made, name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = load(made(name)[0])
    with torch.no_grad():
        next(policy.parameters()).add_(0.01)
    policy.save(tmp_path / "copy")
    again, theirs = load(tmp_path / "copy"), AutoModelForCausalLM.from_pretrained(tmp_path / "copy").eval()
    torch.testing.assert_close(logits_bta(again, PROMPTS), logits_bta(policy, PROMPTS), rtol=0, atol=0)
    assert_close(expected_ta(theirs, PROMPTS[0]), logits_bta(policy, PROMPTS)[0, :4], name)
    assert again.tokenizer.fingerprint() == policy.tokenizer.fingerprint()


@pytest.mark.parametrize("name", ["gpt2", "gpt-neox"])
def test_training_mode_does_not_turn_dropout_on(made: Made, name: str) -> None:
    policy = load(made(name)[0])
    policy.train()
    assert torch.equal(logits_bta(policy, PROMPTS), logits_bta(policy, PROMPTS))


def test_flops_equal_a_count_by_hand(made: Made) -> None:
    """Multiply-accumulates of a state, counted from the shapes of the tiny Qwen3; embedding look-ups are free."""
    policy = load(made("qwen3")[0])
    per_layer = 32 * (4 + 2 + 2) * 16 + 4 * 16 * 32 + 3 * 32 * 48
    attention = 2 * 4 * 16 * 10  # scores and mixing of four heads over ten inputs
    assert policy.forward_flops(100, 10.0) == 2 * 100 * (2 * (per_layer + attention) + 32 * policy.n_actions)


def test_flops_agree_between_the_implementations(made: Made) -> None:
    folder = made("qwen3")[0]
    generic = HfPolicy.load(folder, dtype=torch.float32, device="cpu", reason="to compare")
    gains = 2 * (2 * 32 + 2 * 16) + 2 * 32  # the generic count takes norms for products: under one percent
    assert generic.forward_flops(1, 10.0) - load(folder).forward_flops(1, 10.0) == pytest.approx(2 * gains, abs=2 * 64)
