"""The page of a record, and the line that stands for it on other pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from operator import lt
from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from opdbench.errors import UserError
from opdbench.report.charts import curves, interval_bar
from opdbench.report.runs import Run, changed, read_run, setting_of
from opdbench.schema.record import Record
from opdbench.site.inventory import Standing, written
from opdbench.site.pages import Page, amount, percent, record_path, render, safe, terms
from opdbench.site.play import play_file
from opdbench.site.prompts import prompts_of
from opdbench.site.samples import Sample, samples
from opdbench.store import RECORD

PHASES = ("before", "after", "teacher")
_FIRST = ("loss", "reverse_kl", "forward_kl", "entropy", "agreement", "reward", "length", "truncated",
          "teacher_entropy")
_CURVES, _POINTS = 9, 60  # at most, on one page
_COSTS = {
    "steps": "steps", "updates": "optimizer steps", "student_tokens": "tokens or steps by the student",
    "teacher_tokens": "tokens or steps by the teacher", "teacher_scored": "states scored by the teacher",
    "trained_rows": "states trained on", "total_flops": "FLOPs", "seconds": "seconds of training",
    "cpu_seconds": "CPU seconds of training"}


class Located(NamedTuple):
    """A run's folder, and its name relative to the results folder."""

    folder: Path
    parts: tuple[str, ...]


class Summary(NamedTuple):
    """What other pages say of a record."""

    path: str
    task: str
    method: str
    setting: str  # digest
    changed: str
    seed: int
    status: str
    reason: str
    gap: float | None  # mean over modes


class Unread(NamedTuple):
    """A record that cannot be read, and why."""

    place: str
    problem: str


class Places(NamedTuple):
    """What the boards say of runs: where settings stand, and which runs they refused."""

    standings: Mapping[tuple[str, str], Sequence[Standing]]
    refused: Mapping[tuple[str, str, int], str]
    has_papers: bool


def record_page(located: Located, places: Places) -> tuple[list[Page], Summary] | Unread:
    """The page of one record, with the GIF that it shows, if there is one."""
    try:
        run = read_run(located.folder / RECORD)
    except UserError as error:
        # Without the folder's own place, so that a site is the same wherever its records lie.
        return Unread("/".join(located.parts), error.problem.replace(str(located.folder), "the folder"))
    record = run.record
    summary = _summary(located, run, places)
    standings = [standing for standing in places.standings.get((summary.method, summary.setting), ())
                 if record.recipe.seed in standing.member.content["seeds"]]
    film, shown = play_file(located.folder, summary.path), samples(located.folder, record.outcomes)
    page = render("record.html", summary.path, f"{summary.method} on {summary.task}, seed {summary.seed}",
                  has_papers=places.has_papers, record=record, run=summary, standings=standings,
                  trust=run.trust, metric=_metric(record), scores=_scores(record),
                  costs=terms(_costs(record.ledger)), charts=Markup("".join(_charts(record))),
                  probes=list(_probes(record)),
                  settings=list(_settings(record)), computed=terms(_computed(record)),
                  samples=_samples(shown, prompts_of(record.recipe) if shown else {}), film=film)
    return [page] if film is None else [page, film.page], summary


def _summary(located: Located, run: Run, places: Places) -> Summary:
    record = run.record
    setting, method = setting_of(record), written(record.recipe.method)
    problem = run.problem or places.refused.get((method, setting.digest, record.recipe.seed))
    gaps = [gap for gap in record.gap_recovered.values() if gap is not None]
    return Summary(
        record_path(located.parts), record.recipe.task, method, setting.digest,
        ", ".join(f"{name}={value}" for name, value in changed(record).items()), record.recipe.seed,
        "refused" if problem else record.status, problem or record.reason or "",
        sum(gaps) / len(gaps) if gaps and len(gaps) == len(record.after) else None)


def _metric(record: Record) -> str:
    return next((score.metric for score in record.before.values()), "")


def _scores(record: Record) -> Markup:
    """By mode, a row for every phase, its interval drawn on an axis that they share."""
    return Markup("".join([_mode(record, mode) for mode in (record.after or record.before)]))


