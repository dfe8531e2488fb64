"""Tiny random models of many architectures, saved by transformers. Weights are large, so that outputs vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from opdbench.lm.tokenizer import Tokenizer

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789 "
VOCABULARY = len(ALPHABET) + 2
EOS = 1

_IDS = {"vocab_size": VOCABULARY, "bos_token_id": None, "eos_token_id": EOS, "pad_token_id": 0}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
          "max_position_embeddings": 128, **_IDS}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}

NATIVE: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True, **_GROUPED},
    "qwen3-untied-biases": {"model_type": "qwen3", "head_dim": 8, "attention_bias": True, **_GROUPED},
    "qwen2": {"model_type": "qwen2", **_GROUPED},
    "llama": {"model_type": "llama", "attention_bias": True, "mlp_bias": True, **_SIZES},
    "llama-3": {"model_type": "llama", **_GROUPED, "rope_parameters": {
        "rope_type": "llama3", "rope_theta": 50.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32}},
    "llama-yarn": {"model_type": "llama", **_GROUPED, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 32}},
    "llama-linear": {"model_type": "llama", **_GROUPED, "rope_parameters": {
        "rope_type": "linear", "rope_theta": 50.0, "factor": 2.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None, **_GROUPED},
}
GENERIC: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **_IDS},
    "gpt-neox": {"model_type": "gpt_neox", **_SIZES},
    "gemma2-soft-capped": {"model_type": "gemma2", "head_dim": 8, "sliding_window": 8, **_GROUPED},
    "mistral-sliding": {"model_type": "mistral", "sliding_window": 8, **_GROUPED},
    "bloom-alibi": {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, **_IDS},
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, **_IDS},
}


def tokenizer() -> Tokenizer:
    return Tokenizer.characters(ALPHABET)


def make(folder: Path, name: str, *, seed: int = 0, **changes: Any) -> transformers.PreTrainedModel:
    """Save a random model of architecture `name` and its tokenizer in `folder`; returns transformers' own model."""
    settings = {**NATIVE, **GENERIC}[name] | changes
    config = transformers.AutoConfig.for_model(**settings)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Biases and gains start at constants, under which mixing them up would go unnoticed.
            parameter.copy_(parameter * 10 if parameter.ndim > 1 else parameter + 0.2 * torch.randn_like(parameter))
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    tokenizer().save(folder)
    return model
