"""Methods that are known by name and not well enough to be run: what is public of each, and what is not.

Their list is data (`configs/unspecified.yaml`). A method of which only constants are missing is a method like any
other, with the standing "unspecified" and a parameter `approximate`.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import yaml


class Unspecified(NamedTuple):
    """What is known of one."""

    claim: str
    paper: str
    known: str
    missing: str


@cache
def read() -> dict[str, Unspecified]:
    """All of them, by name."""
    content = yaml.safe_load((files("opdbench.configs") / "unspecified.yaml").read_text())
    return {name: Unspecified(**entry) for name, entry in content.items()}
