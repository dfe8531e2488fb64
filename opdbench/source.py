"""What a class says of itself, read from its source without running it.

Enough of Python's rules to read declarations: class attributes that are literals (own or inherited, also from a class
that another module defines), docstrings, and which class descends from which. Nothing is imported, not even the
packages that the module lies in.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any


class SourceError(Exception):
    """A module or class whose source is missing or cannot be parsed; the message is for the user."""


@dataclass(frozen=True)
class SourceFile:
    """A parsed module."""

    module: str
    path: Path
    tree: ast.Module

    @classmethod
    def of_module(cls, module: str) -> SourceFile:
        """The source of an importable module.

        Raises:
            SourceError: there is no such module, it has no Python source, or that has a syntax error.
        """
        spec = _find_spec(module)
        if spec is None:
            raise SourceError(f"there is no module {module!r}")
        if not spec.origin or not spec.origin.endswith(".py"):
            raise SourceError(f"module {module!r} has no Python source")
        return cls.of_file(Path(spec.origin), module)

    @classmethod
    def of_file(cls, path: Path, module: str) -> SourceFile:
        try:
            return cls(module, path, _parse(path, path.stat().st_mtime_ns))
        except SyntaxError as error:
            raise SourceError(f"syntax error in {path}, line {error.lineno}: {error.msg}") from error
        # ValueError: not UTF-8, or a null byte; the last two: nested deeper than Python's parser goes.
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            raise SourceError(f"{path} cannot be read: {str(error) or type(error).__name__}") from error

    @property
    def package(self) -> str:
        """The package that relative imports in this file start from."""
        return self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]


@dataclass(frozen=True)
class ClassSource:
    """A class definition and the file it stands in."""

    file: SourceFile
    node: ast.ClassDef

    @property
    def name(self) -> str:
        return self.node.name

    @cached_property
    def lineage(self) -> list[ClassSource]:
        """The class, then its bases depth first, as far as their source can be found."""
        todo, found = [self], {}
        while todo:
            current = todo.pop(0)
            if (key := (current.file.module, current.name)) not in found:
                found[key] = current
                todo = [*current._bases(), *todo]
        return list(found.values())

    def descends_from(self, module: str, name: str) -> bool:
        return any((base.file.module, base.name) == (module, name) for base in self.lineage[1:])

    def value(self, attribute: str) -> Any:
        """The class attribute as a Python value, own or inherited; None when it is not assigned anywhere."""
        return next((value for cls in self.lineage if (value := cls.own_value(attribute)) is not None), None)

    def own_value(self, attribute: str) -> Any:
        node = _assigned(self.node.body, attribute)
        return None if node is None else _literal(node, self.file.tree)

    def doc_line(self) -> str:
        """The first line of the class's docstring, or of the module's when the class has none."""
        text = ast.get_docstring(self.node) or ast.get_docstring(self.file.tree) or ""
        return text.partition("\n")[0].strip()

    def _bases(self) -> list[ClassSource]:
        found = []
        for base in self.node.bases:
            dotted = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
            try:
                found.append(find_class(self.file, dotted))
            except SourceError:
                continue  # a base in the standard library or in C says nothing that is looked for here
        return found


def classes_in(file: SourceFile) -> list[ClassSource]:
    """The classes that a file defines at its top level."""
    return [ClassSource(file, node) for node in file.tree.body if isinstance(node, ast.ClassDef)]


def find_class(file: SourceFile, dotted: str, _depth: int = 0) -> ClassSource:
    """The class that `dotted` ("GKD", or "gkd.GKD" after `import gkd`) means in `file`, following its imports.

    Raises:
        SourceError: it is not defined there, nor imported from a module whose source can be found.
    """
    head, _, rest = dotted.partition(".")
    if not rest:
        for found in classes_in(file):
            if found.name == head:
                return found
    if _depth < 10:
        for module, name in _imports(file, head):
            remaining = ".".join(part for part in (name, rest) if part)
            # `import a.b` binds a: the module is then the longest prefix of a.b.C that is one.
            while remaining.count(".") and (deeper := _module_or_none(f"{module}.{remaining.partition('.')[0]}")):
                module, remaining = deeper, remaining.partition(".")[2]
            return find_class(SourceFile.of_module(module), remaining, _depth + 1)
    raise SourceError(f"there is no class {dotted!r} in {file.path}")


def bare_code(tree: ast.Module) -> str:
    """A module as Python writes it, without comments and docstrings: what it computes, and not what it says."""
    bare = copy.deepcopy(tree)
    for node in ast.walk(bare):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(bare)


def _imports(file: SourceFile, bound: str) -> Iterator[tuple[str, str]]:
    """What the name `bound` was imported as: (module, name in it), the name empty for a whole module."""
    for node in _import_statements(file.tree):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names if (alias.asname or alias.name) == bound]
            yield from ((_absolute(node, file), name) for name in names)
        else:
            for alias in node.names:
                if alias.asname == bound:
                    yield alias.name, ""
                elif alias.asname is None and alias.name.partition(".")[0] == bound:
                    yield bound, ""


@lru_cache(maxsize=256)
def _import_statements(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in _statements(tree.body) if isinstance(node, ast.Import | ast.ImportFrom)]


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, those in `if` and `try` among them."""
    for statement in body:
        yield statement
        if isinstance(statement, ast.If | ast.Try):
            yield from _statements([*statement.body, *statement.orelse])
        for handler in getattr(statement, "handlers", ()):
            yield from _statements(handler.body)


def _absolute(node: ast.ImportFrom, file: SourceFile) -> str:
    try:
        return importlib.util.resolve_name("." * node.level + (node.module or ""), file.package)
    except ImportError as error:
        raise SourceError(f"{file.path}, line {node.lineno}: {error}") from error


def _module_or_none(module: str) -> str | None:
    return module if _find_spec(module) else None


def _find_spec(module: str) -> ModuleSpec | None:
    """Like `importlib.util.find_spec`, which would import the packages around the module."""
    spec: ModuleSpec | None = None
    locations: Any = None
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        spec = _ask_finders(".".join(parts[:depth]), locations)
        if spec is None:
            return None
        locations = spec.submodule_search_locations
        if locations is None and depth < len(parts):
            return None
    return spec


def _ask_finders(module: str, locations: Any) -> ModuleSpec | None:
    try:
        specs = (finder.find_spec(module, locations) for finder in sys.meta_path)
        return next((spec for spec in specs if spec is not None), None)
    except KeyError:  # Python cannot find a namespace package inside one that is not imported; its folder is enough
        spec = ModuleSpec(module, None, is_package=True)
        spec.submodule_search_locations = [f"{place}/{module.rpartition('.')[2]}" for place in locations]
        return spec


@lru_cache(maxsize=256)
def _parse(path: Path, _modified_ns: int) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _assigned(body: list[ast.stmt], name: str) -> ast.expr | None:
    """The expression that `name = ...` or `name: T = ...` assigns last in `body`."""
    found = None
    for statement in body:
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or statement.value is None:
            continue
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            found = statement.value
    return found


def _literal(node: ast.expr, tree: ast.Module) -> Any:
    """The value of a literal; of `frozenset(...)` its contents, of `Enum.MEMBER` "member", of other code its text."""
    if isinstance(node, ast.Name) and (constant := _assigned(tree.body, node.id)) is not None:
        node = constant
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("frozenset", "set", "tuple") and len(node.args) == 1:
        node = node.args[0]
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return node.attr.lower() if isinstance(node, ast.Attribute) else ast.unparse(node)
    return inspect.cleandoc(value) if isinstance(value, str) else value
