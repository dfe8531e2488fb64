"""A board's entries as table.json, table.csv, table.md and table.tex. Equal entries give equal bytes."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from opdbench import registry
from opdbench.errors import UserError
from opdbench.report.entries import COSTS, Entry
from opdbench.schema.board import Board
from opdbench.stats import Interval

FILES = ("table.json", "table.csv", "table.md", "table.tex")
MODES = ("greedy", "sampled")
_COST_NAMES = {"student_tokens": "student tokens", "teacher_tokens": "teacher tokens",
               "teacher_scored": "states scored by the teacher", "total_flops": "FLOPs", "cpu_seconds": "CPU s"}
_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        **{sign: "\\" + sign for sign in "&%$#_{}"}}
_GUIDE = (
    "Gap recovered is (after - before) / (teacher - before). Brackets are 95% intervals for new seeds and new "
    "examples; pairs are greedy / sampled. Methods that share a letter under tie cannot be told apart (paired "
    "differences, Holm over the board at {alpha:g}); rank is one more than the number of methods that were shown to be "
    "better. Detectable is the difference to the first that had an 80% chance to be found; a tie is underpowered where "
    "that exceeds {effect:g}% of the gap. Fewer than {seeds} seeds are shown and not ranked. Costs are of training, "
    "means over seeds.")
_LONGEST = 200  # characters of a text that someone else wrote


def render(board: Board, entries: Sequence[Entry], command: str) -> dict[str, str]:
    """The content of every file, by name."""
    content = as_json(board, entries)
    return {"table.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            "table.csv": _csv(content), "table.md": _markdown(board, content, command), "table.tex": _tex(content)}


def as_json(board: Board, entries: Sequence[Entry]) -> dict[str, Any]:
    """The rules and the entries as JSON values: everything that the other forms and the charts are made of."""
    return {"title": board.title, "rules": board.model_dump(mode="json", exclude_defaults=True),
            "shares": _shares(entries), "entries": [_entry(entry) for entry in entries]}


def plain(text: str) -> str:
    """A stranger's text without control characters, marks that reverse the direction of reading, and excess length."""
    return _HIDDEN.sub(" ", text)[:_LONGEST].strip()


def _entry(entry: Entry) -> dict[str, Any]:
    gap, standing = entry.ranked_gap, standing_of(entry.method)
    return {
        "rank": entry.rank, "tie": entry.tie, "method": plain(entry.method),
        **({"standing": standing} if standing else {}),
        "setting": ", ".join(f"{plain(name)}={plain(str(value))}" for name, value in entry.changed.items()),
        "setting_id": entry.setting.digest, "seeds": list(entry.study.seeds) if entry.study else [],
        "examples": len(entry.study.example_e) if entry.study else 0,
        "scores": {phase: {mode: _interval(entry.scores[phase, mode]) for mode in MODES
                           if (phase, mode) in entry.scores} for phase in ("before", "teacher", "after")},
        "gap_recovered": {mode: _interval(gap.estimate.interval()) for mode, gap in entry.gaps.items()},
        "ranked_by": None if gap is None else _interval(gap.estimate.interval()),
        "detectable": _number(entry.detectable), "underpowered": entry.underpowered,
        "costs": {name: _number(value) for name, value in entry.costs.items()},
        **{name: [plain(value) for value in values] for name, values in entry.facts.items()},
        "failed": [{"seed": failure.seed, "status": failure.status, "reason": plain(failure.reason)}
                   for failure in entry.failures],
    }


def standing_of(method: str) -> str | None:
    """How certain a method's form is, where it is not: "from notes" or "unspecified". None also of one that is not
    installed here."""
    try:
        standing = registry.describe("method", method).standing
    except UserError:
        return None
    return None if standing == "published" else standing


def _interval(found: Interval) -> dict[str, float | None]:
    return {"mean": _number(found.mean), "low": _number(found.low), "high": _number(found.high)}


