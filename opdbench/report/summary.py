"""One record as text: what it scored, what it cost, where it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from opdbench.schema.record import NORMALISED, Record, Score
from opdbench.stats.aggregate import geometric_mean
from opdbench.text import fields, percent, table

_PHASES = ("before", "after", "teacher")
_BARS = "▁▂▃▄▅▆▇█"
_TRAINING = {"steps", "updates", "seconds", "cpu_seconds", "peak_memory_bytes", "student_tokens", "teacher_tokens",
             "teacher_scored", "total_flops", "flops"}  # what a ledger says when training has begun
_CURVE = ("loss", "reverse_kl", "forward_kl", "entropy", "length", "truncated")


def summary(record: Record, place: str) -> str:
    """The table that ends a run."""
    recipe = record.recipe
    head = f"{recipe.method} on {recipe.task}, seed {recipe.seed}: {record.status}"
    if record.reason:
        head += f" ({record.reason})"
    parts = (head, _scores(record), _games(record) or _further(record), fields(_facts(record, place)))
    return "\n\n".join(part for part in parts if part)


def details(record: Record) -> str:
    """What was asked, on what it was computed, and what lies beside the record: all that a stranger needs to repeat
    or to doubt it."""
    return "\n\n".join([fields(_asked(record)), fields(_computed(record)), fields(_left_behind(record))])


def as_json(record: Record, place: str) -> dict[str, Any]:
    """What `run --json` prints: the figures that a program asks for first, by mode."""
    return {
        "status": record.status, "reason": record.reason, "record": place, "id": record.id,
        **{phase: {mode: score.model_dump() for mode, score in getattr(record, phase).items()} for phase in _PHASES},
        "gap_recovered": record.gap_recovered, "ledger": record.ledger, "stopped_by": record.stopped_by,
    }


def advice(record: Record, place: str) -> str:
    """What to type next."""
    recipe, execution = record.recipe, record.execution
    return {
        "completed": f"opdbench show {place}",
        "cancelled": "type the same command again: it goes on from the last checkpoint",
        "diverged": f"take smaller steps, with --set lr={recipe.training.lr / 10:.3g}",
        "oom": f"hold less at one time, with --set micro_batch={max(1, execution.micro_batch // 2)} "
               f"--set logit_chunk={max(1, execution.logit_chunk // 2)}",
    }.get(record.status, "type the same command again")


def _scores(record: Record) -> str:
    modes = list(record.before) or list(record.after)
    phases = {phase: scores for phase in _PHASES if (scores := getattr(record, phase))}
    # Returns of a few episodes can be all 0 or 1 by chance, and are no shares because of that.
    shares = all(score.interval == "wilson" for scores in phases.values() for score in scores.values())
    rows = [[phase, *(_cell(scores.get(mode), shares) for mode in modes)] for phase, scores in phases.items()]
    if record.gap_recovered:
        rows.append(["gap recovered", *(_gap(record.gap_recovered.get(mode)) for mode in modes)])
    if not rows:
        return ""
    metric = record.before[modes[0]].metric if record.before else ""
    return table([metric, *(f"{mode} (95% interval)" for mode in modes)], rows)


def _games(record: Record) -> str:
    """Of a task that is several games: each one's mean return, and what part of its teacher's gap and score was reached
    (greedy), with the geometric mean of the latter as Rusu et al. 2016 have it, where returns are positive."""
    phases = [score for phase in _PHASES if (score := getattr(record, phase).get("greedy")) is not None]
    if len(phases) < len(_PHASES) or phases[0].metric != NORMALISED:
        return ""
    rows, shares = [], list[float]()
    for game in phases[0].extra:
        before, after, teacher = (score.extra[game] for score in phases)
        gap = percent((after - before) / (teacher - before)) if teacher > before else "-"
        shares.append(after / teacher if min(after, teacher) > 0 else 0.0)
        rows.append([game, f"{before:.1f}", f"{after:.1f}", f"{teacher:.1f}", gap,
                     percent(shares[-1]) if shares[-1] else "-"])
    if all(shares):
        rows.append(["geometric mean", "", "", "", "", percent(geometric_mean(shares))])
    return table(["return", *_PHASES, "gap recovered", "of the teacher's"], rows)


def _further(record: Record) -> str:
    """What else episodes or completions were scored by, as means: one row for each such score and mode."""
    phases = {phase: scores for phase in _PHASES if (scores := getattr(record, phase))}
    names = dict.fromkeys((name, mode) for scores in phases.values() for mode, score in scores.items()
                          for name in score.extra)
    rows = [[f"{name.replace('_', ' ')}, {mode}", *(_plain(scores.get(mode), name) for scores in phases.values())]
            for name, mode in names]
    return table(["also", *phases], rows) if rows else ""


def _plain(score: Score | None, name: str) -> str:
    return f"{score.extra[name]:.4g}" if score is not None and name in score.extra else "-"


def _cell(score: Score | None, share: bool) -> str:
    if score is None:
        return "-"
    if share:
        return f"{100 * score.mean:5.1f}%  ({100 * score.low:.1f} to {100 * score.high:.1f}, n={score.n})"
    return f"{score.mean:7.1f}  ({score.low:.1f} to {score.high:.1f}, n={score.n})"


def _facts(record: Record, place: str) -> Iterator[tuple[str, str]]:
    ledger = record.ledger
    if ledger.keys() >= _TRAINING:
        yield "training", (f"{ledger['steps']} steps, {ledger['updates']} updates, {ledger['seconds']:.1f} s "
                           f"({ledger['cpu_seconds']:.1f} CPU-s), "
                           f"peak memory {ledger['peak_memory_bytes'] / 2**20:,.0f} MiB")
        yield "sampled", (f"{ledger['student_tokens']:,} tokens or steps by the student, "
                          f"{ledger['teacher_tokens']:,} by the teacher")
        cached = ledger.get("teacher_cached", 0)
        yield "teacher scored", (f"{ledger['teacher_scored']:,} states"
                                 + (f"; {cached:,} more were read from the cache, asking nobody" if cached else ""))
        total = ledger["total_flops"]
        shares = [f"{part.replace('_', ' ')} {flops / total:.0%}" for part, flops in ledger["flops"].items() if total]
        yield "compute", ", ".join([f"{total:.3g} FLOPs", *shares])
    if record.curve:
        last = record.curve[-1]
        yield from _probes(record)
        yield "last step", ", ".join(f"{name} {last[name]:.4g}" for name in _CURVE if name in last)
    yield "total time", f"{record.times.total_seconds:.1f} s, evaluation included"
    yield "record", place


def _asked(record: Record) -> Iterator[tuple[str, str]]:
    recipe = record.recipe
    yield "command", record.command
    yield "method", f"{recipe.method}: {_settings(recipe.params)}" if recipe.params else recipe.method
    yield "task", recipe.task + (f": {_settings(recipe.task_params)}" if recipe.task_params else "")
    for role in ("teacher", "student"):
        model = getattr(recipe, role)
        yield role, f"{model.reference} (sha256 {model.sha256[:12]})" if model else "none"
    reached = f" (ended by {record.stopped_by})" if record.stopped_by else ""
    yield "budget", _settings(recipe.budget.limits()) + reached
    yield "training", _settings(recipe.training.model_dump())
    yield "evaluation", _settings(recipe.evaluation.model_dump())
    yield "recipe", f"sha256 {record.recipe_sha256}"


def _computed(record: Record) -> Iterator[tuple[str, str]]:
    machine, software = record.hardware, record.provenance
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']:.0f} GiB)" for gpu in machine.get("gpus", []))
    yield "profile", _settings(record.execution.model_dump())
    yield "machine", (f"{machine.get('cpu')}, {machine.get('cores')} cores, {gpus or 'no GPU'}, "
                      f"{machine.get('platform')}")
    changed = " with uncommitted changes" if software.get("dirty") else ""
    commit = f"commit {software['commit'][:12]}{changed}, " if software.get("commit") else ""
    packages = ", ".join(f"{name} {version}" for name, version in software.get("packages", {}).items())
    yield "software", f"{commit}Python {software.get('python')}, {packages}"
    resumed = f", continued {record.times.resumed} times from a checkpoint" if record.times.resumed else ""
    sitting = f", sitting {record.times.sitting}" if record.times.sitting else ""
    yield "when", f"{record.times.started} to {record.times.finished or '(not finished)'}{resumed}{sitting}"


def _left_behind(record: Record) -> Iterator[tuple[str, str]]:
    yield "validation", ", ".join(f"{point['score']:.4g} at step {point['step']:g}" for point in record.validation
                                  if "score" in point and "step" in point)
    yield "raw outcomes", ", ".join(f"{file.file} ({file.n})" for file in record.outcomes.values())


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _probes(record: Record) -> Iterator[tuple[str, str]]:
    """What each probe saw: every figure from its first look to its last, with a line for its course."""
    for name, seen in record.probes.items():
        figures = dict.fromkeys(key for entry in seen["series"] for key in entry if key != "step")
        for figure in figures:
            course = [entry[figure] for entry in seen["series"] if figure in entry]
            yield f"{name} {figure}".replace("_", " "), f"{course[0]:.4g} to {course[-1]:.4g}  {sparkline(course)}"
        for figure, value in seen.items():
            if isinstance(value, float):
                yield figure.replace("_", " "), f"{value:.4g}"


def sparkline(values: Sequence[float]) -> str:
    """A course in one line of bars, from its lowest to its highest value."""
    low, high = min(values), max(values)
    height = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((value - low) * height)] for value in values)


def _gap(value: float | None) -> str:
    return "    -   (teacher not above before)" if value is None else f"{100 * value:5.1f}%"


def over_seeds(records: Sequence[Record]) -> str:
    """One row a seed and mode: before, after, teacher, gap recovered; then the mean over the seeds that completed.

    The mean has no interval: one that is honest about seeds and problems needs both levels, and belongs to a board.
    """
    completed = [record for record in records if record.status == "completed"]
    rows = [[str(record.recipe.seed), record.status, mode, *_line(record, mode)]
            for record in records for mode in (list(record.after) or ["-"])]
    for mode in completed[0].after if len(completed) > 1 else ():
        after = [record.after[mode].mean for record in completed]
        rows.append(["mean", f"{len(completed)} completed", mode, "", f"{fmean(after):.4g}", "", ""])
    return table(["seed", "status", "mode", "before", "after", "teacher", "gap recovered"], rows)


def _line(record: Record, mode: str) -> list[str]:
    scores = [phase.get(mode) for phase in (record.before, record.after, record.teacher)]
    gap = record.gap_recovered.get(mode)
    return [*("-" if score is None else f"{score.mean:.4g}" for score in scores), "-" if gap is None else percent(gap)]
