"""A board's entries as table.json, table.csv, table.md and table.tex. Equal entries give equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from opdbench import registry
from opdbench.errors import UserError
from opdbench.report import timing
from opdbench.report.entries import COSTS, Entry
from opdbench.report.writing import (
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
from opdbench.schema.board import Board

FILES = ("table.json", "table.csv", "table.md", "table.tex")
MODES = ("greedy", "sampled")
COST_NAMES = {"student_tokens": "student tokens", "teacher_tokens": "teacher tokens",
               "teacher_scored": "states scored by the teacher", "total_flops": "FLOPs", "cpu_seconds": "CPU s"}
_GUIDE = (
    "Gap recovered is (after - before) / (teacher - before). Brackets are 95% intervals for new seeds and new "
    "examples; pairs are greedy / sampled. Methods that share a letter under tie cannot be told apart (paired "
    "differences, Holm over the board at {alpha:g}); rank is one more than the number of methods that were shown to be "
    "better. Detectable is the difference to the first that had an 80% chance to be found; a tie is underpowered where "
    "that exceeds {effect:g}% of the gap. Fewer than {seeds} seeds are shown and not ranked. Costs are of training, "
    "means over seeds.")


def render(board: Board, entries: Sequence[Entry], command: str) -> dict[str, str]:
    """The content of every file, by name."""
    content = as_json(board, entries)
    return {"table.json": json_text(content), "table.csv": _csv(content),
            "table.md": _markdown(board, content, command), "table.tex": _tex(content)}


def as_json(board: Board, entries: Sequence[Entry]) -> dict[str, Any]:
    """The rules and the entries as JSON values: everything that the other forms and the charts are made of."""
    return {"title": board.title, "rules": board.model_dump(mode="json", exclude_defaults=True),
            "shares": _shares(entries), "entries": [as_entry(entry) for entry in entries]}


def as_entry(entry: Entry) -> dict[str, Any]:
    content = _as_entry(entry)
    return content if entry.time is None else timing.put(content, entry.time)


def _as_entry(entry: Entry) -> dict[str, Any]:
    gap, standing = entry.ranked_gap, standing_of(entry.method)
    return {
        "rank": entry.rank, "tie": entry.tie, "method": plain(entry.method),
        **({"standing": standing} if standing else {}),
        "setting": ", ".join(f"{plain(name)}={plain(str(value))}" for name, value in entry.changed.items()),
        "setting_id": entry.setting.digest, "seeds": list(entry.study.seeds) if entry.study else [],
        "examples": len(entry.study.example_e) if entry.study else 0,
        "scores": {phase: {mode: interval(entry.scores[phase, mode]) for mode in MODES
                           if (phase, mode) in entry.scores} for phase in ("before", "teacher", "after")},
        "gap_recovered": {mode: interval(gap.estimate.interval()) for mode, gap in entry.gaps.items()},
        "ranked_by": None if gap is None else interval(gap.estimate.interval()),
        "detectable": number(entry.detectable), "underpowered": entry.underpowered,
        "costs": {name: number(value) for name, value in entry.costs.items()},
        **{name: [plain(value) for value in values] for name, values in entry.facts.items()},
        "failed": [{"seed": failure.seed, "status": failure.status, "reason": plain(failure.reason)}
                   for failure in entry.failures],
    }


@cache
def standing_of(method: str) -> str | None:
    """How certain a method's form is, where it is not: "from notes" or "unspecified". None also of one that is not
    installed here."""
    if method not in _installed():  # to describe a method takes longer than to look for its name
        return None
    try:
        standing = registry.describe("method", method).standing
    except UserError:
        return None
    return None if standing == "published" else standing


@cache
def _installed() -> frozenset[str]:
    return frozenset(registry.names("method"))


def _shares(entries: Sequence[Entry]) -> bool:
    """Whether scores are shares, to be shown in percent."""
    return all(((score_se >= 0) & (score_se <= 1)).all() for entry in entries if entry.study
               for score_se in entry.study.score_se.values())


# ----------------------------------------------------------------------------------------------------------------- csv


def _csv(content: Mapping[str, Any]) -> str:
    """One flat line an entry, in full precision."""
    return as_csv([_flat(entry) for entry in content["entries"]])


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    line = {name: entry[name] for name in ("rank", "tie", "method", "setting", "setting_id", "examples")}
    line["seeds"] = len(entry["seeds"])
    for phase in ("before", "teacher", "after"):
        for mode in MODES:
            _put(line, f"{phase}_{mode}", entry["scores"][phase].get(mode))
    for mode in (*MODES, "mean"):
        _put(line, f"gap_{mode}", entry["gap_recovered"].get(mode))
    line.update(detectable=entry["detectable"], underpowered=entry["underpowered"])
    if "time" in entry:
        line.update(timing.flat(entry["time"]))
    line.update({name: entry["costs"].get(name) for name in COSTS if name not in timing.UNITS or "time" not in entry})
    line.update({name: csv_text("; ".join(entry[name])) for name in ("trust", "hardware", "commit", "date")})
    line["failed"] = csv_text("; ".join(failure(each) for each in entry["failed"]))
    line["method"], line["setting"] = csv_text(line["method"]), csv_text(line["setting"])
    return line


def _put(line: dict[str, Any], name: str, interval: Mapping[str, Any] | None) -> None:
    for part in ("mean", "low", "high"):
        line[f"{name}_{part}"] = "" if interval is None else interval[part]


# ------------------------------------------------------------------------------------------------------ for people


def _columns(content: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Header and cells of what Markdown and LaTeX show; columns without any content are left out."""
    entries, percent = content["entries"], content["shares"]
    scale = 100.0 if percent else 1.0
    unit = ", %" if percent else ""
    columns = [
        ("rank", ["-" if entry["rank"] is None else str(entry["rank"]) for entry in entries]),
        ("tie", [entry["tie"] for entry in entries]),
        ("method", [entry["method"] + (f" ({entry['standing']})" if "standing" in entry else "") for entry in entries]),
        ("setting", [entry["setting"] for entry in entries]),
        ("gap recovered, %", [shown(entry["ranked_by"] or entry["gap_recovered"].get("mean"), 100.0)
                              for entry in entries]),
        *_times(content),
        *((f"after {mode}{unit}", [shown(entry["scores"]["after"].get(mode), scale) for entry in entries])
          for mode in MODES),
        (f"before{unit}", [_pair(entry["scores"]["before"], scale) for entry in entries]),
        ("seeds", [str(len(entry["seeds"])) for entry in entries]),
        ("detectable, %", [_power(entry) for entry in entries]),
        *((COST_NAMES[name], [amount(entry["costs"].get(name)) for entry in entries]) for name in COSTS),
        *((name, ["; ".join(entry[name]) for entry in entries]) for name in ("trust", "hardware", "commit", "date")),
    ]
    return [(name, cells) for name, cells in columns if any(cell not in ("", "-") for cell in cells)]


