"""Methods and tasks are found by entry point, described from their source, and imported only when they are used.

The core's own methods and tasks, a third party's package and a scratch file come in through the same door: the entry
point groups `opdbench.methods` and `opdbench.tasks`, or `--plugin FILE`. One registration may stand for many tasks: a
class that declares an `argument` is used as "name:argument", and makes the class for it (`Task.named`). Describing
reads source with `ast`, so that `opdbench list` imports neither torch nor anybody's plugin, and one that is broken
hides none of the others.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from opdbench import unspecified
from opdbench.errors import UsageError, UserError, unknown
from opdbench.source import ClassSource, SourceError, SourceFile, classes_in, find_class

Kind = Literal["method", "task"]
KINDS: tuple[Kind, ...] = ("method", "task")
GROUPS: dict[Kind, str] = {"method": "opdbench.methods", "task": "opdbench.tasks"}
# The class that everything of a kind descends from, as (module, class).
ROOTS: dict[Kind, tuple[str, str]] = {
    "method": ("opdbench.distiller", "Distiller"),
    "task": ("opdbench.task", "Task"),
}


@dataclass(frozen=True)
class Description:
    """What a method or task says of itself, read without importing it.

    Attributes:
        summary: one line.
        domains: "lm" (language models), "rl" (control), or both.
        needs: what a method needs the teacher to reveal, as written; "" for a task.
        paper: citation of a method, or where a task's problems come from.
        package: the distribution and its version, or the plugin file.
        path: the source file, None when it was not found.
        problem: why it cannot be used, None when nothing is wrong with its source.
        argument: what must stand behind the name and a colon, in one word; "" for what is used by its name alone.
        bridges: whether a method compares distributions over different vocabularies.
        standing: of a method, how certain its form is (`opdbench.distiller.Standing`).
    """

    kind: Kind
    name: str
    version: int
    summary: str
    domains: tuple[str, ...]
    needs: str
    paper: str
    package: str
    path: Path | None
    problem: str | None = None
    argument: str = ""
    bridges: bool = False
    standing: str = "published"

    @property
    def id(self) -> str:
        return f"{self.name}{':' if self.argument else ''}{self.argument}@{self.version}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "id": self.id, "path": None if self.path is None else str(self.path)}


@dataclass(frozen=True)
class _Entry:
    """One registration: a class in an installed module, or in a plugin file."""

    kind: Kind
    name: str
    module: str
    attribute: str
    package: str
    file: Path | None = None

    def source(self) -> ClassSource:
        if self.file is None:
            return find_class(SourceFile.of_module(self.module), self.attribute)
        return find_class(SourceFile.of_file(self.file, self.module), self.attribute)


def names(kind: Kind, plugins: Sequence[str | Path] = ()) -> tuple[str, ...]:
    """The registered names of a kind, sorted; whether each can be imported is not looked at."""
    return tuple(sorted({entry.name for entry in _entries(kind, plugins)}))


def descriptions(kind: Kind, plugins: Sequence[str | Path] = ()) -> list[Description]:
    """Every registered method or task, sorted by name; broken ones say so in `problem`."""
    entries = _entries(kind, plugins)
    return [_describe(name, [entry for entry in entries if entry.name == name])
            for name in sorted({entry.name for entry in entries})]


def describe(kind: Kind, identifier: str, plugins: Sequence[str | Path] = ()) -> Description:
    """One method or task by "name" or "name@version"; the name may have an argument behind a colon.

    Raises:
        UserError: unknown name, wrong version, an argument too many or missing, registered twice, or its source cannot
            be read.
    """
    name, argument, version = _split(kind, identifier)
    description = _describe(name, _named(kind, name, plugins))
    if description.problem:
        raise UserError(f"{kind} {name!r} of {description.package} cannot be used: {description.problem}")
    _check_version(kind, name, version, description.version)
    _check_argument(kind, name, argument, description.argument)
    return replace(description, name=f"{name}:{argument}", argument="") if argument else description


def load(kind: Kind, identifier: str, plugins: Sequence[str | Path] = ()) -> type[Any]:
    """Import and return the class of "name" or "name@version"; the name may have an argument behind a colon.

    Raises:
        UserError: unknown name, wrong version, an argument too many or missing, registered twice, or its import fails.
    """
    name, argument, version = _split(kind, identifier)
    entry = _only(kind, name, _named(kind, name, plugins))
    found: type[Any] = _import(entry)
    _check_class(entry, found)
    _check_version(kind, name, version, getattr(found, "version", 1))
    _check_argument(kind, name, argument, getattr(found, "argument", ""))
    return found.named(argument) if argument else found


def kinds_of(identifier: str, plugins: Sequence[str | Path] = ()) -> list[Kind]:
    """The kinds under which "name" or "name@version" is registered: none, one, or both."""
    name = _canonical(identifier).partition("@")[0].partition(":")[0]
    return [kind for kind in KINDS if name in names(kind, plugins)]


def defined_in(file: str | Path) -> list[tuple[Kind, str]]:
    """The methods and tasks of a plugin file, by kind and name."""
    return [(entry.kind, entry.name) for kind in KINDS for entry in _scratch(kind, Path(file))]


# ---------------------------------------------------------------------------------------------- finding registrations


def _entries(kind: Kind, plugins: Sequence[str | Path]) -> list[_Entry]:
    installed = [_installed(kind, point) for point in entry_points(group=GROUPS[kind])]
    return installed + [entry for plugin in plugins for entry in _scratch(kind, Path(plugin))]


def _installed(kind: Kind, point: EntryPoint) -> _Entry:
    package = _package(point.dist) if point.dist else "an unnamed package"
    return _Entry(kind, point.name, point.module, point.attr, package)


@lru_cache(maxsize=16)
def _package(distribution: Distribution) -> str:
    """Name and version: reading them parses the whole metadata, which holds the README, each time."""
    return f"{distribution.metadata['Name']} {distribution.version}"


def _scratch(kind: Kind, file: Path) -> Iterable[_Entry]:
    """The classes of a kind in a plugin file that give themselves a `name`."""
    file = file.expanduser().absolute()
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"plugin {file} is not a Python file that exists", "pass a .py file: --plugin FILE")
    try:
        source = SourceFile.of_file(file, _plugin_module(file))
        for found in classes_in(source):
            name = found.own_value("name")
            if isinstance(name, str) and found.descends_from(*ROOTS[kind]):
                yield _Entry(kind, name, source.module, found.name, str(file), file)
    except SourceError as error:
        # Unlike an installed package, the user asked for this very file: going on without it would hide the reason.
        raise UserError(f"plugin {file} cannot be read: {error}") from error


def _named(kind: Kind, name: str, plugins: Sequence[str | Path]) -> list[_Entry]:
    entries = _entries(kind, plugins)
    if not entries:
        raise UserError(f"no {kind}s are registered, so opdbench is not installed as a package",
                        "pip install -e . (in the checkout), or pip install opdbench")
    found = [entry for entry in entries if entry.name == name]
    if not found and kind == "method" and (known := unspecified.read().get(name)) is not None:
        raise UserError(f"{name} cannot be run: too little of it is public. Missing: {known.missing}",
                        f"opdbench show {name}")
    if not found:
        raise unknown(kind, name, (entry.name for entry in entries), see=f"opdbench list {kind}s")
    return found


def _only(kind: Kind, name: str, entries: Sequence[_Entry]) -> _Entry:
    if len(entries) > 1:
        raise UserError(_twice(kind, name, entries), "uninstall one of them, or rename the plugin's")
    return entries[0]


def _twice(kind: Kind, name: str, entries: Sequence[_Entry]) -> str:
    return f"{kind} {name!r} is registered {len(entries)} times: by " + " and by ".join(e.package for e in entries)


def _canonical(identifier: str) -> str:
    """"family-variant:member" for "family/member@variant", another way to write it. What stands behind an @ is a
    version everywhere else, and results, suites and boards take versions together: two variants that must never meet
    are two registrations."""
    if identifier.count("+"):  # one made of several: each of them may be written so
        head, colon, members = identifier.partition(":")
        return head + colon + "+".join(map(_canonical, members.split("+")))
    member = re.fullmatch(r"([a-z0-9-]+)/([^/@:]+)@([a-z][\w-]*)", identifier)
    return f"{member[1]}-{member[3]}:{member[2]}" if member else identifier


def _split(kind: Kind, identifier: str) -> tuple[str, str, int | None]:
    """("gsm8k", "", 1) of "gsm8k@1", and ("suite", "one", None) of "suite:one"."""
    name, at, version = _canonical(identifier).partition("@")
    if at and not version.isdecimal():
        raise UsageError(f"{identifier!r} is not a {kind}: write NAME or NAME@VERSION, such as {name or 'name'}@1")
    name, _, argument = name.partition(":")
    return name, argument, int(version) if at else None


def _check_argument(kind: Kind, name: str, argument: str, wanted: str) -> None:
    if argument and not wanted:
        raise UsageError(f"{kind} {name!r} takes nothing behind a colon, and is given {argument!r}", f"use {name}")
    if wanted and not argument:
        raise UsageError(f"{kind} {name!r} stands for many: it needs to be told which", f"write {name}:{wanted}")


def _check_version(kind: Kind, name: str, wanted: int | None, there: int) -> None:
    if wanted is not None and wanted != there:
        raise UsageError(f"{kind} {name}@{wanted} does not exist here: the installed version is {name}@{there}",
                         f"use {name}@{there}, or install the package that has version {wanted}")


# -------------------------------------------------------------------------------------------------------- describing


def _describe(name: str, entries: Sequence[_Entry]) -> Description:
    """The description of what is registered under one name; several registrations are a problem, not a choice."""
    first = entries[0]
    if len(entries) > 1:
        return _broken(first, _twice(first.kind, name, entries))
    try:
        return _read(first, first.source())
    except SourceError as error:
        return _broken(first, str(error))


def _broken(entry: _Entry, problem: str) -> Description:
    return Description(entry.kind, entry.name, 0, "", (), "", "", entry.package, entry.file, problem)


def _read(entry: _Entry, source: ClassSource) -> Description:
    is_task = entry.kind == "task"
    summary = source.value("summary") if is_task else source.doc_line()
    domains = source.value("domain" if is_task else "domains") or ()
    return Description(
        kind=entry.kind,
        name=entry.name,
        version=int(source.value("version") or 1),
        summary=str(summary or source.doc_line()).rstrip("."),
        domains=(domains,) if isinstance(domains, str) else tuple(sorted(domains)),
        needs="" if is_task else str(source.value("needs") or "nothing"),
        paper=str(source.value("source" if is_task else "paper") or ""),
        package=entry.package,
        path=source.file.path,
        argument=str(source.value("argument") or ""),
        bridges=bool(source.value("bridges")),
        standing=str(source.value("standing") or "published"),
    )


# --------------------------------------------------------------------------------------------------------- importing


def _import(entry: _Entry) -> Any:
    try:
        module = importlib.import_module(entry.module) if entry.file is None else _import_file(entry.file)
    except UserError:
        raise
    except Exception as error:  # whatever a plugin raises while it is imported is that plugin's problem: name it
        raise UserError(f"{entry.kind} {entry.name!r} of {entry.package} cannot be imported: "
                        f"{type(error).__name__}: {error}", _import_fix(error)) from error
    try:
        found: Any = module
        for part in entry.attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise UserError(f"{entry.kind} {entry.name!r} of {entry.package} is missing: "
                        f"{entry.module} has no {entry.attribute!r}") from None
    return found


def _import_fix(error: Exception) -> str | None:
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    return f"install the package that provides {missing!r}" if missing else None


def _import_file(file: Path) -> ModuleType:
    """Import a plugin once per process, under a name that its path decides (pydantic looks modules up by name)."""
    name = _plugin_module(file)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _plugin_module(file: Path) -> str:
    return f"opdbench_plugin_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"


def _check_class(entry: _Entry, found: Any) -> None:
    module, root = ROOTS[entry.kind]
    if not (isinstance(found, type) and issubclass(found, getattr(importlib.import_module(module), root))):
        raise UserError(f"{entry.kind} {entry.name!r} of {entry.package} is not a subclass of {module}.{root}")
    own_name = getattr(found, "name", None)
    if own_name != entry.name:
        raise UserError(f"{entry.package} registers {entry.kind} {entry.name!r}, but the class calls itself "
                        f"{own_name!r}",
                        f"make the entry point and {found.__qualname__}.name equal")
