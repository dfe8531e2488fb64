"""A paper that nobody wrote, beside records of runs that never were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from opdbench.schema.paper import Paper, parse
from tests.report.synthetic import write_run

ARMS = {"base": 0.5, "high": 0.9, "low": 0.3, "same": 0.5}  # accuracy after, from 0.2 under a teacher of 0.95
TEXT = """
key: toy
title: A toy <paper>
authors_short: Nobody
venue: Nowhere
year: 2026
arxiv: null
headline:
- {claim: high is higher, value: 3 to 1, verified: false}
tables:
- id: one
  caption: The only table
  metric: accuracy
  unit: percent
  higher_is_better: true
  columns: [x, y]
  rows:
  - {method: base, values: {x: 50, y: 10}}
  - {method: up, values: {x: 60.5}, std: {x: 1}}
  - {method: down, values: {x: 40, y: 70}, ci95: {x: [30, 45]}, verified: true}
  - {method: equal, values: {x: 55}}
  source: {read: nothing}
  verified: false
  why_not_verified: there is nothing to read
  precision: read off a drawing
not_run: it is a toy
ours:
- table: one
  scale: tiny
  suite: SUITE
  task: toy@1
  reference: {row: base, column: x}
  arms: {base: {x: base}, up: {x: high}, down: {x: high, y: absent}, equal: {x: same}}
"""


def fill(folder: Path) -> str:
    """Records of a suite, five seeds each: all arms on one task, and two that change places on another; gives the
    suite's reference."""
    suite = folder / "toys.yaml"
    suite.write_text(yaml.safe_dump({
        "title": "Toys", "tasks": {task: {"budget": "steps=10"} for task in ("toy", "play", "rest")},
        "arms": {name: {"method": name} for name in (*ARMS, "absent")}}))
    runs = [("toy", *arm) for arm in ARMS.items()] + [("play", "high", ARMS["base"]), ("play", "base", ARMS["high"])]
    for task, name, accuracy in runs:
        for seed in range(5):
            write_run(folder / "results", name, seed, after=accuracy, task=f"{task}@1")
    return str(suite)


def paper(suite: str, **changes: Any) -> Paper:
    content = yaml.safe_load(TEXT.replace("SUITE", json.dumps(suite)))
    return parse(yaml.safe_dump({**content, **changes}), "toy")
