"""Any causal language model of transformers, behind the same interface as the native decoder.

The split into features and projection is not assumed but checked when a model is loaded: where `head(base(x))` is not
the model's own output (soft-capped or scaled logits), the features are the logits themselves and nothing is projected.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from opdbench import output_layer
from opdbench.errors import UserError
from opdbench.lm.checkpoint import dtype_name, weight_files
from opdbench.lm.policy import LanguagePolicy, pad_right, widen
from opdbench.lm.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HfPolicy(LanguagePolicy):
    """A language model run by transformers.

    Args:
        model: the model; kept in evaluation mode whatever `train` asks for, so that dropout is never on.
        reason: why the native decoder does not run it, for `describe`.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer, reason: str) -> None:
        super().__init__()
        self.model: Any = model.eval()  # type: ignore[no-untyped-call]
        self.tokenizer = tokenizer
        self.reason = reason
        self.context_length = _context_length(model.config)
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        self._head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        self.n_actions = int(self._head.weight.shape[0])
        self.is_split = self._head_completes_base()

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device | str, reason: str) -> HfPolicy:
        """Read a folder that transformers saved; nothing in it is executed.

        Raises:
            UserError: transformers does not know it, or weights are missing or unreadable.
        """
        return cls(read_model(folder, dtype=dtype).to(device), Tokenizer.load(folder), reason)

    def train(self, mode: bool = True) -> HfPolicy:
        super().train(mode)
        self.model.eval()
        return self

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        mask_bt = torch.arange(input_bt.shape[1], device=input_bt.device) < length_b[:, None]
        with self._recomputed() if self.checkpointing and torch.is_grad_enabled() else nullcontext():
            if self.is_split:
                return self._hidden(input_bt, mask_bt)
            logits_bta: Tensor = self.model(input_ids=input_bt, attention_mask=mask_bt.long(), use_cache=False).logits
            return logits_bta

    def hidden(self, input_bt: Tensor, length_b: Tensor) -> tuple[Tensor, Tensor]:
        mask_bt = torch.arange(input_bt.shape[1], device=input_bt.device) < length_b[:, None]
        with self._recomputed() if self.checkpointing and torch.is_grad_enabled() else nullcontext():
            output = self.model(input_ids=input_bt, attention_mask=mask_bt.long(), use_cache=False,
                                output_hidden_states=True)
        layers = output.hidden_states[1:]  # the first one is the embedding
        return layers[-1] if self.is_split else output.logits, torch.stack(layers, 2)

    def project(self, features_nh: Tensor) -> Tensor:
        if not self.is_split:
            return widen(features_nh[:, :self.n_actions])
        if type(self._head) is nn.Linear and self._head.bias is None:
            return widen(output_layer.project(features_nh, self._head.weight, self.n_actions))
        return widen(self._head(features_nh)[:, :self.n_actions])  # adapted, quantised, or with a bias

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> HfDecoding:
        return HfDecoding(self, prompts, capacity)

    def forward_flops(self, n_states: int, context: float) -> float:
        tables = {module.weight for module in self.modules() if isinstance(module, nn.Embedding)}
        config = self.model.config.get_text_config()
        share = getattr(config, "num_experts_per_tok", 1) / (getattr(config, "num_experts", None) or 1)
        weights = sum(n_weights(parameter) * (share if ".experts." in name else 1)
                      for name, parameter in self.named_parameters()
                      if parameter not in tables and parameter is not self._head.weight)
        return float(2 * n_states * (weights + self._head.weight.numel() + _mixing(config, context)))

    def save(self, folder: Path) -> None:
        """Write the folder with transformers' own `save_pretrained`."""
        self.model.save_pretrained(str(folder), safe_serialization=True)
        self.tokenizer.save(Path(folder))

    def n_parameters(self) -> int:
        return sum(n_weights(parameter) for parameter in self.parameters())

    def describe(self) -> str:
        return (f"{self.model.config.model_type}, {self.n_parameters() / 1e6:.3g}M parameters, "
                f"{dtype_name(self.dtype)}, transformers (not the native decoder: {self.reason})")

    def forward_tokens(self, input_bt: Tensor, mask_bt: Tensor, position_bt: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits [B, A] after the last column, and transformers' cache."""
        name = "cache_params" if "cache_params" in self._accepted else "past_key_values"
        offered = {name: cache, "position_ids": position_bt, "logits_to_keep": 1}
        inputs = self.model.prepare_inputs_for_generation(
            input_bt, attention_mask=mask_bt, use_cache=True, is_first_iteration=cache is None,
            **{key: value for key, value in offered.items() if key in self._accepted})
        output = self.model(**inputs)
        if output.get(name) is None:
            raise UserError(f"{self.model.config.model_type} models keep no cache in transformers, and generation here "
                            "never recomputes a prefix", "pass another model")
        return widen(output.logits[:, -1, :self.n_actions]), output[name]

    @contextmanager
    def _recomputed(self) -> Iterator[None]:
        """Inside, the layers that transformers marks keep no activations. Its own switch works in training mode only,
        which would turn dropout on."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise UserError(f"transformers cannot recompute the layers of {self.model.config.model_type} models",
                            "leave gradient_checkpointing out, and lower micro_batch instead")
        for layer in layers:
            vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False)
        try:
            yield
        finally:
            for layer in layers:
                del vars(layer)["forward"]

    def _hidden(self, input_bt: Tensor, mask_bt: Tensor) -> Tensor:
        hidden_bth: Tensor = self.model.base_model(input_ids=input_bt, attention_mask=mask_bt.long(),
                                                   use_cache=False).last_hidden_state
        return hidden_bth

    @torch.no_grad()
    def _head_completes_base(self) -> bool:
        """Whether projecting the base model's output gives exactly the model's logits."""
        input_bt = torch.arange(14, device=self.device).view(2, 7) % self.n_actions
        mask_bt = torch.ones_like(input_bt, dtype=torch.bool)
        whole = self.model(input_ids=input_bt, attention_mask=mask_bt.long(), use_cache=False).logits
        try:
            parts = self._head(self._hidden(input_bt, mask_bt))
        except (AttributeError, TypeError, RuntimeError):  # the base has no single hidden state that fits the head
            return False
        tolerance = torch.finfo(self.dtype).eps * 8 * float(whole.abs().max())
        return parts.shape == whole.shape and bool((parts - whole).abs().max() <= tolerance)


def read_model(folder: Path, *, dtype: torch.dtype, **more: Any) -> Any:
    """A transformers model with the weights in `folder`, on the CPU unless `more` (for `from_pretrained`) says else.

    Raises:
        UserError: transformers does not know it, or weights are missing or unreadable.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # the command line has a display of its own
    weight_files(folder)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
            output_loading_info=True, **more)
    except Exception as error:  # transformers, safetensors and torch each raise their own
        raise UserError(f"transformers cannot load {folder}: {str(error).strip().splitlines()[0][:200]}",
                        "download the model again, or pass another") from error
    model, info = loaded
    if info["missing_keys"]:
        raise UserError(f"{folder} lacks weights, such as {sorted(info['missing_keys'])[0]}",
                        "config.json and the weights belong to different models, or the download is incomplete")
    return model


