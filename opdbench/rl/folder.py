"""How control policies of every kind are stored: policy.json says what one is, policy.safetensors holds its weights.

Both can be read without running anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from opdbench.errors import UserError

FORMAT = 1  # of policy.json
DESCRIPTION, WEIGHTS = "policy.json", "policy.safetensors"
MAX_BYTES = 256 << 20  # a folder that claims more is not a control policy
P = TypeVar("P")
COPY_AGAIN = "copy or export the policy folder again"


def write(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor], *, indent: int | None = 2
          ) -> None:
    """Write both files; the folder is made when it does not exist.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / WEIGHTS).write_bytes(save_safetensors(dict(tensors)))
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=indent) + "\n")
    except OSError as error:
        raise UserError(f"cannot write the policy to {folder}: {error.strerror}") from error


def weights(folder: Path) -> dict[str, Tensor]:
    """
    Raises:
        UserError: the file is larger than any control policy.
        OSError, SafetensorError: it cannot be read, or is cut short.
    """
    path = folder / WEIGHTS
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES >> 20} MiB, which no control policy is")
    return load_safetensors(path.read_bytes())


def read(folder: Path, build: Callable[[Mapping[str, Any], Mapping[str, Tensor]], P]) -> P:
    """What `build` makes of a folder's description and weights.

    Raises:
        UserError: a file is missing, cut short, or does not fit the other.
    """
    try:
        return build(json.loads((folder / DESCRIPTION).read_text()), weights(folder))
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {Path(error.filename).name}", COPY_AGAIN) from error
    except (KeyError, TypeError, ValueError, SafetensorError, OSError) as error:
        raise UserError(f"the policy in {folder} cannot be read: {error}", COPY_AGAIN) from error


def require_format(description: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: another version wrote it.
    """
    if description["format"] != FORMAT:
        raise ValueError(f"format {description['format']!r} is not {FORMAT}: written by another version of opdbench")


def kind(folder: Path) -> str | None:
    """What the folder says that it holds; None of a perceptron, and of what cannot be read (whoever reads it next says
    what is wrong with it)."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text())
    except (OSError, ValueError):
        return None
    found = description.get("kind") if isinstance(description, dict) else None
    return found if isinstance(found, str) else None


def require_shapes(tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """
    Raises:
        ValueError: a tensor is missing, unknown, of the wrong shape, or not finite.
    """
    if set(tensors) != set(expected):
        raise ValueError(f"tensors {sorted(set(tensors) ^ set(expected))} are missing or unknown")
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise ValueError(f"tensor {name} has shape {tuple(tensors[name].shape)}, expected {shape}")
        if not tensors[name].isfinite().all():
            raise ValueError(f"tensor {name} has values that are not finite")