def _times(content: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """The column of a timed board."""
    rule = content["rules"].get("timed")
    return [] if rule is None else [(timing.header(rule), [timing.cell(entry["time"]) for entry in content["entries"]])]


def _pair(scores: Mapping[str, Mapping[str, Any]], scale: float) -> str:
    return " / ".join(f"{scale * score['mean']:.1f}" for score in scores.values()) or "-"


def _power(entry: Mapping[str, Any]) -> str:
    found = "-" if entry["detectable"] is None else f"{100 * entry['detectable']:.1f}"
    return f"{found} underpowered" if entry["underpowered"] else found


def _markdown(board: Board, content: Mapping[str, Any], command: str) -> str:
    columns = _columns(content)
    failed = [f"- `{md(entry['method'])}`, {md(failure(each))}" for entry in content["entries"]
              for each in entry["failed"]]
    unpaired = [] if board.timed is None else list(timing.unpaired(content))
    parts = [
        f"# {md(board.title)}", md(board.about), _facts(board, content),
        as_markdown(columns) if content["entries"] else "No run meets the rules yet.",
        "Runs without a score:\n\n" + "\n".join(failed) if failed else "",
        "Runs whose time has no ratio:\n\n" + "\n".join(unpaired) if unpaired else "",
        md(_GUIDE.format(alpha=board.alpha, effect=100 * board.smallest_effect, seeds=board.min_seeds)
           + ("" if board.timed is None else f" {timing.GUIDE}")),
        f"Made by `{command}` from the records' raw outcomes.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(board: Board, content: Mapping[str, Any]) -> str:
    """The rules in two lines."""
    budget = " or ".join(", ".join(f"{axis} {amount:,.0f}" for axis, amount in limits.items())
                         for limits in board.budgets)
    teacher = next((_pair(entry["scores"]["teacher"], 100.0 if content["shares"] else 1.0)
                    for entry in content["entries"] if entry["scores"]["teacher"]), "-")
    by = "its mean over greedy and sampled" if board.rank_by == "mean" else f"{board.rank_by} decoding"
    return md(f"Task {board.task}, {board.division} division, budget {budget}; teacher {board.teacher or 'any'} "
               f"({teacher}), student {board.student or 'any'}. Sorted by gap recovered, {by}."
              + ("" if board.timed is None else timing.facts(content)))


def _tex(content: Mapping[str, Any]) -> str:
    """A tabular for booktabs, with the columns that fit on a page."""
    columns = [(name, cells) for name, cells in _columns(content)
               if name not in ("trust", "hardware", "commit", "date")]
    return as_tabular(columns)
