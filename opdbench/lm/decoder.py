"""A native decoder for the Qwen3, Qwen2, Llama and Mistral families, made for few dispatches.

Small models are bound by the number of operations launched, not by arithmetic. So query, key and value are one matrix,
and gate and up are one. Parameters are stored fused; `hf_tensors` gives them their transformers names. Writing token
by token is in `opdbench.lm.decoding`. Suffixes: b sequences, t tokens, h hidden, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from opdbench import output_layer
from opdbench.lm.architecture import Architecture, rope_frequencies
from opdbench.lm.checkpoint import dtype_name, read_config, read_json, read_weights, write_folder, write_json
from opdbench.lm.policy import Decoding, LanguagePolicy, widen
from opdbench.lm.tokenizer import Tokenizer


class Rotary(NamedTuple):
    """Cosine and sine of every position, [T, 1, d]; the sine carries the signs of the rotation's two halves."""

    cos: Tensor
    sin: Tensor


class Layer(nn.Module):
    """Attention and a gated feed-forward network, each after a root-mean-square norm and beside a residual path."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        self.attention_norm = nn.Parameter(torch.ones(a.hidden_size))
        self.qkv = nn.Linear(a.hidden_size, (a.n_heads + 2 * a.n_kv_heads) * a.head_dim, bias=a.qkv_bias)
        self.qk_norm = nn.Parameter(torch.ones(2, a.head_dim)) if a.qk_norm else None
        self.out = nn.Linear(a.n_heads * a.head_dim, a.hidden_size, bias=a.o_bias)
        self.mlp_norm = nn.Parameter(torch.ones(a.hidden_size))
        self.gate_up = nn.Linear(a.hidden_size, 2 * a.intermediate_size, bias=a.mlp_bias)
        self.down = nn.Linear(a.intermediate_size, a.hidden_size, bias=a.mlp_bias)

    def forward(self, x_bth: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor, Tensor]:
        """The layer's output [B, T, H], and its keys and values, each [B, T, kv heads, d]."""
        a, (batch, length, _) = self.a, x_bth.shape
        normed = F.rms_norm(x_bth, (a.hidden_size,), self.attention_norm, a.norm_eps)
        heads = self.qkv(normed).view(batch, length, -1, a.head_dim)
        qk, v = torch.split(heads, [a.n_heads + a.n_kv_heads, a.n_kv_heads], 2)
        qk = rotate(self.normalise(qk), rotary)
        q, k = torch.split(qk, [a.n_heads, a.n_kv_heads], 2)
        # Valid tokens come first, so the causal mask alone keeps them from seeing the padding on their right.
        mixed = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                                               is_causal=True, enable_gqa=a.n_groups > 1)
        x_bth = x_bth + self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        normed = F.rms_norm(x_bth, (a.hidden_size,), self.mlp_norm, a.norm_eps)
        gate, up = self.gate_up(normed).chunk(2, -1)
        return x_bth + self.down(F.silu(gate) * up), k, v

    def normalise(self, qk: Tensor) -> Tensor:
        """Qwen3's norm of every query and key head, with one gain for queries and one for keys."""
        if self.qk_norm is None:
            return qk
        return F.rms_norm(qk, (self.a.head_dim,), None, self.a.norm_eps) * self.qk_gain()

    def qk_gain(self) -> Tensor:
        """[query heads + kv heads, d]"""
        assert self.qk_norm is not None
        query, key = self.qk_norm
        return torch.cat([query.expand(self.a.n_heads, -1), key.expand(self.a.n_kv_heads, -1)])


