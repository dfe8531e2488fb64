"""Charts as plain SVG: equal values give equal bytes, colours come from CSS variables, and every name is escaped.

Inside the site a chart takes its colours from the page; as a file of its own (`figure`) it brings them along, light and
dark, so that it also stands in a README.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from opdbench.report.axes import Axis, cost_axis, score_axis, short

COST_NAMES = {"student_tokens": "student tokens", "teacher_tokens": "teacher tokens", "total_flops": "FLOPs",
              "cpu_seconds": "CPU seconds", "time_ratio": "time, reference = 1"}
CHART = "pareto.svg"
WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 34, 44
_LETTER, _LINE = 6.1, 13  # width of a letter and height of a line of labels, in pixels, somewhat generous
_NOT_XML = re.compile(r"[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufdcf\ufdf0-\ufffd\U00010000-\U0001fffd]"
                      r"|[\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
STYLE = """
svg{--ink:#1c2024;--muted:#60646c;--line:#d9dce1;--accent:#0b6e6e;--paper:#ffffff}
@media (prefers-color-scheme:dark){svg{--ink:#edeef0;--muted:#a5abb5;--line:#363a41;--accent:#5cc8c0;--paper:#16181b}}
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--muted);font-variant-numeric:tabular-nums}
.back{fill:var(--paper)}.title{fill:var(--ink);font-weight:600;font-size:13px}
.name{fill:var(--ink);stroke:var(--paper);stroke-width:3px;stroke-linejoin:round;paint-order:stroke}
.head{fill:var(--ink);font-weight:600;font-size:15px}
.grid{stroke:var(--line);stroke-width:1}.bound{stroke:var(--muted);stroke-width:1;stroke-dasharray:3 3}
.range{stroke:var(--muted);stroke-width:1.5}.dot{fill:var(--muted)}.hollow{fill:var(--paper);stroke:var(--muted);stroke-width:1.5}
.front{fill:none;stroke:var(--accent);stroke-width:1.5;stroke-linejoin:round}
.best .range{stroke:var(--accent)}.best .dot{fill:var(--accent)}.best .hollow{stroke:var(--accent)}
.best .name{font-weight:600}
""".strip().replace("\n", "")


class Point(NamedTuple):
    """A method's cost and score, the latter as a share with its interval."""

    name: str
    cost: float
    score: float
    low: float
    high: float
    ranked: bool
    link: str = ""  # relative, made by the site; empty in a file


def points(content: Mapping[str, Any], cost: str, links: Mapping[str, str] | None = None) -> list[Point]:
    """The entries of a board's `table.json` that have both a gap recovered and this cost, cheapest first."""
    found = []
    for entry in content["entries"]:
        gap, spent = gap_of(entry), entry["costs"].get(cost)
        if gap is None or spent is None:
            continue
        name = entry["method"] + (f" ({entry['setting']})" if entry["setting"] else "")
        low, high = (gap["mean"] if gap[end] is None else gap[end] for end in ("low", "high"))
        found.append(Point(name, spent, gap["mean"], low, high, entry["rank"] is not None,
                           (links or {}).get(entry["method"], "")))
    return sorted(found, key=lambda point: (point.cost, -point.score, point.name))


def gap_of(entry: Mapping[str, Any]) -> Mapping[str, float] | None:
    """What a board's entry recovers of the gap: by what it is ranked, or else the mean over modes, if it has one."""
    found: Mapping[str, float] | None = entry["ranked_by"] or entry.get("gap_recovered", {}).get("mean")
    return found


def pareto_front(of: Sequence[Point]) -> list[Point]:
    """The points that no other beats: none is as cheap and better, or as good and cheaper."""
    front: list[Point] = []
    for point in sorted(of, key=lambda point: (point.cost, -point.score)):
        if not front or point.score > front[-1].score or (point.cost, point.score) == (front[-1].cost, front[-1].score):
            front.append(point)
    return front


def pareto(of: Sequence[Point], cost: str) -> str:
    """Score against one cost, with the Pareto front; "" when no two points differ in that cost."""
    body = _panel(of, cost)
    if not body:
        return ""
    label = f"Gap recovered against {COST_NAMES[cost]}; on the Pareto front: " + ", ".join(
        point.name for point in pareto_front(of))
    return (f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{text(label)}">{body}</svg>')


def figure(title: str, content: Mapping[str, Any]) -> str:
    """One SVG file: score against every cost in which the entries of a board differ."""
    panels = [body for cost in COST_NAMES if (body := _panel(points(content, cost), cost))]
    rows = max(1, (len(panels) + 1) // 2)
    size = 2 * WIDTH if len(panels) > 1 else WIDTH, rows * HEIGHT + 36
    placed = "".join(f'<g transform="translate({index % 2 * WIDTH},{36 + index // 2 * HEIGHT})">{body}</g>'
                     for index, body in enumerate(panels))
    none = "" if panels else '<text x="16" y="64">No two methods can be compared yet.</text>'
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" '
            f'height="{size[1]}" role="img"><title>{text(title)}: gap recovered against cost</title>'
            f'<style>{STYLE}</style><rect class="back" width="{size[0]}" height="{size[1]}"/>'
            f'<text class="head" x="16" y="24">{text(title)}</text>{placed}{none}</svg>\n')


def text(value: str) -> str:
    """A stranger's text in XML: escaped, and without what XML forbids or what turns the direction of reading."""
    return html.escape(_NOT_XML.sub("\ufffd", value), quote=True)


# ------------------------------------------------------------------------------------------------------- score and cost


def _panel(of: Sequence[Point], cost: str) -> str:
    if len({point.cost for point in of}) < 2:
        return ""
    x = cost_axis([point.cost for point in of], LEFT + 8, WIDTH - RIGHT - 8)
    bounds = [value for point in of for value in (point.low, point.high)]
    shown = [min(max(value, -0.5), 1.5) for value in bounds]  # one hopeless method must not flatten the others
    y = score_axis([*shown, *(point.score for point in of if -1 < point.score < 2)], HEIGHT - BOTTOM, TOP)
    front = pareto_front(of)
    names = _labels(of, front, x, y)
    marks = "".join(_mark(point, x, y, names.get(point, ""), point in front) for point in of)
    return _frame(x, y, cost) + _front(front, x, y) + marks


def _frame(x: Axis, y: Axis, cost: str) -> str:
    """Title, grid, ticks, and the lines of the student before and of the teacher."""
    name = COST_NAMES[cost]
    lines = [f'<text class="title" x="{LEFT}" y="16">{name[0].upper()}{name[1:]}</text>'
             f'<text x="{WIDTH - RIGHT}" y="16" text-anchor="end">gap recovered, %</text>']
    for tick in y.ticks:
        at = f"{y.at(tick):.1f}"
        style = "bound" if tick in (0.0, 1.0) else "grid"
        lines.append(f'<line class="{style}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>'
                     f'<text x="{LEFT - 8}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{100 * tick:.3g}</text>')
    for tick in x.ticks:
        lines.append(f'<text x="{x.at(tick):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{short(tick)}</text>')
    bottom = HEIGHT - BOTTOM
    lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    if x.log:
        lines.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 6}" text-anchor="end">logarithmic</text>')
    return "".join(lines)


def _front(front: Sequence[Point], x: Axis, y: Axis) -> str:
    """A staircase: what one gets for a cost is the best of what costs no more."""
    path = f"M{x.at(front[0].cost):.1f} {y.at(front[0].score):.1f}" + "".join(
        f"H{x.at(point.cost):.1f}V{y.at(point.score):.1f}" for point in front[1:])
    return f'<path class="front" d="{path}H{WIDTH - RIGHT}"/>'


def _mark(point: Point, x: Axis, y: Axis, label: str, best: bool) -> str:
    left, middle = f"{x.at(point.cost):.1f}", f"{y.at(point.score):.1f}"
    words = (f"{point.name}: {100 * point.score:.1f}% ({100 * point.low:.1f} to {100 * point.high:.1f}) at "
             f"{point.cost:,.4g}" + ("" if point.ranked else ", not ranked"))
    shape = (f'<title>{text(words)}</title><line class="range" x1="{left}" x2="{left}" y1="{y.at(point.low):.1f}" '
             f'y2="{y.at(point.high):.1f}"/><circle class="{"dot" if point.ranked else "hollow"}" cx="{left}" '
             f'cy="{middle}" r="4.5"/>{label}')
    if point.link:
        shape = f'<a href="{text(point.link)}" aria-label="{text(words)}">{shape}</a>'
    return f'<g class="{"best" if best else "point"}">{shape}</g>'


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (self.left < other.right and other.left < self.right and self.top < other.bottom
                and other.top < self.bottom)


def _labels(of: Sequence[Point], front: Sequence[Point], x: Axis, y: Axis) -> dict[Point, str]:
    """Names beside their points, those of the front first; a name that finds no room is left to the tooltip."""
    taken = [_Box(x.at(p.cost) - 5, y.at(p.score) - 5, x.at(p.cost) + 5, y.at(p.score) + 5) for p in of]
    labels: dict[Point, str] = {}
    for point in [*front, *(point for point in of if point not in front)]:
        name = point.name if len(point.name) <= 24 else point.name[:23] + "…"
        width = _LETTER * len(name)
        places = _places(x.at(point.cost), y.at(point.score), width)
        for left, base, anchor in places[::-1] if point in front else places:
            box = _Box(left, base - _LINE + 3, left + width, base + 3)
            inside = (box.left >= LEFT and box.right <= WIDTH and box.top >= TOP - 8
                      and box.bottom <= HEIGHT - BOTTOM)
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                at = {"start": left, "end": left + width, "middle": left + width / 2}[anchor]
                labels[point] = (f'<text class="name" x="{at:.1f}" y="{base:.1f}" text-anchor="{anchor}">'
                                 f'{text(name)}</text>')
                break
    return labels


def _places(x: float, y: float, width: float) -> list[tuple[float, float, str]]:
    """Left edge, base line and anchor of a name around its point; above the line of the front last."""
    return [(x + 9, y + 4, "start"), (x + 6, y + 16, "start"), (x - 6 - width, y + 16, "end"),
            (x - 9 - width, y + 4, "end"), (x + 6, y - 8, "start"), (x - 6 - width, y - 8, "end")]


# ------------------------------------------------------------------------------------------------ intervals and curves


def interval_bar(interval: Mapping[str, float | None], low: float, high: float, width: int = 150) -> str:
    """A mean and its interval on an axis from `low` to `high`, with marks at 0 and 1; for beside the number."""
    mean = interval["mean"]
    if mean is None:
        return ""
    axis = Axis(low, high, 6, width - 6, False, ())
    ends = [mean if interval[end] is None else interval[end] for end in ("low", "high")]
    first, last = (f"{axis.at(float(end or 0.0)):.1f}" for end in ends)
    bounds = "".join(f'<line class="bound" x1="{axis.at(mark):.1f}" x2="{axis.at(mark):.1f}" y1="1" y2="17"/>'
                     for mark in (0.0, 1.0) if low <= mark <= high)
    return (f'<svg class="bar" viewBox="0 0 {width} 18" width="{width}" height="18" aria-hidden="true">{bounds}'
            f'<line class="range" x1="{first}" x2="{last}" y1="9" y2="9"/>'
            f'<circle class="dot" cx="{axis.at(mean):.1f}" cy="9" r="4"/></svg>')


def span(intervals: Sequence[Mapping[str, float | None]]) -> tuple[float, float]:
    """The axis that a column of bars shares: from 0 to 1, and beyond as far as there are values, within reason."""
    values = [value for interval in intervals for value in interval.values() if value is not None]
    return max(min([0.0, *values]), -0.5) - 0.03, min(max([1.0, *values]), 1.5) + 0.03


CURVE_WIDTH, CURVE_HEIGHT = 240, 112
_CURVE_LEFT, _CURVE_TOP, _CURVE_BOTTOM = 46, 24, CURVE_HEIGHT - 18


def curves(step_p: Sequence[float], value_dp: Sequence[Sequence[float]], names: Sequence[str]) -> list[str]:
    """One small chart for every diagnostic over training: its line, its range, its last value.

    Args:
        step_p: steps, ascending; at least two different ones.
        value_dp: a row for every diagnostic; a point that is NaN is left out of its line.
    """
    charts = []
    across = _across(tuple(step_p))
    for name, value_p in zip(names, value_dp, strict=True):
        if all(map(math.isfinite, value_p)):
            charts.append(_curve(name, value_p, *across))
        elif len(there := [pair for pair in zip(step_p, value_p, strict=True) if math.isfinite(pair[1])]) > 1:
            steps, values = zip(*there, strict=True)
            charts.append(_curve(name, values, *_across(steps)))
    return charts


@lru_cache(maxsize=256)  # runs of one budget are looked at at the same steps
def _across(step_p: Sequence[float]) -> tuple[str, str]:
    """Of every chart over these steps: the points of the line, with places for their heights; and what stands below."""
    right, (first, last) = CURVE_WIDTH - 6, (step_p[0], step_p[-1])
    x_p = [round(_CURVE_LEFT + (right - _CURVE_LEFT) * (step - first) / (last - first)) for step in step_p]
    return (" ".join([f"{x} %d" for x in x_p]),
            f'<text x="{_CURVE_LEFT}" y="{CURVE_HEIGHT - 3}">{first:g}</text><text x="{right}" '
            f'y="{CURVE_HEIGHT - 3}" text-anchor="end">step {last:g}</text>')


@lru_cache(maxsize=1024)  # a folder's records have the same diagnostics
def _label(name: str) -> str:
    return text(name.replace("_", " "))


def _curve(name: str, value_p: Sequence[float], points: str, foot: str) -> str:
    """Heights are in tenths of a pixel, since whole ones would show as steps."""
    low, high = min(value_p), max(value_p)
    foot_y, scale = 10 * _CURVE_BOTTOM, 10 * (_CURVE_TOP - _CURVE_BOTTOM) / (high - low if high > low else math.inf)
    line = points % tuple([round(foot_y + scale * (value - low)) for value in value_p])
    ends = ((low, _CURVE_BOTTOM), (high, _CURVE_TOP)) if high > low else ((low, _CURVE_BOTTOM),)
    grid = "".join([f'<line class="grid" x1="{_CURVE_LEFT}" x2="{CURVE_WIDTH - 6}" y1="{y}" y2="{y}"/>'
                    f'<text x="{_CURVE_LEFT - 4}" y="{y + 4}" text-anchor="end">{short(end)}</text>'
                    for end, y in ends])
    label = _label(name)
    return (f'<svg class="curve" viewBox="0 0 {CURVE_WIDTH} {CURVE_HEIGHT}" role="img" aria-label="{label}: from '
            f'{value_p[0]:.3g} to {value_p[-1]:.3g}"><text class="title" x="{_CURVE_LEFT}" y="13">{label}</text>'
            f'<text x="{CURVE_WIDTH - 6}" y="13" text-anchor="end">{value_p[-1]:.3g}</text>{grid}{foot}'
            f'<polyline class="front" transform="scale(1 .1)" vector-effect="non-scaling-stroke" points="{line}"/>'
            '</svg>')
