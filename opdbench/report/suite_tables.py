"""The tables of a board over several tasks, in the files and by the conventions of `opdbench.report.tables`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opdbench.report.entries import COSTS
from opdbench.report.standings import Standing, Standings
from opdbench.report.tables import COST_NAMES, as_entry
from opdbench.report.writing import (
    Columns,
    amount,
    as_csv,
    as_markdown,
    as_tabular,
    csv_text,
    failure,
    interval,
    md,
    number,
    plain,
    shown,
)
from opdbench.report.writing import as_json as json_text
from opdbench.schema.board import SuiteBoard

_GUIDE = (
    "Gap recovered is (after - before) / (teacher - before), in each task and its mean over the tasks; the bracket of "
    "that mean is the 95% interval for new seeds and new examples of these tasks. IQM is the interquartile mean over "
    "tasks and seeds, with a stratified bootstrap interval. Closed division: a method's tuned setting is the one that "
    "its suite's grid chose on validation problems, of each task or of those that choose for all, with a seed of its "
    "own. Methods that share a letter under tie cannot be told apart (paired differences, Holm over the board at "
    "{alpha:g}); rank is one more than the number of methods that were shown to be better. Only methods with {seeds} "
    "seeds on every task are ranked. Detectable is the difference to the first that had an 80% chance to be found; a "
    "tie is underpowered where that exceeds {effect:g}% of the gap. Costs are of training, means over seeds and sums "
    "over tasks.")


def render(board: SuiteBoard, found: Standings, command: str) -> dict[str, str]:
    """The content of every file, by name."""
    content = as_json(board, found)
    return {"table.json": json_text(content), "table.csv": as_csv(_flat(content)),
            "table.md": _markdown(board, content, command), "table.tex": as_tabular(_for_page(content))}


def as_json(board: SuiteBoard, found: Standings) -> dict[str, Any]:
    """The rules and the lines as JSON values: everything that the other forms and the charts are made of. An entry's
    `tasks` holds, by task, what an entry of that task's own board would."""
    return {"title": board.title, "rules": board.model_dump(mode="json", exclude_defaults=True),
            "tasks": {task: {"budget": found.budgets[task], **rules.model_dump(exclude_none=True)}
                      for task, rules in board.tasks.items()},
            "entries": [_entry(line) for line in found.lines]}


def _entry(line: Standing) -> dict[str, Any]:
    settings = [*line.arm.set, *([f"preset {line.arm.preset}"] if line.arm.preset else [])]
    return {
        "rank": line.rank, "tie": line.tie, "method": plain(line.name), "algorithm": line.arm.method,
        "setting": ", ".join(map(plain, settings)), "seeds": line.seeds, "missing": list(line.missing),
        "ranked_by": None if line.gap is None else interval(line.gap.interval()),
        "interquartile_mean": None if line.middle is None else interval(line.middle),
        "detectable": number(line.detectable), "underpowered": line.underpowered,
        "costs": {name: number(value) for name, value in line.costs.items()},
        **{name: [plain(value) for value in values] for name, values in line.facts.items()},
        "failed": [{"task": task, "seed": failed.seed, "status": failed.status, "reason": plain(failed.reason)}
                   for task, failed in line.failures],
        "tasks": {task: as_entry(entry) for task, entry in line.by_task.items()},
    }


