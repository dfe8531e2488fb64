"""Teachers whose linear layers are stored in 8 or 4 bits, by bitsandbytes: on CPUs and on NVIDIA GPUs."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import torch

from opdbench.errors import UserError
from opdbench.lm.checkpoint import read_config
from opdbench.lm.hf import HfPolicy, read_model
from opdbench.lm.tokenizer import Tokenizer
from opdbench.references import Quantisation

BLOCK = 64  # weights that share a scale in nf4


def load_quantised(folder: Path, quantisation: Quantisation, *, dtype: torch.dtype,
                   device: torch.device | str) -> HfPolicy:
    """The model in `folder`, to be asked and not trained, with its linear layers but the output's in fewer bits.

    int8 is LLM.int8() of Dettmers et al. (NeurIPS 2022), which rounds activations too; nf4 is QLoRA's (NeurIPS 2023).
    What is not quantised stays in `dtype`, or in float32 where that is float64.

    Raises:
        UserError: bitsandbytes is not installed or cannot do this model, or the folder cannot be used.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError(f"a teacher in {quantisation} needs bitsandbytes, which is not installed",
                        "pip install 'opdbench[quant]'")
    # It warns at every product that int8 rounds activations to float16, and at import that a kernel is not there.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from bitsandbytes.nn.modules import Linear4bit
    from transformers import BitsAndBytesConfig

    read_config(folder)
    dtype = torch.float32 if dtype == torch.float64 else dtype
    config = BitsAndBytesConfig(load_in_8bit=quantisation == "int8", load_in_4bit=quantisation == "nf4",  # type: ignore[no-untyped-call]
                                bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    model = read_model(folder, dtype=dtype, quantization_config=config, device_map={"": device})
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False  # a layout of some CPUs alone, for fewer shapes and coarser scales
    widths = {layer.in_features for layer in layers}
    if torch.device(device).type == "cpu" and (odd := [width for width in sorted(widths) if width % BLOCK]):
        # bitsandbytes 0.50 reads them back wrongly, without an error: three times the rounding that nf4 has.
        raise UserError(f"{folder} has layers {odd[0]} wide, and on a CPU bitsandbytes reads nf4 back only where "
                        f"{BLOCK} divides the width", "pass it as int8:MODEL, or in full")
    return HfPolicy(model, Tokenizer.load(folder), f"{quantisation} weights")
