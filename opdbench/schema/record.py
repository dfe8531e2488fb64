"""The record: what one run was asked, what it cost, what it scored, and how it ended.

One small JSON file a run, written atomically, `started` first. Raw outcomes lie beside it, compressed, so that every
score can be recomputed. Field order is the order of reading.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from opdbench.schema.spec import Execution, Recipe
from opdbench.untrusted import LARGEST_AMOUNT

Status = Literal["started", "completed", "diverged", "oom", "cancelled", "error"]
Phase = Literal["before", "teacher", "after"]
NORMALISED = "normalised"  # the metric of tasks that are several games, whose mean returns are then in `Score.extra`
MEASURED_LEDGER = ("seconds", "cpu_seconds", "peak_memory_bytes")


class Score(BaseModel):
    """A mean over problems or episodes with its 95% interval for this one run."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    metric: str
    mean: float
    low: float
    high: float
    interval: str = Field(description="how it was made: wilson, t over episodes, or bootstrap over problems")
    n: int
    length: float = Field(description="mean length in tokens or steps")
    truncated: float = Field(description="share cut off by the horizon")
    extra: dict[str, float] = Field(default_factory=dict, description="means of further scores")


class OutcomeFile(BaseModel):
    """Where a phase's raw outcomes are, relative to the record, and what they must hash to."""

    model_config = ConfigDict(extra="forbid")
    file: str
    sha256: str
    n: int


class Provenance(TypedDict, total=False):
    """What `opdbench.provenance` writes; more may stand beside it."""

    commit: str | None
    dirty: bool | None
    packages: dict[str, str]
    python: str
    platform: str


class Gpu(TypedDict):
    name: str
    memory_gib: float


class Hardware(TypedDict, total=False):
    """What `opdbench.hardware` writes; more may stand beside it."""

    cpu: str
    cores: int
    memory_gib: float
    gpus: list[Gpu]
    platform: str
    driver_problem: str | None


_PROVENANCE, _HARDWARE = TypeAdapter(Provenance), TypeAdapter(Hardware)


def _provenance(content: dict[str, Any]) -> dict[str, Any]:
    _PROVENANCE.validate_python({name: content[name] for name in Provenance.__annotations__ if name in content},
                                strict=True)
    return content


def _hardware(content: dict[str, Any]) -> dict[str, Any]:
    known = {name: content[name] for name in Hardware.__annotations__ if name in content}
    gpus = [{name: gpu[name] for name in Gpu.__annotations__ if name in gpu} if isinstance(gpu, dict) else gpu
            for gpu in _list(known.get("gpus"))]
    _HARDWARE.validate_python({**known, "gpus": gpus}, strict=True)
    return content


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _amounts(ledger: dict[str, Any]) -> dict[str, Any]:
    """Counts and seconds, zero or more; FLOPs by part."""
    for name, amount in ledger.items():
        if isinstance(amount, dict) != (name == "flops"):
            raise ValueError(f"{name} is no amount")
        for part in amount.values() if isinstance(amount, dict) else [amount]:
            if isinstance(part, bool) or not isinstance(part, int | float) or not 0 <= part <= LARGEST_AMOUNT:
                raise ValueError(f"{name} is no amount")
    return ledger


class Times(BaseModel):
    """Wall-clock facts; everything here, and nothing else but the measured ledger entries, differs between repeats."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    started: str
    finished: str | None = None
    total_seconds: float = 0.0
    resumed: int = Field(0, description="how often the run was continued from a checkpoint")
    sitting: str | None = Field(
        None, pattern=r"^[0-9a-f]{12}$", description="names the command whose runs were made one after the other on "
        "this machine (`opdbench.sitting`); None: not known, as in records from before it was written")


class Record(BaseModel):
    """One run."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    schema_version: Literal[1] = 1
    id: str = Field(description="first 12 digits of the recipe's sha256")
    status: Status = "started"
    reason: str | None = Field(None, description="why it ended, when it did not complete")
    stopped_by: str | None = Field(None, description="the budget axis that ended training")
    recipe: Recipe
    recipe_sha256: str
    execution: Execution
    origins: dict[str, str] = Field(default_factory=dict, description="who set each value that is not a default")
    command: str = Field(description="the command that makes this record")
    scorer: str | None = Field(None, description="the library that graded, with its version, where it is not opdbench")
    before: dict[str, Score] = Field(default_factory=dict, description="by mode: greedy, sampled")
    teacher: dict[str, Score] = Field(default_factory=dict)
    after: dict[str, Score] = Field(default_factory=dict)
    gap_recovered: dict[str, float | None] = Field(
        default_factory=dict, description="(after - before) / (teacher - before), by mode; None when the teacher is "
        "not measurably better than before")
    ledger: Annotated[dict[str, Any], AfterValidator(_amounts)] = Field(default_factory=dict)
    validation: list[dict[str, float]] = Field(default_factory=list, description="greedy scores during training")
    curve: list[dict[str, float]] = Field(default_factory=list, description="diagnostics by step, thinned evenly")
    probes: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by name: what each saw by step (series), and at the end")
    outcomes: dict[Phase, OutcomeFile] = Field(default_factory=dict)
    provenance: Annotated[dict[str, Any], AfterValidator(_provenance)] = Field(default_factory=dict)
    hardware: Annotated[dict[str, Any], AfterValidator(_hardware)] = Field(default_factory=dict)
    times: Times

    def repeatable(self) -> dict[str, Any]:
        """The record without what was measured by a clock: equal for equal seeds on one machine and profile."""
        content = self.model_dump(mode="json", exclude={"times"})
        content["ledger"] = {name: value for name, value in self.ledger.items() if name not in MEASURED_LEDGER}
        return content


def gap_recovered(before: Score, teacher: Score, after: Score) -> float | None:
    """(after - before) / (teacher - before): 0 is no progress, 1 the teacher.

    None unless the teacher's interval lies above the one before: a share of a gap that may not be there, or that points
    the wrong way, means nothing.
    """
    if teacher.low <= before.high or teacher.mean <= before.mean:  # a forged mean may lie outside its interval
        return None
    return (after.mean - before.mean) / (teacher.mean - before.mean)