def _number(value: float | None) -> float | None:
    """Eight digits: sums differ in the last of sixteen from one machine to another."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.8g}")


def _shares(entries: Sequence[Entry]) -> bool:
    """Whether scores are shares, to be shown in percent."""
    return all(((score_se >= 0) & (score_se <= 1)).all() for entry in entries if entry.study
               for score_se in entry.study.score_se.values())


# ----------------------------------------------------------------------------------------------------------------- csv


def _csv(content: Mapping[str, Any]) -> str:
    """One flat line an entry, in full precision."""
    lines = [_flat(entry) for entry in content["entries"]]
    names = list(dict.fromkeys(name for line in lines for name in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    line = {name: entry[name] for name in ("rank", "tie", "method", "setting", "setting_id", "examples")}
    line["seeds"] = len(entry["seeds"])
    for phase in ("before", "teacher", "after"):
        for mode in MODES:
            _put(line, f"{phase}_{mode}", entry["scores"][phase].get(mode))
    for mode in (*MODES, "mean"):
        _put(line, f"gap_{mode}", entry["gap_recovered"].get(mode))
    line.update(detectable=entry["detectable"], underpowered=entry["underpowered"])
    line.update({name: entry["costs"].get(name) for name in COSTS})
    line.update({name: _cell_text("; ".join(entry[name])) for name in ("hardware", "commit", "date")})
    line["failed"] = _cell_text("; ".join(_failure(failure) for failure in entry["failed"]))
    line["method"], line["setting"] = _cell_text(line["method"]), _cell_text(line["setting"])
    return line


def _put(line: dict[str, Any], name: str, interval: Mapping[str, Any] | None) -> None:
    for part in ("mean", "low", "high"):
        line[f"{name}_{part}"] = "" if interval is None else interval[part]


def _cell_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


def _failure(failure: Mapping[str, Any]) -> str:
    return f"seed {failure['seed']} {failure['status']}" + (f": {failure['reason']}" if failure["reason"] else "")


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
        ("gap recovered, %", [_shown(entry["ranked_by"] or entry["gap_recovered"].get("mean"), 100.0)
                              for entry in entries]),
        *((f"after {mode}{unit}", [_shown(entry["scores"]["after"].get(mode), scale) for entry in entries])
          for mode in MODES),
        (f"before{unit}", [_pair(entry["scores"]["before"], scale) for entry in entries]),
        ("seeds", [str(len(entry["seeds"])) for entry in entries]),
        ("detectable, %", [_power(entry) for entry in entries]),
        *((_COST_NAMES[name], [_amount(entry["costs"].get(name)) for entry in entries]) for name in COSTS),
        *((name, ["; ".join(entry[name]) for entry in entries]) for name in ("hardware", "commit", "date")),
    ]
    return [(name, cells) for name, cells in columns if any(cell not in ("", "-") for cell in cells)]


def _shown(interval: Mapping[str, Any] | None, scale: float) -> str:
    if interval is None:
        return "-"
    mean = f"{scale * interval['mean']:.1f}"
    if interval["low"] is None:
        return mean
    return f"{mean} ({scale * interval['low']:.1f} to {scale * interval['high']:.1f})"


def _pair(scores: Mapping[str, Mapping[str, Any]], scale: float) -> str:
    return " / ".join(f"{scale * score['mean']:.1f}" for score in scores.values()) or "-"


def _power(entry: Mapping[str, Any]) -> str:
    found = "-" if entry["detectable"] is None else f"{100 * entry['detectable']:.1f}"
    return f"{found} underpowered" if entry["underpowered"] else found


def _amount(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1e9:
        return f"{value:.2e}".replace("e+", "e")
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def _markdown(board: Board, content: Mapping[str, Any], command: str) -> str:
    columns = _columns(content)
    align = {"method": "---", "setting": "---", "tie": "---", "hardware": "---", "commit": "---", "date": "---"}
    cells = [[_md(cell) for cell in line] for line in zip(*(column for _, column in columns), strict=True)]
    failed = [f"- `{_md(entry['method'])}`, {_md(_failure(failure))}" for entry in content["entries"]
              for failure in entry["failed"]]
    parts = [
        f"# {_md(board.title)}", _md(board.about), _facts(board, content),
        "\n".join([_row([name for name, _ in columns]), _row([align.get(name, "--:") for name, _ in columns]),
                   *map(_row, cells)]) if content["entries"] else "No run meets the rules yet.",
        "Runs without a score:\n\n" + "\n".join(failed) if failed else "",
        _md(_GUIDE.format(alpha=board.alpha, effect=100 * board.smallest_effect, seeds=board.min_seeds)),
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
    return _md(f"Task {board.task}, {board.division} division, budget {budget}; teacher {board.teacher or 'any'} "
               f"({teacher}), student {board.student or 'any'}. Sorted by gap recovered, {by}.")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _md(text: str) -> str:
    """Text that is neither markup nor HTML in Markdown."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(plain_long(text), quote=False))


def plain_long(text: str) -> str:
    return _HIDDEN.sub(" ", text).strip()


def _tex(content: Mapping[str, Any]) -> str:
    """A tabular for booktabs, with the columns that fit on a page."""
    columns = [(name, cells) for name, cells in _columns(content) if name not in ("hardware", "commit", "date")]
    lines = [" & ".join(map(_tex_text, cells)) for cells in
             [[name for name, _ in columns], *zip(*(cells for _, cells in columns), strict=True)]]
    head, *body = [line + r" \\" for line in lines]
    align = "".join("l" if name in ("tie", "method", "setting") else "r" for name, _ in columns)
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule",
                      r"\end{tabular}"]) + "\n"


def _tex_text(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)
