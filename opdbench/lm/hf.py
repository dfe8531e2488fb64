"""Any causal language model of transformers, behind the same interface as the native decoder.

The split into features and projection is not assumed but checked when a model is loaded: where `head(base(x))` is not
the model's own output (soft-capped or scaled logits), the features are the logits themselves and nothing is projected.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from opdbench.errors import UserError
from opdbench.lm.checkpoint import dtype_name, weight_files
from opdbench.lm.policy import LanguagePolicy, pad_right
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
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.reason = reason
        self.context_length = _context_length(model.config)
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        self.n_actions = model.get_output_embeddings().weight.shape[0]
        self.is_split = self._head_completes_base()

    @classmethod
    def load(cls, folder: Path, *, dtype: torch.dtype, device: torch.device | str, reason: str) -> HfPolicy:
        """Read a folder that transformers saved; nothing in it is executed.

        Raises:
            UserError: transformers does not know it, or weights are missing or unreadable.
        """
        from transformers import AutoModelForCausalLM

        weight_files(folder)
        try:
            model, info = AutoModelForCausalLM.from_pretrained(
                str(folder), dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                output_loading_info=True)
        except Exception as error:  # transformers, safetensors and torch each raise their own
            raise UserError(f"transformers cannot load {folder}: {str(error).strip().splitlines()[0][:200]}",
                            "download the model again, or pass another") from error
        if info["missing_keys"]:
            raise UserError(f"{folder} lacks weights, such as {sorted(info['missing_keys'])[0]}",
                            "config.json and the weights belong to different models, or the download is incomplete")
        return cls(model.to(device), Tokenizer.load(folder), reason)

    def train(self, mode: bool = True) -> HfPolicy:
        super().train(mode)
        self.model.eval()
        return self

    def features(self, input_bt: Tensor, length_b: Tensor) -> Tensor:
        mask_bt = torch.arange(input_bt.shape[1], device=input_bt.device) < length_b[:, None]
        if not self.is_split:
            return self.model(input_ids=input_bt, attention_mask=mask_bt.long(), use_cache=False).logits
        return self._hidden(input_bt, mask_bt)

    def project(self, features_nh: Tensor) -> Tensor:
        logits_na = self.model.get_output_embeddings()(features_nh) if self.is_split else features_nh
        logits_na = logits_na[:, :self.n_actions]
        return logits_na if logits_na.dtype == torch.float64 else logits_na.float()

    def start(self, prompts: Sequence[Sequence[int]], capacity: int) -> HfDecoding:
        return HfDecoding(self, prompts, capacity)

    def forward_flops(self, n_states: int, context: float) -> float:
        head = self.model.get_output_embeddings().weight.numel()
        tables = {id(module.weight): module.weight.numel() for module in self.modules()
                  if isinstance(module, nn.Embedding)}
        tables[id(self.model.get_output_embeddings().weight)] = head
        config = self.model.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        mixing = config.num_hidden_layers * 2 * config.num_attention_heads * width * context
        return 2.0 * n_states * (self.n_parameters() - sum(tables.values()) + head + mixing)

    def save(self, folder: Path) -> None:
        """Write the folder with transformers' own `save_pretrained`."""
        self.model.save_pretrained(str(folder), safe_serialization=True)
        self.tokenizer.save(Path(folder))

    def describe(self) -> str:
        return (f"{self.model.config.model_type}, {self.n_parameters() / 1e6:.3g}M parameters, "
                f"{dtype_name(self.dtype)}, transformers (not the native decoder: {self.reason})")

    def forward_tokens(self, input_bt: Tensor, mask_bt: Tensor, position_bt: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits [B, A] after the last column, and transformers' cache."""
        optional = {"position_ids": position_bt, "logits_to_keep": 1}
        extra = {name: value for name, value in optional.items() if name in self._accepted}
        name = "cache_params" if "cache_params" in self._accepted else "past_key_values"
        output = self.model(input_ids=input_bt, attention_mask=mask_bt, use_cache=True, **{name: cache}, **extra)
        if output.get(name) is None:
            raise UserError(f"{self.model.config.model_type} models keep no cache in transformers, and generation here "
                            "never recomputes a prefix", "pass another model")
        logits_ba = output.logits[:, -1, :self.n_actions]
        return logits_ba if logits_ba.dtype == torch.float64 else logits_ba.float(), output[name]

    def _hidden(self, input_bt: Tensor, mask_bt: Tensor) -> Tensor:
        return self.model.base_model(input_ids=input_bt, attention_mask=mask_bt.long(),
                                     use_cache=False).last_hidden_state

    @torch.no_grad()
    def _head_completes_base(self) -> bool:
        """Whether projecting the base model's output gives exactly the model's logits."""
        input_bt = torch.arange(14, device=self.device).view(2, 7) % self.n_actions
        mask_bt = torch.ones_like(input_bt, dtype=torch.bool)
        whole = self.model(input_ids=input_bt, attention_mask=mask_bt.long(), use_cache=False).logits
        try:
            parts = self.model.get_output_embeddings()(self._hidden(input_bt, mask_bt))
        except (AttributeError, TypeError, RuntimeError):  # the base has no single hidden state that fits the head
            return False
        tolerance = torch.finfo(self.dtype).eps * 8 * float(whole.abs().max())
        return parts.shape == whole.shape and bool((parts - whole).abs().max() <= tolerance)


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
        self._cache.batch_select_indices(index_b)
        self._mask, self._position = self._mask[index_b], self._position[index_b]
        self.logits_ba = self.logits_ba[index_b]


def _context_length(config: Any) -> int:
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
        if getattr(text, name, None):
            return int(getattr(text, name))
    return 1 << 30  # recurrent models have no limit
