"""One record as text: what it scored, what it cost, where it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opdbench.schema.record import Record, Score
from opdbench.text import fields, table

_PHASES = ("before", "after", "teacher")
_CURVE = ("loss", "reverse_kl", "forward_kl", "entropy", "length", "truncated")


def summary(record: Record, place: str) -> str:
    """The table that ends a run."""
    recipe = record.recipe
    head = f"{recipe.method} on {recipe.task}, seed {recipe.seed}: {record.status}"
    if record.reason:
        head += f" ({record.reason})"
    return "\n\n".join(part for part in (head, _scores(record), fields(_facts(record, place))) if part)


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
        "oom": "hold less at one time, with --set "
               f"micro_batch={max(1, execution.micro_batch // 2)} --set row_chunk={max(1, execution.row_chunk // 2)}",
    }.get(record.status, "type the same command again")


def _scores(record: Record) -> str:
    modes = list(record.before) or list(record.after)
    rows = [[phase, *(_cell(getattr(record, phase).get(mode)) for mode in modes)] for phase in _PHASES
            if getattr(record, phase)]
    if record.gap_recovered:
        rows.append(["gap recovered", *(_gap(record.gap_recovered.get(mode)) for mode in modes)])
    if not rows:
        return ""
    metric = record.before[modes[0]].metric if record.before else ""
    return table([metric, *(f"{mode} (95% interval)" for mode in modes)], rows)


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    if score.interval == "wilson":
        return f"{100 * score.mean:5.1f}%  ({100 * score.low:.1f} to {100 * score.high:.1f}, n={score.n})"
    return f"{score.mean:7.1f}  ({score.low:.1f} to {score.high:.1f}, n={score.n})"


def _facts(record: Record, place: str) -> Iterator[tuple[str, str]]:
    ledger = record.ledger
    if ledger:
        yield "training", (f"{ledger['steps']} steps, {ledger['updates']} updates, {ledger['seconds']:.1f} s "
                           f"({ledger['cpu_seconds']:.1f} CPU-s), peak memory {ledger['peak_memory_bytes'] / 2**20:.0f} MiB")
        yield "sampled", (f"{ledger['student_tokens']:,} tokens or steps by the student, "
                          f"{ledger['teacher_tokens']:,} by the teacher")
        yield "teacher scored", f"{ledger['teacher_scored']:,} states"
        yield "compute", ", ".join([f"{ledger['total_flops']:.3g} FLOPs", *(
            f"{part.replace('_', ' ')} {flops / ledger['total_flops']:.0%}" for part, flops in ledger["flops"].items())])
    if record.curve:
        last = record.curve[-1]
        yield "last step", ", ".join(f"{name} {last[name]:.4g}" for name in _CURVE if name in last)
    yield "total time", f"{record.times.total_seconds:.1f} s, evaluation included"
    yield "record", place


def _gap(value: float | None) -> str:
    return "    -   (the teacher is not measurably better than before)" if value is None else f"{100 * value:5.1f}%"
