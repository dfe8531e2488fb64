"""Probes: what any run can be asked to watch besides, with `--probe NAME`. They never change what is trained.

A probe looks at the batch of a step after it was prepared and before the student moves, `LOOKS` times over the budget,
off the clock and off the ledger. What it saw is in the record: a series by step, and a summary at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from opdbench.errors import unknown

if TYPE_CHECKING:
    from opdbench.probes.base import Probe

PROBES = {
    "geometry": "geometry:Geometry", "rocks": "distance:RockTokens", "overlap": "distance:Overlap",
    "fidelity": "distance:Fidelity", "agreement": "distance:Agreement", "context-gain": "context_gain:ContextGain",
    "gradient-variance": "gradient_variance:GradientVariance",
    "forgetting": "forgetting:Forgetting"}


def check(names: Sequence[str]) -> None:
    """
    Raises:
        UserError: there is no such probe.
    """
    for name in names:
        if name not in PROBES:
            raise unknown("probe", name, PROBES)


def make(names: Sequence[str]) -> list[Probe]:
    """New ones, each once."""
    made = []
    for name in dict.fromkeys(names):
        module, attribute = PROBES[name].split(":")
        made.append(getattr(import_module(f"opdbench.probes.{module}"), attribute)(name))
    return made