class NativePolicy(LanguagePolicy):
    """A language model run by opdbench's own decoder."""

    def __init__(self, config: Mapping[str, Any], tokenizer: Tokenizer, generation_config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config, self.generation_config = dict(config), dict(generation_config)
        self.tokenizer = tokenizer
        self.a = Architecture.from_config(config)
        self.context_length = self.a.context_length
        self.n_actions = self.a.vocab_size
        self.embedding = nn.Parameter(torch.empty(self.a.vocab_size, self.a.hidden_size))
        self.layers = nn.ModuleList(Layer(self.a) for _ in range(self.a.n_layers))
        self.norm = nn.Parameter(torch.ones(self.a.hidden_size))
        self.head = None if self.a.tied else nn.Parameter(torch.empty(self.a.vocab_size, self.a.hidden_size))
        self._rotary: Rotary | None = None

    @classmethod
    def initialise(cls, config: Mapping[str, Any], tokenizer: Tokenizer, generator: Generator, *,
                   dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> NativePolicy:
        """A new model with random weights: normal with the configuration's `initializer_range`, biases zero."""
        policy = cls._empty(config, tokenizer, {"eos_token_id": sorted(tokenizer.eos_ids)}, torch.float32, "cpu")
        for name, parameter in policy.named_parameters():
            if name.endswith("norm"):
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=policy.a.initializer_range, generator=generator)
        return policy.to(device=device, dtype=dtype)

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device | str) -> NativePolicy:
        """Read a folder of transformers' layout. See `opdbench.lm.model.load`, which chooses the implementation."""
        generation_config = _optional_config(folder)
        policy = cls._empty(read_config(folder), Tokenizer.load(folder), generation_config, dtype, device)
        slots = dict(policy.hf_tensors())

        def take(name: str, tensor: Tensor) -> bool:
            if slots[name].shape != tensor.shape:
                return False
            with torch.no_grad():
                slots[name].copy_(tensor)
            return True

        read_weights(folder, take, set(slots))
        return policy

    @classmethod
    def _empty(cls, config: Mapping[str, Any], tokenizer: Tokenizer, generation_config: Mapping[str, Any],
               dtype: torch.dtype, device: torch.device | str) -> NativePolicy:
        """Memory without values: a large model must not be initialised only to be overwritten."""
        with torch.device("meta"):
            policy = cls(config, tokenizer, generation_config).to(dtype)
        return policy.to_empty(device=device)

    def hf_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(transformers' name, view of the parameter) of every weight, fused ones taken apart."""
        a = self.a
        yield "model.embed_tokens.weight", self.embedding.data
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            prefix = f"model.layers.{index}."
            yield prefix + "input_layernorm.weight", layer.attention_norm.data
            yield prefix + "post_attention_layernorm.weight", layer.mlp_norm.data
            if layer.qk_norm is not None:
                yield prefix + "self_attn.q_norm.weight", layer.qk_norm.data[0]
                yield prefix + "self_attn.k_norm.weight", layer.qk_norm.data[1]
            rows = [a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim, a.n_kv_heads * a.head_dim]
            attention, mlp = prefix + "self_attn.", prefix + "mlp."
            yield from _parts(layer.qkv, [attention + "q_proj", attention + "k_proj", attention + "v_proj"], rows)
            yield from _parts(layer.out, [attention + "o_proj"], [a.hidden_size])
            yield from _parts(layer.gate_up, [mlp + "gate_proj", mlp + "up_proj"], [a.intermediate_size] * 2)
            yield from _parts(layer.down, [mlp + "down_proj"], [a.hidden_size])
        yield "model.norm.weight", self.norm.data
        if self.head is not None:
            yield "lm_head.weight", self.head.data

    def save(self, folder: Path) -> None:
        """Write a folder that transformers and `opdbench.lm.model.load` read back."""
        folder = Path(folder)
        config = {**self.config, "dtype": dtype_name(self.dtype)}
        config.pop("torch_dtype", None)
        write_folder(folder, config, dict(self.hf_tensors()))
        if self.generation_config:
            write_json(folder / "generation_config.json", self.generation_config)
        self.tokenizer.save(folder)

    @property
    def output_weight(self) -> Tensor:
        """[A, H], cut to the vocabulary in use."""
        return (self.embedding if self.head is None else self.head)[:self.n_actions]

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        x_bth = None
        for x_bth in self._layer_outputs(input_bt):  # noqa: B007 - the last one is wanted
            pass
        assert x_bth is not None
        return self.final_norm(x_bth)

    def hidden(self, input_bt: Tensor, length_b: Tensor) -> tuple[Tensor, Tensor]:
        """See `Policy.hidden`; as in transformers, the last layer's is normed."""
        outputs = list(self._layer_outputs(input_bt))
        features_bth = self.final_norm(outputs[-1])
        return features_bth, torch.stack([*outputs[:-1], features_bth], 2)

    def _layer_outputs(self, input_bt: Tensor) -> Iterator[Tensor]:
        """[B, T, H] after every layer."""
        rotary = self.rotary(input_bt.shape[1])
        x_bth = F.embedding(input_bt, self.embedding)
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x_bth, *_ = checkpoint(layer, x_bth, rotary, use_reentrant=False)
            else:
                x_bth, *_ = layer(x_bth, rotary)
            yield x_bth

    def project(self, features_nh: Tensor) -> Tensor:
        weight_ah = self.embedding if self.head is None else self.head
        return widen(output_layer.project(features_nh, weight_ah, self.n_actions))

    def final_norm(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (self.a.hidden_size,), self.norm, self.a.norm_eps)

    def rotary(self, length: int) -> Rotary:
        """Rotations of positions 0 .. length - 1, in the model's dtype; computed once and kept."""
        kept = self._rotary
        if kept is None or len(kept.cos) < length or kept.cos.dtype != self.dtype or kept.cos.device != self.device:
            with torch.inference_mode(False), torch.no_grad():  # a table made while decoding must serve training too
                kept = self._rotary = self._make_rotary(max(length, 256))
        return Rotary(kept.cos[:length], kept.sin[:length])

    def _make_rotary(self, length: int) -> Rotary:
        wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        frequency, factor = rope_frequencies(self.a, wide)
        angle = torch.arange(length, dtype=wide)[:, None] * frequency
        cos, sin = angle.cos() * factor, angle.sin() * factor
        tables = torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]
        return Rotary(*(table.to(device=self.device, dtype=self.dtype) for table in tables))

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> Decoding:
        from opdbench.lm.decoding import NativeDecoding

        return NativeDecoding(self, prompts, capacity)

    def forward_flops(self, n_states: int, context: float) -> float:
        a = self.a
        attention = a.hidden_size * (2 * a.n_heads + 2 * a.n_kv_heads) * a.head_dim
        weights = a.n_layers * (attention + 3 * a.hidden_size * a.intermediate_size)
        mixing = a.n_layers * 2 * a.n_heads * a.head_dim * context
        return 2.0 * n_states * (weights + mixing + a.hidden_size * self.n_actions)

    def describe(self) -> str:
        return (f"{self.a.family}, {self.n_parameters() / 1e6:.3g}M parameters, {dtype_name(self.dtype)}, "
                "opdbench's native decoder")


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotary position embedding in transformers' half-split layout; `x` [..., heads, d]."""
    return x * rotary.cos + x.roll(x.shape[-1] // 2, -1) * rotary.sin


def _parts(linear: nn.Linear, names: Sequence[str], rows: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    for kind, parameter in linear.named_parameters():
        for name, part in zip(names, torch.split(parameter.data, list(rows)), strict=True):
            yield f"{name}.{kind}", part


def _optional_config(folder: Path) -> dict[str, Any]:
    path = Path(folder) / "generation_config.json"
    return read_json(path) if path.is_file() else {}
