"""The pages about boards, methods, tasks and papers, and the overview."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

from opdbench.report.charts import COST_NAMES, gap_of, interval_bar, pareto, points, span
from opdbench.site.inventory import Board, Method, TaskText, written
from opdbench.site.pages import Page, method_path, render, task_path
from opdbench.site.papers import Paper
from opdbench.site.records import Summary, Unread

ASSETS = ("site.css", "site.js")
MODES = ("greedy", "sampled")


class Site(NamedTuple):
    """Everything that there is to show."""

    boards: Sequence[Board]
    methods: Sequence[Method]
    tasks: Sequence[TaskText]
    papers: Sequence[Paper]
    runs: Sequence[Summary]
    unread: Sequence[Unread]


class Row(NamedTuple):
    """A board's entry with what is drawn of it, and its records by seed."""

    entry: Mapping[str, Any]
    algorithm: str  # the method's name; an entry of a board over several tasks may have a name of its own
    seeds: int
    gap: Mapping[str, float] | None
    bar: str
    runs: Sequence[tuple[str, Sequence[Summary]]]  # by task


class Place(NamedTuple):
    """A row and the board that it is on."""

    board: Board
    row: Row


class Group(NamedTuple):
    """The runs of one setting."""

    task: str
    method: str
    changed: str
    runs: Sequence[Summary]
    gap: float | None  # mean over the runs that have one


Part = Callable[[], Iterable[Page]]


def parts(site: Site) -> list[Part]:
    """Every page but those of the records, in parts of about the same work that can be made at the same time."""
    shared = {"has_papers": bool(site.papers)}
    by_setting = _by_setting(site.runs)
    places = _places(site.boards)
    return [partial(_few_pages, site, places, shared),
            *(partial(_board_pages, board, by_setting, shared) for board in site.boards),
            partial(_method_pages, site, by_setting, places, shared), partial(_task_pages, site, by_setting, shared)]


def _few_pages(site: Site, places: Sequence[Place], shared: Mapping[str, Any]) -> Iterator[Page]:
    for asset in ASSETS:
        yield Page(f"assets/{asset}", files("opdbench.site").joinpath("assets", asset).read_bytes())
    yield _overview(site, places, shared)
    yield render("guide.html", "guide.html", "How to read this", **shared)
    yield from _paper_pages(site.papers, shared)


# -------------------------------------------------------------------------------------------------------------- boards


def _board_pages(board: Board, by_setting: Mapping[tuple[str, str], Sequence[Summary]],
                 shared: Mapping[str, Any]) -> Iterator[Page]:
    found = rows(board, by_setting)
    links = {row.entry["method"]: "../" + method_path(row.algorithm) for row in found}
    charts = [chart for cost in COST_NAMES if (chart := pareto(points(board.content, cost, links), cost))]
    same, varying = _baselines(board, scale := 100.0 if board.content.get("shares") else 1.0)
    yield render("board.html", board.path, board.title, wide=True, board=board, same=same, varying=varying,
                 both=lambda entry, phase: _pair(entry, phase, scale), rules=board.content["rules"],
                 rows=found, charts=charts, several=len(board.tasks) > 1, costs=_costs(board), modes=_modes(board),
                 failed=_failed(board, by_setting), scale=scale, **shared)
    stem = board.path.removesuffix(".html")
    yield from (Page(f"{stem}/{name}", content) for name, content in board.copies.items())


def rows(board: Board, by_setting: Mapping[tuple[str, str], Sequence[Summary]] | None = None) -> list[Row]:
    """The entries in the board's order; intervals are drawn on one axis."""
    entries = board.content["entries"]
    low, high = span([gap for entry in entries if (gap := gap_of(entry))])
    return [_row(board, entry, (low, high), by_setting or {}) for entry in entries]


def _row(board: Board, entry: Mapping[str, Any], ends: tuple[float, float],
         by_setting: Mapping[tuple[str, str], Sequence[Summary]]) -> Row:
    gap, members, seeds = gap_of(entry), board.members(entry), entry["seeds"]
    return Row(entry, members[0].method if members else entry["method"],
               len(seeds) if isinstance(seeds, list) else seeds, gap,
               interval_bar(gap, *ends, width=120) if gap else "",
               [(member.task, [run for run in by_setting.get(member.key, ()) if run.seed in member.content["seeds"]])
                for member in members])


def _costs(board: Board) -> list[str]:
    """The costs that some entry has."""
    return [name for name in ("student_tokens", "teacher_tokens", "teacher_scored", "total_flops", "cpu_seconds")
            if any(entry["costs"].get(name) is not None for entry in board.content["entries"])]


def _modes(board: Board) -> list[str]:
    """The modes of decoding that some entry has a score in; none for a board over several tasks."""
    there = {mode for entry in board.content["entries"] for mode in entry.get("scores", {}).get("after", {})}
    return [mode for mode in MODES if mode in there]


