"""Loading a language model's folder: the native decoder where it applies, transformers where it does not."""

from __future__ import annotations

from pathlib import Path

import torch

from opdbench.errors import UserError
from opdbench.lm.architecture import Architecture, NotNative
from opdbench.lm.checkpoint import read_config
from opdbench.lm.policy import LanguagePolicy
from opdbench.references import Quantisation


def load(folder: Path | str, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu",
         quantisation: Quantisation | None = None) -> LanguagePolicy:
    """The language model in `folder`, ready to sample, score and train.

    The choice between the native decoder and transformers is made from config.json alone, and `describe()` names it
    with its reason.

    Args:
        dtype: of the weights, and of what is computed with those that are not quantised.
        quantisation: of the linear layers but the output, for a model that is not trained; by transformers.

    Raises:
        UserError: the folder is missing, incomplete, cut short or inconsistent; no library to quantise with.
    """
    folder = Path(folder)
    if quantisation is not None:
        from opdbench.lm.quantised import load_quantised

        return load_quantised(folder, quantisation, dtype=dtype, device=device)
    config = read_config(folder)
    try:
        Architecture.from_config(config)
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'} does not give {error}",
                        "download or save the model again") from error
    except NotNative as reason:
        from opdbench.lm.hf import HfPolicy

        return HfPolicy.load(folder, dtype=dtype, device=device, reason=str(reason))
    from opdbench.lm.decoder import NativePolicy

    return NativePolicy.load(folder, dtype=dtype, device=device)
