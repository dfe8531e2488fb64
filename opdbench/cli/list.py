"""List methods, tasks or hardware profiles; without a word, all three."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from opdbench import hardware, registry, unspecified
from opdbench.cli.arguments import add_json, add_plugin, one_of
from opdbench.registry import Description
from opdbench.text import bold, print_json, table

PUBLISHED = "published"  # what most methods are, and need not say
WHAT = ("methods", "tasks", "profiles")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", metavar="methods|tasks|profiles", type=one_of("choice", WHAT))
    add_plugin(parser)
    add_json(parser)


def execute(args: argparse.Namespace) -> int:
    with _no_garbage():
        return _listed(args)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """A hundred parsed files are many small objects of which none is garbage; to look for some, on the way and when the
    process ends, is a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _listed(args: argparse.Namespace) -> int:
    wanted = (args.what,) if args.what else WHAT
    if args.json:
        listed = {what: _as_json(what, args.plugin) for what in wanted}
        print_json(listed[args.what] if args.what else listed)
        return 0
    texts = [_as_text(what, args.plugin) for what in wanted]
    print("\n\n".join(texts if args.what else
                      [f"{bold(what)}\n{text}" for what, text in zip(wanted, texts, strict=True)]))
    return 0


def _as_json(what: str, plugins: Sequence[str]) -> list[dict[str, Any]]:
    if what == "profiles":
        return [profile.as_json() for profile in hardware.profiles()]
    return [description.as_json() for description in _descriptions(what, plugins)]


def _as_text(what: str, plugins: Sequence[str]) -> str:
    if what == "profiles":
        return table(["profile", "for"], [[profile.name, profile.summary] for profile in hardware.profiles()])
    found = _descriptions(what, plugins)
    if what == "methods":
        rows = [[d.name, "+".join(d.domains) or "-", d.needs or "-", _claim(d)] for d in found]
        rows += [[name, "-", "-", f"{known.claim} [cannot be run: not public]"]
                 for name, known in unspecified.read().items()]
        return table(["method", "worlds", "needs", "claim"], rows)
    return table(["task", "world", "problem"], [[d.id, "+".join(d.domains) or "-", _claim(d)] for d in found])


def _descriptions(what: str, plugins: Sequence[str]) -> list[Description]:
    return registry.descriptions("method" if what == "methods" else "task", plugins)


def _claim(description: Description) -> str:
    """The summary; what is wrong with a broken one; how certain a method is, where it is not; and the package, where
    it is not opdbench's own."""
    text = f"cannot be used: {description.problem}" if description.problem else description.summary
    text += "" if description.standing == PUBLISHED else f" [{description.standing}]"
    return text if description.package.startswith("opdbench ") else f"{text} [{description.package}]"
