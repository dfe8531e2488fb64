"""Times of a timed board: each run's beside that of the reference method, where the two can be compared.

Seconds of different machines, or of one machine on different days, say little about methods. So a run is paired with
the reference's run of the same seed, and the pair counts only if both were made on the same machine, in the same
sitting (`opdbench.sitting`) and with the same execution. An entry's time is the geometric mean of its pairs' ratios; a
run that has no such partner gives no ratio, and says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from opdbench import stats
from opdbench.errors import UserError
from opdbench.report.runs import Run, Setting
from opdbench.report.writing import csv_text, interval, md, number, plain
from opdbench.schema.board import Timed
from opdbench.schema.record import Record

RATIO = "time_ratio"  # the cost of this name in an entry of table.json
UNITS = {"cpu_seconds": "CPU s", "seconds": "wall s"}
SHORTEST, LONGEST = 1e-3, 1e9  # seconds that training can take
GUIDE = (
    "A time is the geometric mean over seeds of ratios to the reference's time, with Student's t interval of their "
    "logarithms. A pair counts if both runs are of one seed, machine and sitting: made by one command, one after the "
    "other.")


class Time(NamedTuple):
    """How long an entry takes to train, beside the reference."""

    ratios: Mapping[int, float]  # by seed
    seconds: Mapping[int, float]  # its own, by the same seeds
    unpaired: Mapping[int, str]  # of the other seeds: why there is no ratio


def times(rule: Timed, groups: Mapping[Setting, Sequence[Run]]) -> dict[Setting, Time]:
    """The times of all settings; runs without a score have none.

    Raises:
        UserError: the board holds the reference in several settings.
    """
    found = [runs for setting, runs in groups.items() if setting.method == rule.reference]
    if len(found) > 1:
        raise UserError(f"{rule.reference}, whose time is 1, is on this board in {len(found)} settings",
                        f"say which counts, with `settings: {{{rule.reference}: {{lr: ...}}}}` in board.yaml")
    beside = {run.seed: run for runs in found for run in sorted(runs, key=lambda run: run.usable)}
    return {setting: _time(rule, runs, beside) for setting, runs in groups.items()}


def together(records: Sequence[Record]) -> bool:
    """Whether the times of these runs can be compared with each other."""
    return all(_untimed(record) is None and _apart(record, records[0]) is None for record in records)


def _time(rule: Timed, runs: Sequence[Run], beside: Mapping[int, Run]) -> Time:
    usable = {run.seed: run.record for run in runs if run.usable}
    found = {seed: _problem(rule, record, beside.get(seed)) for seed, record in usable.items()}
    seconds = {seed: float(usable[seed].ledger[rule.measure]) for seed, problem in found.items() if problem is None}
    ratios = {seed: own / beside[seed].record.ledger[rule.measure] for seed, own in seconds.items()}
    return Time(ratios, seconds, {seed: problem for seed, problem in found.items() if problem is not None})


def _problem(rule: Timed, record: Record, partner: Run | None) -> str | None:
    """Why a run has no ratio."""
    own = _untimed(record) or _unmeasured(record, rule.measure)
    if own is not None:
        return own
    if partner is None or not partner.usable:
        return f"{rule.reference} has no {'run' if partner is None else 'completed run'} at this seed"
    if (theirs := _untimed(partner.record) or _unmeasured(partner.record, rule.measure)) is not None:
        return f"of {rule.reference}'s run: {theirs}"
    apart = _apart(record, partner.record)
    return None if apart is None else f"{rule.reference} was run {apart}"


def _untimed(record: Record) -> str | None:
    """Why a run's time can be compared with no other run's."""
    if record.times.resumed:
        return "it was interrupted and went on, so its time is of two sittings"
    if record.times.sitting is None:
        return "its record does not say in which sitting it was made"
    if not record.hardware.get("cpu"):
        return "its record does not say on which machine it was made"
    return None


def _unmeasured(record: Record, measure: str) -> str | None:
    found = record.ledger.get(measure)
    if not isinstance(found, int | float):
        return f"its ledger has no {measure}"
    return None if SHORTEST <= found <= LONGEST else f"training cannot take {found:g} s"


def _apart(one: Record, other: Record) -> str | None:
    """How two runs were made differently; None where their times compare."""
    if _machine(one) != _machine(other):
        return "on another machine"
    if one.times.sitting != other.times.sitting:
        return "in another sitting"
    first, second = one.execution.model_dump(), other.execution.model_dump()
    differ = [name for name in first if first[name] != second[name]]
    return f"with other {', '.join(differ)}" if differ else None


def _machine(record: Record) -> tuple[Any, ...]:
    found = record.hardware
    gpus = [(gpu.get("name"), gpu.get("memory_gib")) for gpu in found.get("gpus") or []]
    return (found.get("cpu"), found.get("cores"), found.get("memory_gib"), found.get("platform"), gpus)


# ----------------------------------------------------------------------------------------------------------- in tables


def put(entry: Mapping[str, Any], time: Time) -> dict[str, Any]:
    """An entry of table.json with its time, and with the ratio among its costs in place of the seconds."""
    costs = {name: cost for name, cost in entry["costs"].items() if name not in UNITS}
    ratio = None
    if time.ratios:
        found = stats.mean_ratio(list(time.ratios.values()))
        ratio = {**interval(found), **({"low": None, "high": None} if math.isinf(found.high) else {})}
        costs[RATIO] = ratio["mean"]
    seconds = number(fmean(time.seconds.values())) if time.seconds else None
    unpaired = [{"seed": seed, "reason": plain(why)} for seed, why in time.unpaired.items()]
    return {**entry, "costs": costs,
            "time": {"ratio": ratio, "seconds": seconds, "seeds": list(time.ratios), "unpaired": unpaired}}


def header(rule: Mapping[str, Any]) -> str:
    return f"{UNITS[rule['measure']]}, {rule['reference']} = 1"


class Words(NamedTuple):
    """A time for people: the ratio, its interval, and on how many seeds it stands where not on all; or, with
    neither, why there is none."""

    ratio: str
    bounds: str
    note: str


def words(time: Mapping[str, Any]) -> Words:
    seeds, ratio, unpaired = time["seeds"], time["ratio"], time["unpaired"]
    if ratio is None:
        return Words("no ratio" if unpaired else "", "", "; ".join(dict.fromkeys(each["reason"] for each in unpaired)))
    bounds = "" if ratio["low"] in (None, ratio["high"]) else f"{_short(ratio['low'])} to {_short(ratio['high'])}"
    some = f"{len(seeds)} of {len(seeds) + len(unpaired)} seeds" if unpaired else ""
    return Words(_short(ratio["mean"]), bounds, some)


def cell(time: Mapping[str, Any]) -> str:
    """The same as one text."""
    ratio, bounds, note = words(time)
    if time["ratio"] is None:
        return f"{ratio}: {note}" if note else "-"
    return ratio + (f" ({bounds})" if bounds else "") + (f", {note}" if note else "")


def flat(time: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of table.csv."""
    ratio = time["ratio"] or dict.fromkeys(("mean", "low", "high"))
    return {**{f"{RATIO}_{part}": ratio[part] for part in ("mean", "low", "high")}, "time_seconds": time["seconds"],
            "time_seeds": len(time["seeds"]), "time_unpaired": csv_text("; ".join(
                f"seed {each['seed']}: {each['reason']}" for each in time["unpaired"]))}


def facts(content: Mapping[str, Any]) -> str:
    """The rule in a sentence."""
    rule = content["rules"]["timed"]
    seconds = next((entry["time"]["seconds"] for entry in content["entries"]
                    if entry["method"] == rule["reference"] and entry["time"]["seconds"] is not None), None)
    size = "" if seconds is None else f", whose runs take {seconds:.3g} s in the mean"
    return f" Times are {UNITS[rule['measure']]} of training, as a ratio to those of {rule['reference']}{size}."


def unpaired(content: Mapping[str, Any]) -> Iterator[str]:
    """Markdown lines of the runs that have a score and no ratio."""
    for entry in content["entries"]:
        for each in entry["time"]["unpaired"]:
            yield f"- `{md(entry['method'])}`, seed {each['seed']}: {md(each['reason'])}"


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if 0.1 <= ratio < 1000 else f"{ratio:.3g}"