def _baselines(board: Board, scale: float) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The scores of the student before and of the teacher: those that all entries share, and those that differ."""
    same: list[tuple[str, str]] = []
    varying: list[tuple[str, str]] = []
    for phase in ("before", "teacher"):
        found = {_pair(entry, phase, scale) for entry in board.content["entries"]} - {"–"}
        (varying if len(found) > 1 else same).append((phase, "".join(found)))
    return [(phase, scores) for phase, scores in same if scores], varying


def _pair(entry: Mapping[str, Any], phase: str, scale: float) -> str:
    """A phase's scores over the modes."""
    scores = entry.get("scores", {}).get(phase, {}).values()
    return " / ".join(f"{scale * score['mean']:.1f}" for score in scores) or "–"


class Failed(NamedTuple):
    """A run without a score: its entry, how it ended, and its record's line where there is one."""

    method: str
    task: str
    failure: Mapping[str, Any]
    run: Summary | None


def _failed(board: Board, by_setting: Mapping[tuple[str, str], Sequence[Summary]]) -> list[Failed]:
    found = []
    for entry in board.content["entries"]:
        for member in board.members(entry):
            runs = {run.seed: run for run in by_setting.get(member.key, ())}
            found += [Failed(entry["method"], member.task, failure, runs.get(failure["seed"]))
                      for failure in member.content["failed"]]
    return found


def _places(boards: Sequence[Board]) -> list[Place]:
    return [Place(board, row) for board in boards for row in rows(board)]


def _by(places: Sequence[Place], name: Callable[[Place], str]) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for place in places:
        found.setdefault(name(place), []).append(place)
    return found


# -------------------------------------------------------------------------------------------- overview, methods, tasks


def _overview(site: Site, places: Sequence[Place], shared: Mapping[str, Any]) -> Page:
    counts = Counter(run.status for run in site.runs)
    best = {name: {place.board.name: place.row for place in reversed(found)}
            for name, found in _by(places, lambda place: place.row.entry["method"]).items()}
    methods = sorted(best, key=lambda name: (-_order(best[name].values(), len(site.boards)), name))
    return render("index.html", "index.html", "On-policy distillation, compared", methods=methods,
                  boards=[(board, rows(board)) for board in site.boards], best=best, total=len(site.runs),
                  failed=len(site.runs) - counts["completed"],
                  known=len(site.methods), tasks=len({run.task for run in site.runs}), unread=site.unread, **shared)


def _order(found: Iterable[Row], boards: int) -> float:
    """For the order of lines alone: methods on more boards first, by the mean of what they recover."""
    gaps = [row.gap["mean"] for row in found if row.gap]
    return len(gaps) + sum(gaps) / (10 * boards) if gaps else 0.0


def _method_pages(site: Site, by_setting: Mapping[tuple[str, str], Sequence[Summary]], places: Sequence[Place],
                  shared: Mapping[str, Any]) -> Iterator[Page]:
    by_method: dict[str, list[Group]] = {}
    for group in _groups(by_setting.values()):
        by_method.setdefault(group.method, []).append(group)
    stands = _by(places, lambda place: place.row.algorithm)
    yield render("methods.html", "methods.html", "Methods", methods=site.methods, written=written,
                 boards={name: len({place.board.name for place in found}) for name, found in stands.items()}, **shared)
    for method in site.methods:
        name = written(method.name)
        yield render("method.html", method_path(name), name, method=method, places=stands.get(name, []),
                     groups=by_method.get(name, []), **shared)


def _task_pages(site: Site, by_setting: Mapping[tuple[str, str], Sequence[Summary]],
                shared: Mapping[str, Any]) -> Iterator[Page]:
    groups: dict[str, list[Group]] = {}
    for group in _groups(by_setting.values()):
        groups.setdefault(group.task, []).append(group)
    boards: dict[str, list[Board]] = {}
    for board in site.boards:
        for name in board.tasks:
            boards.setdefault(name, []).append(board)
    yield render("tasks.html", "tasks.html", "Tasks", tasks=site.tasks, boards=boards, groups=groups, **shared)
    for task in site.tasks:
        yield render("task.html", task_path(task.id), task.id, task=task, boards=boards.get(task.id, []),
                     rows=rows, groups=groups.get(task.id, []), **shared)


def _paper_pages(papers: Sequence[Paper], shared: Mapping[str, Any]) -> Iterator[Page]:
    if papers:
        yield render("papers.html", "papers.html", "Papers", papers=papers, **shared)
    for paper in papers:
        yield render("paper.html", paper.path, paper.title, paper=paper, **shared)
        stem = paper.path.removesuffix(".html")
        yield from (Page(f"{stem}/{name}", content) for name, content in paper.copies.items())


def _by_setting(runs: Sequence[Summary]) -> dict[tuple[str, str], list[Summary]]:
    found: dict[tuple[str, str], list[Summary]] = {}
    for run in sorted(runs, key=lambda run: (run.task, run.method, run.setting, run.seed, run.path)):
        found.setdefault((run.method, run.setting), []).append(run)
    return found


def _groups(settings: Iterable[Sequence[Summary]]) -> list[Group]:
    found = []
    for runs in settings:
        gaps = [run.gap for run in runs if run.gap is not None and run.status == "completed"]
        mean = sum(gaps) / len(gaps) if gaps else None
        found.append(Group(runs[0].task, runs[0].method, runs[0].changed, runs, mean))
    return found

