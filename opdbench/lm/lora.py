"""A student of which only low-rank adapters are trained (Hu et al., ICLR 2022), by peft: y = W x + (alpha / r) B A x.

On all linear layers but the output, without dropout: sampling and scoring must agree. A starts random, from the run's
seed, and B starts zero, so that the student starts as the base model, exactly.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from opdbench.errors import UserError
from opdbench.lm.checkpoint import read_config
from opdbench.lm.hf import HfPolicy, read_model
from opdbench.lm.tokenizer import Tokenizer

ADAPTER = "adapter"  # the folder of the adapters beside the merged weights, and peft's name of them


class LoraPolicy(HfPolicy):
    """A frozen base model with trainable adapters. Its state is the adapters alone: the base is in its own folder."""

    @classmethod
    def adapt(cls, folder: Path, *, rank: int, alpha: float, generator: Generator, dtype: torch.dtype,
              device: torch.device | str) -> LoraPolicy:
        """The model in `folder` with fresh adapters.

        Raises:
            UserError: peft is not installed, or the folder cannot be used.
        """
        if find_spec("peft") is None:
            raise UserError(f"lora_rank={rank} needs peft, which is not installed", "pip install 'opdbench[lora]'")
        # peft imports bitsandbytes where it is, which warns that a kernel for other uses is not there.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from peft import LoraConfig, inject_adapter_in_model

        read_config(folder)
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear",  # type: ignore[arg-type]
                            bias="none", task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]):  # peft draws from the global state, which is drawn anew below
            model: Any = inject_adapter_in_model(config, read_model(folder, dtype=dtype), ADAPTER)
        _initialise(model, generator)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(_is_adapter(name))
        return cls(model.to(device=device, dtype=dtype), Tokenizer.load(folder), f"LoRA of rank {rank}")

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if _is_adapter(name)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in result.missing_keys if _is_adapter(name)]
        if strict and (missing or result.unexpected_keys):
            raise RuntimeError(f"these are not this student's adapters: {[*missing, *result.unexpected_keys][:3]}")
        return result

    def train_flops(self, n_states: int, context: float) -> float:
        """The frozen weights pass gradients on and get none: twice their forward pass instead of three times."""
        adapters = 2.0 * n_states * sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)
        return 2 * self.forward_flops(n_states, context) + adapters

    def save(self, folder: Path) -> None:
        """Write the merged model, which needs no peft to be read, and the adapters alone into a folder beside it."""
        folder = Path(folder)
        self.model.save_pretrained(str(folder), safe_serialization=True, state_dict=self.merged())
        self.tokenizer.save(folder)
        self._save_adapters(folder / ADAPTER)

    def merged(self) -> dict[str, Tensor]:
        """All weights of the base model with the adapters added, by the base model's names."""
        weights = {name.replace(".base_layer.", "."): value for name, value in self.model.state_dict().items()
                   if not _is_adapter(name)}
        for name, layer in _adapted_layers(self.model):
            base, delta = layer.get_base_layer().weight, layer.get_delta_weight(ADAPTER)
            wide = torch.promote_types(base.dtype, torch.float32)
            weights[f"{name}.weight"] = (base.to(wide) + delta.to(wide)).to(base.dtype)
        return weights

    def _save_adapters(self, folder: Path) -> None:
        """In peft's own layout, for `PeftModel.from_pretrained(base, folder)`."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.model.peft_config[ADAPTER].save_pretrained(str(folder))
        tensors = get_peft_model_state_dict(self.model, adapter_name=ADAPTER)
        save_file({f"base_model.model.{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
                  str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})


def _initialise(model: nn.Module, generator: Generator) -> None:
    """A as peft has it (Kaiming's uniform bound of a linear layer), drawn in the order of the layers; B zero."""
    for _, layer in _adapted_layers(model):
        nn.init.kaiming_uniform_(layer.lora_A[ADAPTER].weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(layer.lora_B[ADAPTER].weight)


def _adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, peft's layer) of everything that has an adapter."""
    from peft.tuners.lora import LoraLayer

    return ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer))


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
