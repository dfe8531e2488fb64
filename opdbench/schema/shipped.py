"""The YAML files that come with opdbench (`configs/KIND/NAME.yaml`), and a user's own of the same form."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from opdbench.errors import UserError, unknown

M = TypeVar("M", bound=BaseModel)


def names(folder: str) -> list[str]:
    """What `configs/folder` holds, by name."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder(folder).iterdir() if file.name.endswith(".yaml"))


def text(folder: str, kind: str, name: str, *, see: str | None = None) -> str:
    """The file of this name; `kind` is what it is called in messages, `see` the command that lists them.

    Raises:
        UserError: there is none (names the nearest).
    """
    if name not in names(folder):
        raise unknown(kind, name, names(folder), see=see)
    return (_folder(folder) / f"{name}.yaml").read_text(encoding="utf-8")


def by_reference(folder: str, kind: str, reference: str) -> tuple[str, str]:
    """The name and the text of a shipped file by name, or of a user's by path.

    Raises:
        UserError: there is none.
    """
    path = Path(reference)
    if path.suffix not in (".yaml", ".yml"):
        return reference, text(folder, kind, reference)
    if not path.is_file():
        raise UserError(f"there is no {kind} file {path}", f"pass the name of a shipped {kind}, or a YAML file")
    return path.stem, path.read_text(encoding="utf-8")


def parse(model: type[M], content: str, called: str) -> M:
    """What the text says, as a `model`; `called` names it in messages.

    Raises:
        UserError: it is not YAML, or says something that a `model` cannot say: where, and what.
    """
    try:
        return model.model_validate(yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise UserError(f"{called} is not YAML: {str(error).splitlines()[0]}", "mend the file") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{called}: {place or 'the file'}: {first['msg']}", "mend the file") from error


def _folder(name: str) -> Traversable:
    return files("opdbench.configs") / name
