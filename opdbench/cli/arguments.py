"""Arguments that several verbs take, and the parser that answers a wrong one with the nearest right one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from opdbench.errors import UsageError, unknown


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are `UsageError`s, and which takes option names only as they are written."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        # An abbreviated option would change its meaning, without a word, on the day a longer name joins it.
        super().__init__(*args, **{**kwargs, "allow_abbrev": False})  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog}: {message}", f"{self.prog} --help")

    def parse_known(self, words: Sequence[str]) -> argparse.Namespace:
        """`parse_args`, but an unknown option comes first (argparse would complain of what is missing) and gets the
        nearest known one."""
        self._refuse_unknown_options(words)
        return self.parse_args(words)

    def _refuse_unknown_options(self, words: Sequence[str]) -> None:
        for word in words:
            if word == "--":
                return
            option = word.partition("=")[0]
            if word.startswith("--") and option not in self._option_string_actions:
                raise unknown(f"option of {self.prog}:", option, self._long_options(), see=f"{self.prog} --help")

    def _long_options(self) -> list[str]:
        return [option for option in self._option_string_actions if option.startswith("--")]


def one_of(kind: str, valid: Iterable[str]) -> Callable[[str], str]:
    """An argparse `type` that takes one of `valid` and answers anything else with the nearest of them."""
    choices = tuple(valid)

    def check(text: str) -> str:
        if text not in choices:
            raise unknown(kind, text, choices)
        return text

    return check


def seed_range(text: str) -> list[int]:
    """The seeds of `A:B`."""
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and int(first) < int(last)):
        raise UsageError(f"--seeds {text!r} is not a range", "write --seeds 0:5 for the seeds 0, 1, 2, 3 and 4")
    return list(range(int(first), int(last)))


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON value on stdout")


def add_plugin(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE",
                        help="a .py file whose methods and tasks are used like installed ones (repeatable)")
