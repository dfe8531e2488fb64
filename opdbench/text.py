"""Plain text for people, JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from opdbench.untrusted import HIDDEN


def print_json(value: Any) -> None:
    """JSON on stdout; what could move a terminal's cursor is written as an escape, which means the same."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    print(HIDDEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns; on a terminal the last one is wrapped, in a pipe every row stays one line."""
    lines = [[name.upper() for name in header], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    return "\n".join(_row(line, widths) for line in lines)


def fields(pairs: Iterable[tuple[str, str]]) -> str:
    """One labelled value a line; empty values are left out."""
    kept = [(label, value) for label, value in pairs if value]
    width = max((len(label) for label, _ in kept), default=0)
    return "\n".join(_row([label, value], [width]) for label, value in kept)


def paragraph(text: str) -> str:
    """Running text, wrapped on a terminal."""
    return _row([text], [])


def bold(text: str) -> str:
    return f"\033[1m{text}\033[0m" if sys.stdout.isatty() else text


def number(value: float) -> str:
    """A number for people: no noise digits, and thousands kept apart."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    left = "".join(f"{cell:<{width}}  " for cell, width in zip(cells[:-1], widths, strict=True))
    # Wrapping is for eyes; a program that reads a pipe line by line must find one row on each.
    room = max(30, _width() - len(left)) if sys.stdout.isatty() else sys.maxsize
    lines = [part for line in cells[-1].splitlines() or [""] for part in textwrap.wrap(line, room) or [""]]
    return "\n".join([(left + lines[0]).rstrip(), *(" " * len(left) + line for line in lines[1:])])


def _width() -> int:
    return min(120, shutil.get_terminal_size().columns)
