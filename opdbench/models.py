"""From what a user calls a model to the files on this machine, and to the checksum that a record keeps of them."""

from __future__ import annotations

import hashlib
import inspect
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from opdbench import hub
from opdbench.errors import UserError, nearest
from opdbench.task import Task

Role = Literal["teacher", "student"]

# Weights as safetensors, everything else as text. Pickled weights and Python files stay on the hub.
_HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_CONFIGS = ("config.json", "policy.json")  # a language model's, a control policy's
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
# What scores depend on; manifests and READMEs do not count.
_CHECKED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_UNCHECKED = ("manifest.json", "README.txt", "LICENSE.txt")


def resolve(reference: str, *, role: Role, task: Task) -> Path:
    """The local folder (or policy file) that `reference` names.

    Tried in this order, so that a recipe means the same in every working folder: a shipped name ("chain-sum/teacher");
    a path (a model folder, a run's folder or record, an SB3 zip or safetensors policy); a hub id ("Qwen/Qwen3-0.6B",
    or with "@revision").

    Raises:
        UserError: nothing of that name, or no usable weights there; says what to pass or to download.
    """
    shipped = shipped_models(task)
    if reference in shipped:
        return shipped[reference]
    path = Path(reference).expanduser()
    if path.exists():
        return _local(path, role)
    owner = reference.partition("/")[0]
    if hub.is_id(reference) and owner not in {name.partition("/")[0] for name in shipped}:
        return _with_weights(_download(reference, role), role)
    hint = f": {nearest(reference, shipped)}" if shipped else ""
    raise UserError(f"no {role} model {reference!r}: neither a shipped name, nor a path that exists, nor a hub id",
                    f"pass --{role} a model folder, a hub id (owner/name) or a shipped name{hint}")


def shipped_models(task: Task | None = None) -> dict[str, Path]:
    """Models that come with opdbench, and with the package that `task` comes from: "folder/role" -> folder."""
    places = [Path(place) / "models" for place in _tasks_package()]
    if task is not None:
        places.append(Path(inspect.getfile(type(task))).parent / "models")
    found = {config.parent for place in places for name in _CONFIGS for config in place.glob(f"*/*/{name}")}
    return {f"{folder.parent.name}/{folder.name}": folder for folder in sorted(found)}


def checksum(path: Path) -> str:
    """sha256 over a model's weights, configuration and tokenizer, by name and content; of a file, over its bytes."""
    if path.is_file():
        return _sha256(path)
    files = {file for pattern in _CHECKED for file in path.glob(pattern) if file.name not in _UNCHECKED}
    lines = "".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def _tasks_package() -> list[str]:
    spec = find_spec("opdbench.tasks")
    return list(spec.submodule_search_locations or []) if spec else []


def _local(path: Path, role: Role) -> Path:
    """A model folder itself; the `student` that a run left in its folder or beside its record; a policy file."""
    if path.is_file() and path.suffix != ".json":
        return path
    folders = [path, path / "student"] if path.is_dir() else [path.with_suffix("") / "student", path.parent / "student"]
    for folder in folders:
        if _is_model(folder):
            return _with_weights(folder, role)
    raise UserError(f"{path} holds no model: there is no {' or '.join(_CONFIGS)} in {_and(folders)}",
                    f"pass --{role} the folder that holds the model's configuration and its safetensors weights")


def _download(reference: str, role: Role) -> Path:
    return hub.snapshot(reference, kind="model", allow=_HUB_FILES, ignore=["*/*"],
                        instead=f"pass --{role} a local folder with config.json, the tokenizer's files and safetensors "
                                "weights")


def _with_weights(folder: Path, role: Role) -> Path:
    if not _is_model(folder) or not any(folder.glob("*.safetensors")):
        pickles = sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern))
        seen = f"; {', '.join(pickles[:3])} would have to be unpickled, which opdbench never does" if pickles else ""
        raise UserError(f"{folder} has no configuration with safetensors weights{seen}",
                        f"save the model with `save_pretrained(folder)` of transformers, and pass --{role} that folder")
    return folder


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _CONFIGS)


def _and(folders: list[Path]) -> str:
    return " or ".join(str(folder) for folder in folders)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

