"""A native decoder for the Qwen3, Qwen2, Llama and Mistral families, made for few dispatches.

Small models are bound by the number of operations launched, not by arithmetic. So query, key and value are one matrix,
gate and up are one, and decoding writes into a preallocated cache and never recomputes a prefix. Parameters are stored
fused; `hf_tensors` gives them their transformers names. Suffixes: b sequences, t tokens, h hidden, d head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from opdbench.lm.architecture import Architecture, rope_frequencies
from opdbench.lm.checkpoint import dtype_name, read_config, read_weights, write_folder, write_json
from opdbench.lm.policy import LanguagePolicy, pad_right
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
        self.checkpointing = False
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
        rotary = self.rotary(input_bt.shape[1])
        x_bth = F.embedding(input_bt, self.embedding)
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x_bth, *_ = checkpoint(layer, x_bth, rotary, use_reentrant=False)
            else:
                x_bth, *_ = layer(x_bth, rotary)
        return self.final_norm(x_bth)

    def project(self, features_nh: Tensor) -> Tensor:
        logits_na = F.linear(features_nh, self.output_weight)
        return logits_na if logits_na.dtype == torch.float64 else logits_na.float()

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

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> NativeDecoding:
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
    from opdbench.lm.checkpoint import read_json

    path = Path(folder) / "generation_config.json"
    return read_json(path) if path.is_file() else {}


class NativeDecoding:
    """Sequences in lock-step: one column of the cache a step, prompts aligned at their ends.

    The prompts are read padded on the right, where the causal mask is all that is needed; then each one's keys and
    values are moved so that all end in the same column. From there on every step writes one column. Suffixes: k
    sequences x kv heads, g query heads of one kv head, c columns.
    """

    def __init__(self, policy: NativePolicy, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        self.policy = policy
        tokens_bt, length_b = pad_right(prompts, policy.device)
        self._column = self._first_column = tokens_bt.shape[1]
        with torch.inference_mode():
            self._weights = [_weights(layer) for layer in policy.layers]
            self._position(length_b, capacity)
            self.logits_ba = self._prefill(tokens_bt, length_b, capacity)

    def _position(self, length_b: Tensor, capacity: int) -> None:
        """Rotations [capacity, B, 1, d] of the steps to come, and what hides the padding, [B x kv heads, 1, C]."""
        position_sb = torch.arange(capacity, device=length_b.device)[:, None] + length_b
        table = self.policy.rotary(self._column + capacity)
        self._cos, self._sin = table.cos[position_sb], table.sin[position_sb]
        missing_b = self._column - length_b
        self._mask_k1c: Tensor | None = None
        if int(missing_b.max()) > 0:
            hidden_bc = torch.arange(self._column + capacity, device=length_b.device) < missing_b[:, None]
            mask_bc = torch.zeros(hidden_bc.shape, dtype=self.policy.dtype, device=length_b.device)
            mask_bc = mask_bc.masked_fill(hidden_bc, float("-inf"))
            self._mask_k1c = mask_bc.repeat_interleave(self.policy.a.n_kv_heads, 0)[:, None]

    def _prefill(self, tokens_bt: Tensor, length_b: Tensor, capacity: int) -> Tensor:
        policy, (batch, length) = self.policy, tokens_bt.shape
        rotary = policy.rotary(length)
        source_bt = (torch.arange(length, device=length_b.device) - (length - length_b)[:, None]) % length
        x_bth = F.embedding(tokens_bt, policy.embedding)
        self._cache: list[tuple[Tensor, Tensor]] = []
        for layer in policy.layers:
            x_bth, keys, values = layer(x_bth, rotary)
            self._cache.append((_column_cache(keys, source_bt, capacity), _column_cache(values, source_bt, capacity)))
        last_bh = x_bth[torch.arange(batch, device=length_b.device), length_b - 1]
        return policy.project(policy.final_norm(last_bh))

    @torch.inference_mode()
    def step(self, token_b: Tensor) -> Tensor:
        policy, a, column = self.policy, self.policy.a, self._column
        cos, sin = self._cos[column - self._first_column], self._sin[column - self._first_column]
        mask = None if self._mask_k1c is None else self._mask_k1c[..., :column + 1]
        batch, n_rotated, width = len(token_b), a.n_heads + a.n_kv_heads, (a.hidden_size,)
        x = F.embedding(token_b, policy.embedding)
        for w, (keys, values) in zip(self._weights, self._cache, strict=True):
            normed = F.rms_norm(x, width, w.attention_norm, a.norm_eps)
            heads = F.linear(normed, w.qkv, w.qkv_bias).view(batch, -1, a.head_dim)
            qk = heads[:, :n_rotated]
            if w.qk_gain is not None:
                qk = F.rms_norm(qk, (a.head_dim,), None, a.norm_eps).mul_(w.qk_gain)
            qk = torch.addcmul(qk * cos, qk.roll(a.head_dim // 2, -1), sin)
            keys.select(1, column).view(batch, -1, a.head_dim).copy_(qk[:, a.n_heads:])
            values.select(1, column).view(batch, -1, a.head_dim).copy_(heads[:, n_rotated:])
            q_kgd = qk[:, :a.n_heads].reshape(-1, a.n_groups, a.head_dim)
            mixed = _attend(q_kgd, keys[:, :column + 1], values[:, :column + 1], mask).view(batch, -1)
            x = _add_linear(x, mixed, w.out, w.out_bias)
            normed = F.rms_norm(x, width, w.mlp_norm, a.norm_eps)
            gate, up = F.linear(normed, w.gate_up, w.gate_up_bias).chunk(2, -1)
            x = _add_linear(x, F.silu(gate).mul_(up), w.down, w.down_bias)
        self._column = column + 1
        self.logits_ba = policy.project(policy.final_norm(x))
        return self.logits_ba

    @torch.inference_mode()
    def keep(self, index_b: Tensor) -> None:
        heads = torch.arange(self.policy.a.n_kv_heads, device=index_b.device)
        index_k = (index_b[:, None] * len(heads) + heads).flatten()
        self._cache = [(keys[index_k], values[index_k]) for keys, values in self._cache]
        self._cos, self._sin = self._cos[:, index_b], self._sin[:, index_b]
        self._mask_k1c = None if self._mask_k1c is None else self._mask_k1c[index_k]
        self.logits_ba = self.logits_ba[index_b]


def _column_cache(heads_btkd: Tensor, source_bt: Tensor, capacity: int) -> Tensor:
    """Keys or values [B, T, kv heads, d] as a cache [B x kv heads, T + capacity, d], column t filled from `source_bt`."""
    batch, length, n_heads, size = heads_btkd.shape
    cache = heads_btkd.new_empty(batch * n_heads, length + capacity, size)
    aligned = heads_btkd.gather(1, source_bt[:, :, None, None].expand(heads_btkd.shape))
    cache.view(batch, n_heads, length + capacity, size)[:, :, :length] = aligned.transpose(1, 2)
    return cache


def _attend(q_kgd: Tensor, keys_kcd: Tensor, values_kcd: Tensor, mask_k1c: Tensor | None) -> Tensor:
    """What one query a sequence reads from the cache, [K, G, d]."""
    if q_kgd.device.type == "cpu" and q_kgd.dtype in (torch.float32, torch.float64):
        # For a query of one token two products and a softmax are a third faster than the fused kernel.
        start, beta = (q_kgd.new_zeros(()), 0) if mask_k1c is None else (mask_k1c, 1)
        scores = torch.baddbmm(start, q_kgd, keys_kcd.transpose(1, 2), beta=beta, alpha=q_kgd.shape[-1] ** -0.5)
        return torch.bmm(scores.softmax(-1), values_kcd)
    mask = None if mask_k1c is None else mask_k1c[None]
    return F.scaled_dot_product_attention(q_kgd[None], keys_kcd[None], values_kcd[None], mask)[0]


class _Weights(NamedTuple):
    """One layer's tensors as the step uses them: looked up once, since attribute access is paid for at every step."""

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_gain: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


def _weights(layer: nn.Module) -> _Weights:
    assert isinstance(layer, Layer)
    gain = None if layer.qk_norm is None else layer.qk_gain()
    return _Weights(layer.attention_norm, layer.qkv.weight, layer.qkv.bias, gain, layer.out.weight.t(), layer.out.bias,
                    layer.mlp_norm, layer.gate_up.weight, layer.gate_up.bias, layer.down.weight.t(), layer.down.bias)


def _add_linear(x: Tensor, y: Tensor, weight_t: Tensor, bias: Tensor | None) -> Tensor:
    """x + y W^T + bias, the sum fused into the product."""
    total = torch.addmm(x, y, weight_t)
    return total if bias is None else total + bias
