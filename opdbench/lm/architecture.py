"""Which transformers configurations the native decoder can run, read from a folder's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

NATIVE = ("qwen3", "qwen2", "llama", "mistral")


class NotNative(Exception):
    """The native decoder does not run this configuration; the message says why, and transformers runs it instead."""


@dataclass(frozen=True)
class Architecture:
    """A pre-norm decoder with rotary positions, grouped-query attention and a gated SiLU feed-forward network."""

    family: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_eps: float
    context_length: int
    tied: bool
    qk_norm: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    initializer_range: float
    rope: Mapping[str, Any]

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture:
        """Read a transformers config.json (either naming of the rotary parameters).

        Raises:
            NotNative: something in it is not implemented here.
            KeyError: a size is missing.
        """
        family = str(config.get("model_type"))
        _refuse(family not in NATIVE, f"model_type {family!r} is not one of {', '.join(NATIVE)}")
        _refuse(config.get("hidden_act", "silu") != "silu", f"activation {config.get('hidden_act')!r}")
        _refuse(_slides(config, family), "sliding-window attention")
        _refuse("quantization_config" in config, "quantised weights")
        bias = bool(config.get("attention_bias", False))
        n_heads, hidden = config["num_attention_heads"], config["hidden_size"]
        head_dim = config.get("head_dim") or (128 if family == "qwen3" else hidden // n_heads)
        _refuse(head_dim % 2 == 1, "an odd head size")
        return cls(family=family, vocab_size=config["vocab_size"], hidden_size=hidden,
                   intermediate_size=config["intermediate_size"], n_layers=config["num_hidden_layers"],
                   n_heads=n_heads, n_kv_heads=config.get("num_key_value_heads") or n_heads, head_dim=head_dim,
                   norm_eps=config.get("rms_norm_eps", 1e-6), tied=bool(config.get("tie_word_embeddings", False)),
                   context_length=config.get("max_position_embeddings", 2048), qk_norm=family == "qwen3",
                   qkv_bias=family == "qwen2" or bias, o_bias=family in ("qwen3", "llama") and bias,
                   mlp_bias=family == "llama" and bool(config.get("mlp_bias", False)),
                   initializer_range=config.get("initializer_range", 0.02), rope=_rope(config))

    @property
    def n_groups(self) -> int:
        """Query heads that share one key-value head."""
        return self.n_heads // self.n_kv_heads


def qwen3_config(vocab_size: int, *, hidden_size: int, n_layers: int, n_heads: int, n_kv_heads: int,
                 context_length: int, intermediate_size: int | None = None, head_dim: int | None = None,
                 eos_token_id: int | None = None, pad_token_id: int | None = None) -> dict[str, Any]:
    """The config.json of a small Qwen3 model with tied embeddings (feed-forward width 3 x hidden by default)."""
    return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": vocab_size,
            "hidden_size": hidden_size, "intermediate_size": intermediate_size or 3 * hidden_size,
            "num_hidden_layers": n_layers, "num_attention_heads": n_heads, "num_key_value_heads": n_kv_heads,
            "head_dim": head_dim or hidden_size // n_heads, "hidden_act": "silu", "rms_norm_eps": 1e-6,
            "max_position_embeddings": context_length, "initializer_range": 0.02, "tie_word_embeddings": True,
            "attention_bias": False, "attention_dropout": 0.0, "use_sliding_window": False, "use_cache": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "bos_token_id": None, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id}


def rope_frequencies(architecture: Architecture, dtype: torch.dtype) -> tuple[Tensor, float]:
    """Inverse frequencies [head_dim / 2], and the factor on cosine and sine (YaRN's attention factor).

    Position interpolation: Chen et al. 2023 (linear), Llama 3.1's report (llama3), Peng et al. 2023 (yarn); the
    parameters are transformers' `rope_parameters`.
    """
    rope, size = architecture.rope, architecture.head_dim
    exponent = torch.arange(0, size, 2, dtype=torch.int64).to(dtype) / size
    frequency = 1.0 / rope["rope_theta"] ** exponent
    kind = rope["rope_type"]
    if kind == "linear":
        return frequency / rope["factor"], 1.0
    if kind == "llama3":
        return _llama3(frequency, rope), 1.0
    if kind == "yarn":
        return _yarn(frequency, rope, size)
    return frequency, 1.0


def _llama3(frequency: Tensor, rope: Mapping[str, Any]) -> Tensor:
    """Long wavelengths are slowed by `factor`, short ones kept, those between interpolated."""
    context, low, high = rope["original_max_position_embeddings"], rope["low_freq_factor"], rope["high_freq_factor"]
    wavelength = 2 * math.pi / frequency
    weight = (context / wavelength - low) / (high - low)
    between = (1 - weight) * frequency / rope["factor"] + weight * frequency
    scaled = torch.where(wavelength > context / low, frequency / rope["factor"], frequency)
    return torch.where((wavelength >= context / high) & (wavelength <= context / low), between, scaled)


def _yarn(frequency: Tensor, rope: Mapping[str, Any], size: int) -> tuple[Tensor, float]:
    context, factor, theta = rope["original_max_position_embeddings"], rope["factor"], rope["rope_theta"]

    def dimension(rotations: float) -> float:
        return size * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(rope.get("beta_fast") or 32)), 0)
    high = min(math.ceil(dimension(rope.get("beta_slow") or 1)), size - 1)
    ramp = (torch.arange(size // 2, dtype=frequency.dtype) - low) / max(high - low, 0.001)
    interpolated = ramp.clamp(0, 1)
    attention = rope.get("attention_factor") or (0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0)
    return frequency / factor * interpolated + frequency * (1 - interpolated), attention


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters`; before, `rope_theta` and `rope_scaling` lay beside the sizes."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.get("type") or "default"
    rope["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
    kind = rope["rope_type"]
    _refuse(kind not in ("default", "linear", "llama3", "yarn"), f"rotary positions of type {kind!r}")
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    _refuse(partial not in (None, 1, 1.0), "partial rotary positions")
    if kind in ("llama3", "yarn"):
        rope.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    unusual = kind == "yarn" and (rope.get("factor") is None or rope.get("mscale") or rope.get("truncate") is False)
    _refuse(bool(unusual), "unusual YaRN parameters")
    return rope


def _slides(config: Mapping[str, Any], family: str) -> bool:
    """Whether any layer attends to a window shorter than the context."""
    if "layer_types" in config and config["layer_types"] is not None:
        return any(kind != "full_attention" for kind in config["layer_types"])
    if family == "mistral":
        return config.get("sliding_window", 4096) is not None
    layers = config.get("max_window_layers", 28)
    return bool(config.get("use_sliding_window")) and config["num_hidden_layers"] > layers


def _refuse(condition: bool, reason: str) -> None:
    if condition:
        raise NotNative(reason)
