"""A method's class docstring is its page: claim, equation, explanation, deviations from the paper."""

from __future__ import annotations

import inspect
import re
from typing import NamedTuple

DEVIATIONS = "Deviations from the paper:"


class Page(NamedTuple):
    """Parts of a method's docstring; a part that is missing is empty."""

    claim: str  # the first sentence
    equation: str  # the indented blocks
    text: str  # what explains them
    deviations: str  # the section of that name
    body: tuple[str, ...]  # equations and explanations in the order of reading, equations still indented


def read_page(docstring: str | None) -> Page:
    """Split a docstring that begins with a claim, indents its equations, and ends with its deviations."""
    text = inspect.cleandoc(docstring or "")
    head, _, tail = text.partition(f"\n{DEVIATIONS}")
    blocks = re.split(r"\n\s*\n", head)
    claim, rest = blocks[0], blocks[1:]
    equation = [inspect.cleandoc("\n" + block) for block in rest if block.startswith(" ")]
    explanation = [_joined(block) for block in rest if not block.startswith(" ")]
    body = tuple(block.rstrip() if block.startswith(" ") else _joined(block) for block in rest)
    # A section ends where the indentation does.
    deviations = re.split(r"\n(?=\S)", tail)[0]
    return Page(_joined(claim), "\n\n".join(equation), "\n\n".join(explanation),
                "\n\n".join(map(_joined, re.split(r"\n\s*\n", deviations.strip("\n")))), body)


def _joined(paragraph: str) -> str:
    return " ".join(paragraph.split())