def _flat(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A line for each method and task, and one for each method over all of them."""
    lines = []
    for entry in content["entries"]:
        same = {"rank": entry["rank"], "tie": entry["tie"], "method": csv_text(entry["method"]),
                "algorithm": entry["algorithm"]}
        lines.append({**same, "task": "all", "seeds": entry["seeds"], "setting": csv_text(entry["setting"]),
                      **_bounds("gap", entry["ranked_by"]), **_bounds("iqm", entry["interquartile_mean"]),
                      "detectable": entry["detectable"], "underpowered": entry["underpowered"],
                      **{name: entry["costs"].get(name) for name in COSTS}})
        for task, found in entry["tasks"].items():
            after = found["scores"]["after"]
            lines.append({**same, "task": task, "seeds": len(found["seeds"]), "setting": csv_text(found["setting"]),
                          **_bounds("gap", found["gap_recovered"].get("mean")),
                          **_bounds("after_greedy", after.get("greedy")),
                          **_bounds("after_sampled", after.get("sampled")),
                          **{name: found["costs"].get(name) for name in COSTS},
                          "failed": csv_text("; ".join(failure(each) for each in found["failed"]))})
    return lines


def _bounds(name: str, found: Mapping[str, Any] | None) -> dict[str, Any]:
    return {f"{name}_{part}": "" if found is None else found[part] for part in ("mean", "low", "high")}


def _columns(content: Mapping[str, Any]) -> Columns:
    """Header and cells of what Markdown and LaTeX show; columns without any content are left out."""
    entries = content["entries"]
    columns = [
        ("rank", ["-" if entry["rank"] is None else str(entry["rank"]) for entry in entries]),
        ("tie", [entry["tie"] for entry in entries]),
        ("method", [entry["method"] for entry in entries]),
        ("setting", [entry["setting"] for entry in entries]),
        ("gap recovered, %", [shown(entry["ranked_by"], 100.0) for entry in entries]),
        ("IQM, %", [shown(entry["interquartile_mean"], 100.0) for entry in entries]),
        *((task.partition("@")[0], [_of_task(entry, task) for entry in entries]) for task in content["tasks"]),
        ("seeds", [str(entry["seeds"]) for entry in entries]),
        ("detectable, %", ["-" if entry["detectable"] is None else f"{100 * entry['detectable']:.1f}"
                           + (" underpowered" if entry["underpowered"] else "") for entry in entries]),
        *((COST_NAMES[name], [amount(entry["costs"].get(name)) for entry in entries]) for name in COSTS),
        *((name, ["; ".join(entry.get(name, [])) for entry in entries])
          for name in ("trust", "hardware", "commit", "date")),
    ]
    return [(name, cells) for name, cells in columns if any(cell not in ("", "-") for cell in cells)]


def _of_task(entry: Mapping[str, Any], task: str) -> str:
    found = entry["tasks"].get(task)
    gap = None if found is None else found["gap_recovered"].get("mean")
    return "-" if gap is None else f"{100 * gap['mean']:.1f}"


def _for_page(content: Mapping[str, Any]) -> Columns:
    return [(name, cells) for name, cells in _columns(content) if name not in ("trust", "hardware", "commit", "date")]


def _markdown(board: SuiteBoard, content: Mapping[str, Any], command: str) -> str:
    tasks = "; ".join(f"{task} ({rules['budget']}, suite {rules['suite']}, teacher {rules.get('teacher', 'any')}, "
                      f"student {rules.get('student', 'any')})" for task, rules in content["tasks"].items())
    failed = [f"- `{md(entry['method'])}` on {md(each['task'])}, {md(failure(each))}" for entry in content["entries"]
              for each in entry["failed"]]
    absent = [f"- `{md(entry['method'])}`: {md(', '.join(entry['missing']))}" for entry in content["entries"]
              if entry["missing"]]
    parts = [
        f"# {md(board.title)}", md(board.about), md(f"Tasks: {tasks}. Sorted by the mean of the gap recovered."),
        as_markdown(_columns(content)) if content["entries"] else "No run meets the rules yet.",
        "Not ranked, for want of enough seeds or a measurable gap on:\n\n" + "\n".join(absent) if absent else "",
        "Runs without a score:\n\n" + "\n".join(failed) if failed else "",
        md(_GUIDE.format(alpha=board.alpha, effect=100 * board.smallest_effect, seeds=board.min_seeds)),
        f"Made by `{command}` from the records' raw outcomes.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
