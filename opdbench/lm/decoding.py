"""Writing token by token with the native decoder: a preallocated cache, no recomputation, few operations a step.

Suffixes: b sequences, t tokens, h hidden, k sequences x key-value heads, g query heads of one such head, c columns of
the cache, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdbench.lm.decoder import Layer, NativePolicy
from opdbench.lm.policy import pad_right, widen


class NativeDecoding:
    """Sequences in lock-step: one column of the cache a step, prompts aligned at their ends.

    The prompts are read padded on the right, where the causal mask is all that is needed; then each one's keys and
    values are moved so that all end in the same column. From there on every step writes one column.
    """

    def __init__(self, policy: NativePolicy, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        self.policy = policy
        tokens_bt, length_b = pad_right(prompts, policy.device)
        self._column = self._first_column = tokens_bt.shape[1]
        with torch.inference_mode():
            self._weights = [_weights(layer) for layer in policy.layers]
            self._final_norm, self._head = _Norm(policy.norm, policy.a.norm_eps), policy.output_weight
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
        batch, n_rotated = len(token_b), a.n_heads + a.n_kv_heads
        x = F.embedding(token_b, policy.embedding)
        for w, (keys, values) in zip(self._weights, self._cache, strict=True):
            heads = F.linear(w.attention_norm(x), w.qkv, w.qkv_bias).view(batch, -1, a.head_dim)
            qk = heads[:, :n_rotated]
            if w.qk_norm is not None:
                qk = w.qk_norm(qk)
            qk = torch.addcmul(qk * cos, qk.roll(a.head_dim // 2, -1), sin)
            keys.select(1, column).view(batch, -1, a.head_dim).copy_(qk[:, a.n_heads:])
            values.select(1, column).view(batch, -1, a.head_dim).copy_(heads[:, n_rotated:])
            q_kgd = qk[:, :a.n_heads].reshape(-1, a.n_groups, a.head_dim)
            mixed = _attend(q_kgd, keys[:, :column + 1], values[:, :column + 1], mask).view(batch, -1)
            x = _add_linear(x, mixed, w.out, w.out_bias)
            gate, up = F.linear(w.mlp_norm(x), w.gate_up, w.gate_up_bias).chunk(2, -1)
            x = _add_linear(x, F.silu(gate).mul_(up), w.down, w.down_bias)
        self._column = column + 1
        self.logits_ba = widen(F.linear(self._final_norm(x), self._head))
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
    """Keys or values [B, T, kv heads, d] as a cache [B x kv heads, T + capacity, d]; column t is `source_bt`'s."""
    batch, length, n_heads, size = heads_btkd.shape
    cache = heads_btkd.new_empty(batch * n_heads, length + capacity, size)
    aligned = heads_btkd.gather(1, source_bt[:, :, None, None].expand(heads_btkd.shape))
    cache.view(batch, n_heads, length + capacity, size)[:, :, :length] = aligned.transpose(1, 2)
    return cache


def _few_operations(x: Tensor) -> bool:
    """Whether a step's cost is the number of operations launched, none of which may round to less than 32 bits."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


class _Norm:
    """A root-mean-square norm over the last dimension, for the few rows of a step; `gain` is [.., size].

    x / sqrt(mean(x^2) + eps) = sqrt(size) x / hypot(|x|, sqrt(size eps)): on a CPU four small operations, and half the
    time of torch's own.
    """

    def __init__(self, gain: Tensor, eps: float) -> None:
        size = gain.shape[-1]
        self._shape, self._eps, self._short = (size,), eps, _few_operations(gain)
        self._gain = gain * size ** 0.5 if self._short else gain
        self._floor = gain.new_tensor((size * eps) ** 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        if self._short:
            norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            return (x / norm.hypot_(self._floor)).mul_(self._gain)
        if self._gain.dim() == 1:
            return F.rms_norm(x, self._shape, self._gain, self._eps)
        return F.rms_norm(x, self._shape, None, self._eps) * self._gain


def _attend(q_kgd: Tensor, keys_kcd: Tensor, values_kcd: Tensor, mask_k1c: Tensor | None) -> Tensor:
    """What one query a sequence reads from the cache, [K, G, d]."""
    if _few_operations(q_kgd):
        # For a query of one token two products and a softmax are a third faster than the fused kernel.
        start, beta = (q_kgd.new_zeros(()), 0) if mask_k1c is None else (mask_k1c, 1)
        scores = torch.baddbmm(start, q_kgd, keys_kcd.transpose(1, 2), beta=beta, alpha=q_kgd.shape[-1] ** -0.5)
        return torch.bmm(scores.softmax(-1), values_kcd)
    mask = None if mask_k1c is None else mask_k1c[None]
    return F.scaled_dot_product_attention(q_kgd[None], keys_kcd[None], values_kcd[None], mask)[0]


class _Weights(NamedTuple):
    """One layer's tensors as the step uses them: looked up once, since attribute access is paid for at every step."""

    attention_norm: _Norm
    qkv: Tensor
    qkv_bias: Tensor | None
    qk_norm: _Norm | None
    out: Tensor
    out_bias: Tensor | None
    mlp_norm: _Norm
    gate_up: Tensor
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


def _weights(layer: nn.Module) -> _Weights:
    assert isinstance(layer, Layer)
    eps = layer.a.norm_eps
    return _Weights(
        attention_norm=_Norm(layer.attention_norm, eps), qkv=layer.qkv.weight, qkv_bias=layer.qkv.bias,
        qk_norm=None if layer.qk_norm is None else _Norm(layer.qk_gain(), eps),
        out=layer.out.weight.t(), out_bias=layer.out.bias, mlp_norm=_Norm(layer.mlp_norm, eps),
        gate_up=layer.gate_up.weight, gate_up_bias=layer.gate_up.bias,
        down=layer.down.weight.t(), down_bias=layer.down.bias)


def _add_linear(x: Tensor, y: Tensor, weight_t: Tensor, bias: Tensor | None) -> Tensor:
    """x + y W^T + bias, the sum fused into the product."""
    total = torch.addmm(x, y, weight_t)
    return total if bias is None else total + bias