def _mode(record: Record, mode: str) -> str:
    there = [(phase, score) for phase in PHASES if (score := getattr(record, phase).get(mode)) is not None]
    share = all(score.low >= 0 and score.high <= 1 for _, score in there)
    low = 0.0 if share else min(score.low for _, score in there)
    size = 1.0 if share else max(score.high for _, score in there) - low or 1.0
    gap = record.gap_recovered.get(mode)
    note = "" if gap is None else f"<small>gap recovered {percent(gap)}%</small>"
    head = f'<th scope="rowgroup" rowspan="{len(there)}">{safe(mode)}{note}</th>'
    rows = [f'<tr>{"" if index else head}<th scope="row">{phase}</th>'
            f'{_score((score.mean, score.low, score.high), score.n, score.length, score.truncated, low, size)}</tr>\n'
            for index, (phase, score) in enumerate(there)]
    return f"<tbody>{''.join(rows)}</tbody>\n"


@lru_cache(maxsize=512)  # what stood before training, and the teacher, score the same in many runs
def _score(interval: tuple[float, float, float], n: int, length: float, truncated: float, origin: float, size: float
           ) -> str:
    """Cells for a score whose axis begins at `origin` and is `size` long; from 0 to 1 it is a share."""
    bar = interval_bar(dict(zip(("mean", "low", "high"), [(value - origin) / size for value in interval], strict=True)),
                       -0.03, 1.03)
    mean, low, high = ((f"{100 * value:.1f}" for value in interval) if (origin, size) == (0.0, 1.0) else
                       (f"{value:.4g}" for value in interval))
    words = f"<b>{mean}{'%' if (origin, size) == (0.0, 1.0) else ''}</b> <small>{low} to {high}</small>"
    return (f'<td><span class="with-bar">{bar}<span>{words}</span></span></td><td class="number">{n}</td>'
            f'<td class="number">{length:.1f}</td><td class="number">{100 * truncated:.1f}</td>')


_WRITERS = {"before": "student before", "after": "student after", "teacher": "teacher"}


def _samples(found: Sequence[Sample], prompts: Mapping[str, str]) -> Markup:
    """Problems one below the other, with the texts of all writers side by side."""
    return Markup("".join([
        f'<section class="sample"><h3>{safe(sample.id)}</h3>{_prompt(prompts.get(sample.id))}<div class="beside">'
        + "".join([
            f'<figure><figcaption>{_WRITERS[phase]} <span class="soft">scores {output.score:.3g}</span></figcaption>'
            f'<pre tabindex="0">{safe(output.text)}</pre></figure>\n'
            for phase in PHASES if (output := sample.outputs.get(phase))]) + "</div></section>\n"
        for sample in found]))


def _prompt(text: str | None) -> str:
    return "" if text is None else (
        f'<figure class="prompt"><figcaption>prompt</figcaption><pre tabindex="0">{safe(text)}</pre></figure>\n')


def _costs(ledger: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, label in _COSTS.items():
        if isinstance(value := ledger.get(name), int | float):
            yield label, amount(value)
    if isinstance(memory := ledger.get("peak_memory_bytes"), int | float):
        yield "peak memory, MiB", amount(round(memory / 2**20))
    yield "FLOPs go to", ", ".join(f"{name} {share:.1%}" for name, share in _shares(ledger))


def _shares(ledger: Mapping[str, Any]) -> list[tuple[str, float]]:
    """How the FLOPs divide, largest first."""
    parts, total = ledger.get("flops"), ledger.get("total_flops")
    if not isinstance(parts, dict) or not total:
        return []
    return sorted(((name.replace("_", " "), flops / total) for name, flops in parts.items()), key=lambda part: -part[1])


def _charts(record: Record) -> list[str]:
    """Validation scores, then the diagnostics, those first that every method has."""
    names = _ordered(frozenset[str]().union(*record.curve))
    return [*_drawn(record.validation, ["score"]), *_drawn(record.curve, names[:_CURVES])]


@lru_cache(maxsize=1024)  # a method's runs have the same diagnostics
def _ordered(names: frozenset[str]) -> list[str]:
    return sorted(names - {"step"}, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))


