"""A method's code by its checksum, read and never imported: the number that recipes have for it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from opdbench import untrusted
from opdbench.registry import ROOTS
from opdbench.source import ClassSource, SourceError, SourceFile, bare_code, classes_in


def code_sha256(file: Path, name: str) -> str:
    """The checksum that a recipe has for the method `name` of a file: of its module, and of the methods' modules that
    it builds on, without comments and docstrings.

    Raises:
        SourceError: the file is not Python, too large, or has no method of that name.
    """
    try:
        untrusted.read(file, untrusted.METHOD_BYTES)
    except untrusted.RefusedError as error:
        raise SourceError(f"{file.name} {error}") from None
    source = SourceFile.of_file(file, f"opdbench_submission_{file.stem}")
    found = [cls for cls in classes_in(source) if cls.own_value("name") == name and _is_method(cls)]
    if len(found) != 1:
        raise SourceError(f"{file.name} has {len(found)} methods called {name}")
    lineage = [cls for cls in found[0].lineage if _is_method(cls)]
    files = {cls.file.module: cls.file for cls in lineage}
    return hashlib.sha256("\n".join(bare_code(each.tree) for each in files.values()).encode()).hexdigest()


def _is_method(cls: ClassSource) -> bool:
    return cls.descends_from(*ROOTS["method"])
