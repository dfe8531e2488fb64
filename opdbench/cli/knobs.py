"""What a method's parameters are called in other frameworks: `configs/knobs.yaml`, read when it is asked for."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from opdbench.text import table

FILE = "knobs.yaml"
SHARED = "training"
NOBODY = {"knob": "none"}


def read_knobs() -> dict[str, Any]:
    """The whole file: `frameworks`, `methods` and `training` (the shared settings)."""
    import yaml

    content: dict[str, Any] = yaml.safe_load(files("opdbench.configs").joinpath(FILE).read_text(encoding="utf-8"))
    return content


def knobs_of(method: str) -> list[dict[str, str]]:
    """One row a knob: of the method's own parameters, then of the settings that it shares; empty when nobody has it.

    A parameter that nobody else has gets a row that says so, and a framework without such a knob the knob `none`.
    """
    content = read_knobs()
    own = content["methods"].get(method)
    if own is None:
        return []
    return [_row(parameter, entry, content["frameworks"]) for parameters in (own, content[SHARED])
            for parameter, entries in parameters.items() for entry in entries or [NOBODY]]


def knob_table(rows: list[dict[str, str]]) -> str:
    """The rows as text, each parameter and framework named once."""
    lines, before = [], ("", "")
    for row in rows:
        place = row["parameter"], row["framework"]
        lines.append(["" if place[0] == before[0] else place[0], "" if place == before else place[1], row["knob"],
                      "; ".join(part for part in (row["theirs"], row["note"], _doubt(row)) if part)])
        before = place
    return table(["parameter", "elsewhere", "there called", "value there"], lines)


def _row(parameter: str, entry: dict[str, str], frameworks: dict[str, dict[str, str]]) -> dict[str, str]:
    framework = frameworks[entry["framework"]] if "framework" in entry else {
        "name": "nobody", "version": "", "checked": ""}
    return {"parameter": parameter, "framework": framework["name"], "version": framework["version"],
            "knob": entry["knob"], "theirs": entry.get("theirs", ""), "note": entry.get("note", ""),
            "checked": entry.get("checked", framework["checked"])}


def _doubt(row: dict[str, str]) -> str:
    return "name not checked in its code" if row["checked"] == "notes" else ""