def _probes(record: Record) -> Iterator[tuple[str, Markup]]:
    """By probe, what it saw by step; what is no series of numbers is left out."""
    for name, seen in record.probes.items():
        series = seen.get("series")
        points = [point for point in (series if isinstance(series, list) else []) if isinstance(point, dict)
                  and all(isinstance(value, int | float) for value in point.values())]
        if drawn := _drawn(points, sorted(set[str]().union(*points) - {"step"})[:_CURVES]):
            yield name.replace("-", " "), Markup("".join(drawn))


def _drawn(points: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[str]:
    points = points[::math.ceil(len(points) / _POINTS)] if len(points) > _POINTS else points
    steps = [point.get("step", math.nan) for point in points]
    if not names or len(steps) < 2 or not all(map(lt, steps, steps[1:])):
        return []
    labels = ["validation score" if name == "score" else name for name in names]
    return curves(steps, [[point.get(name, math.nan) for point in points] for name in names], labels)


def _settings(record: Record) -> Iterator[tuple[str, Markup]]:
    """By section, a row for every value, with who set it where it is not a default."""
    recipe, origins = record.recipe, record.origins
    sections = (("method", recipe.params), ("training", recipe.training), ("task", recipe.task_params),
                ("evaluation", recipe.evaluation), ("execution", record.execution))
    yield "budget", Markup("".join([_row(axis, amount(limit), origins.get("budget", ""))
                                    for axis, limit in recipe.budget.limits().items()]))
    asked = tuple(origins.items())
    for section, values in sections:
        if written := tuple([(name, "–" if value is None else str(value)) for name, value in dict(values).items()]):
            yield section, _section(section, written, asked)


@lru_cache(maxsize=1024)  # most runs leave most sections as they are
def _section(section: str, values: Sequence[tuple[str, str]], origins: Sequence[tuple[str, str]]) -> Markup:
    by = dict(origins)
    return Markup("".join([_row(name, value, by.get(f"{section}.{name}", "")) for name, value in values]))


def _row(name: str, value: str, origin: str) -> str:
    asked = ' class="asked"' if origin == "user" or origin.startswith("preset ") else ""
    by = f" <small>{safe(origin)}</small>" if origin and not origin.startswith("profile ") else ""
    return f'<tr{asked}><th scope="row">{safe(name)}</th><td>{safe(value)}{by}</td></tr>'


def _computed(record: Record) -> Iterator[tuple[str, str]]:
    machine, software, times = record.hardware, record.provenance, record.times
    for role in ("teacher", "student"):
        model = getattr(record.recipe, role)
        yield role, f"{model.reference}, sha256 {model.sha256[:12]}" if model else "none"
    memory = machine.get("memory_gib")
    yield "machine", ", ".join(filter(None, [
        str(machine.get("cpu") or ""), f"{machine.get('cores', '?')} cores",
        f"{memory:.0f} GiB" if isinstance(memory, int | float) else "", str(machine.get("platform") or "")]))
    if gpus := machine.get("gpus"):
        yield "accelerators", ", ".join(str(gpu.get("name")) for gpu in gpus)
    if software.get("commit"):
        yield "commit", str(software["commit"])[:12] + (", with uncommitted changes" if software.get("dirty") else "")
    packages = software.get("packages") or {}
    yield "software", ", ".join([f"Python {software.get('python')}", *(f"{name} {version}" for name, version in
                                                                        packages.items())])
    resumed = f", continued {times.resumed} times" if times.resumed else ""
    yield "when", f"{times.started} to {times.finished or '(not finished)'}{resumed}"
    yield "sitting", times.sitting or ""
    yield "recipe", f"sha256 {record.recipe_sha256}"
    for phase, file in record.outcomes.items():
        yield f"outcomes {phase}", f"{file.file}, {file.n} lines, sha256 {file.sha256[:12]}"
