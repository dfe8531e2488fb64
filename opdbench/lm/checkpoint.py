"""Reading and writing model folders: safetensors and JSON only, every defect one clear sentence."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdbench.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        UserError: no folder, no config.json, or not a model's configuration.
    """
    if not folder.is_dir():
        raise UserError(f"there is no model folder {folder}", "pass a local folder, a hub id or a shipped name")
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not a model folder: it has no config.json",
                        "pass the folder that holds config.json and model.safetensors")
    config = read_json(path)
    if "model_type" not in config:
        raise UserError(f"{path} names no model_type, so it is not a language model's configuration",
                        "pass a folder saved by transformers' save_pretrained or by opdbench")
    return config


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON: {error}", "download or save the model again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object", "download or save the model again")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files, one or several shards.

    Raises:
        UserError: there are none, or a shard that the index names is missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        other = "; pickled weights are not read, because opening them can run code" if _pickled(folder) else ""
        raise UserError(f"{folder} has no {SINGLE}{other}",
                        "download the model again, or convert it with transformers' save_pretrained")
    names = sorted(set(read_json(folder / INDEX).get("weight_map", {}).values()))
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing or not names:
        raise UserError(f"{folder} lacks {len(missing)} of {len(names)} weight files, such as {missing[:1]}",
                        "download the model again")
    return [folder / name for name in names]


def read_weights(folder: Path, take: Callable[[str, Tensor], bool], wanted: set[str]) -> None:
    """Hand every stored tensor to `take`, one at a time, so that one copy of a large model is enough.

    Args:
        take: stores a tensor under its transformers name; False when its shape does not fit.
        wanted: names that must be there.

    Raises:
        UserError: a file is cut short or not safetensors, a tensor is missing or has another shape.
    """
    found: set[str] = set()
    for path in weight_files(folder):
        for name, tensor in _tensors(path):
            if name in wanted:
                if not take(name, tensor):
                    raise UserError(f"{path}: {name} has shape {list(tensor.shape)}, which config.json contradicts",
                                    "config.json and the weights belong to different models: download it again")
                found.add(name)
    missing = sorted(wanted - found)
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of {len(wanted)} weights, such as {missing[0]}",
                        "config.json and the weights belong to different models, or the download is incomplete")


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write config.json and model.safetensors in the layout of transformers; each file appears whole or not at all."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    part = folder / (SINGLE + ".part")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, str(part),
              metadata={"format": "pt"})
    part.replace(folder / SINGLE)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(dict(content), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    part.replace(path)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tensors(path: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is cut short or not a safetensors file: {error}",
                        "download the model again") from error


def _pickled(folder: Path) -> bool:
    return any(folder.glob("pytorch_model*.bin")) or any(folder.glob("*.pt"))