class HfDecoding:
    """Sequences in lock-step, prompts padded on the left, with transformers' own cache."""

    def __init__(self, policy: HfPolicy, prompts: Sequence[Sequence[int]], capacity: int) -> None:
        self.policy = policy
        tokens_bt, length_b = pad_right(prompts, policy.device)
        self._column = tokens_bt.shape[1]
        missing_b = self._column - length_b
        columns = torch.arange(self._column + capacity, device=length_b.device)
        self._mask = (columns >= missing_b[:, None]).long()
        self._position = (columns - missing_b[:, None]).clamp(min=0)
        shifted = (columns[:self._column] - missing_b[:, None]) % self._column
        with torch.inference_mode():
            self.logits_ba, self._cache = policy.forward_tokens(
                tokens_bt.gather(1, shifted), self._mask[:, :self._column], self._position[:, :self._column], None)

    @torch.inference_mode()
    def step(self, token_b: Tensor) -> Tensor:
        position = self._position[:, self._column:self._column + 1]
        self._column += 1
        self.logits_ba, self._cache = self.policy.forward_tokens(
            token_b[:, None], self._mask[:, :self._column], position, self._cache)
        return self.logits_ba

    @torch.inference_mode()
    def keep(self, index_b: Tensor) -> None:
        self._cache.reorder_cache(index_b)  # made for beams; every kind of cache has it, and fewer rows are fine
        self._mask, self._position = self._mask[index_b], self._position[index_b]
        self.logits_ba = self.logits_ba[index_b]


def n_weights(parameter: Tensor) -> int:
    """Number of weights in a parameter; four-bit ones are packed, and remember the shape that they had."""
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else int(packed.shape.numel())


def _context_length(config: Any) -> int:
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if getattr(text, name, None):
            return int(getattr(text, name))
    return 1 << 30  # recurrent models have no limit


def _mixing(config: Any, context: float) -> float:
    """Multiply-accumulates of attention itself, for one state; recurrent models have none."""
    n_heads = getattr(config, "num_attention_heads", None)
    if not n_heads:
        return 0.0
    width = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    return float(config.num_hidden_layers * 2 * n_heads * width * context)
