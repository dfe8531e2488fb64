"""A published paper as data: its tables, its headline claims, and which of our runs speak to them.

`configs/papers/KEY.yaml` holds what was read, with its source and whether it was read from the primary text
(`verified`); `ours` and `claims` name arms of suites, whose records are the only source of a number of ours.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from opdbench.errors import UserError, unknown
from opdbench.schema import shipped
from opdbench.schema.board import TASK_ID
from opdbench.schema.spec import Frozen

Scale = Literal["tiny", "paper"]
NO_MODELS = "its models and data are at the paper's scale, and no suite of ours runs them yet"


class Headline(Frozen):
    """A sentence that the paper is known for, with its figures as the paper words them."""

    claim: str = ""
    value: str
    verified: bool
    where: str = ""
    why: str = Field("", description="why it is not verified")
    paper: str = Field("", description="of a collection: which paper")
    arxiv: str | None = None


class Source(Frozen):
    """Where the numbers were read."""

    read: str = ""
    verbatim_rows: str = ""
    other_rows: str = ""


class Row(Frozen):
    """One line of a table; cells that were not read are left out."""

    method: str = Field(min_length=1, description="the line's name, as the table has it")
    values: dict[str, float]
    std: dict[str, float] = Field(default_factory=dict)
    ci95: dict[str, tuple[float, float]] = Field(default_factory=dict)
    verified: bool | None = Field(None, description="where it differs from the table's")
    via: str = ""


class Table(Frozen):
    """One published table or figure."""

    id: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    caption: str
    metric: str
    unit: str
    higher_is_better: bool | None = Field(None, description="None where columns differ in it")
    columns: list[str] = Field(min_length=1)
    rows: list[Row] = Field(min_length=1)
    rows_are: str = "methods"
    setup: dict[str, Any] = Field(default_factory=dict)
    source: Source
    verified: bool
    why_not_verified: str = ""
    precision: str = Field("", description="how exact cells are that were read off a drawing; empty for printed ones")
    notes: str = ""
    derived: str = ""
    baseline_value: float | None = None
    teacher_value: float | None = None
    cross_checked: int | None = Field(None, description="secondary sources that agree")
    full_curves: dict[str, list[float]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _cells_have_columns(self) -> Table:
        for row in self.rows:
            strange = {*row.values, *row.std, *row.ci95} - {*self.columns}
            if strange:
                raise ValueError(f"table {self.id}, row {row.method}: no such column: {', '.join(sorted(strange))}")
        return self

    def value(self, row: str, column: str) -> float | None:
        return next((found.values.get(column) for found in self.rows if found.method == row), None)

    def is_verified(self, row: Row) -> bool:
        return self.verified if row.verified is None else row.verified


class Place(Frozen):
    """A cell of a table."""

    row: str
    column: str


class Ours(Frozen):
    """Which of our runs stand beside which cells of a table."""

    table: str
    scale: Scale
    suite: str
    task: str = Field(pattern=TASK_ID)
    arms: dict[str, dict[str, str]] = Field(description="arm of the suite, by row and column")
    reference: Place | None = Field(
        None, description="at tiny scale: the cell that the others are compared with; its arm must be named too")
    mode: Literal["greedy", "sampled"] = Field("greedy", description="at the paper's scale: the score that is compared")
    factor: float = Field(1.0, description="at the paper's scale: from our score to the table's unit, such as 100")
    tolerance: float | None = Field(
        None, gt=0, description="at the paper's scale: half-width of our interval, in the table's unit, up to which an "
        "interval that holds the reported value confirms it")

    @model_validator(mode="after")
    def _complete(self) -> Ours:
        if self.scale == "tiny" and (self.reference is None or self.arm(self.reference) is None):
            raise ValueError(f"table {self.table}: at tiny scale a reference cell with an arm is needed")
        if self.scale == "paper" and self.tolerance is None:
            raise ValueError(f"table {self.table}: at the paper's scale a tolerance is needed")
        return self

    def arm(self, place: Place) -> str | None:
        return self.arms.get(place.row, {}).get(place.column)


class Experiment(Frozen):
    """A paired comparison of two arms on one task, at equal budget unless their suites say otherwise; or one arm's gap
    recovered against a level. Of a recipe, stages take the place of arms."""

    task: str = Field(pattern=TASK_ID)
    suite: str = ""
    recipe: str = Field("", description="in place of a suite")
    first: str = Field(description="an arm of the suite; of a recipe STAGE, or STAGE/PHASE for a score before")
    second: str | None = Field(None, description="another; None: the first's gap recovered against the claim's level")
    second_suite: str | None = Field(None, description="where the second arm is another suite's, of another budget")

    @model_validator(mode="after")
    def _of_one_kind(self) -> Experiment:
        if bool(self.suite) == bool(self.recipe):
            raise ValueError("say either the suite of the arms or the recipe of the stages")
        return self


class Claim(Frozen):
    """A headline claim, as a difference that records can show or refute."""

    id: str = Field(pattern=r"^[a-z0-9-]+$")
    statement: str
    where: str = ""
    axis: str = Field(description="what is held equal, such as tokens")
    measure: str = Field(
        "gap", description="gap: difference in gap recovered, first minus second; score: in the score; regret: ratio, "
        "first to second, of what the score after lacks to the teacher's; or a cost of the ledger, such as "
        "total_flops: its ratio")
    mode: Literal["greedy", "sampled", "mean"] = Field("mean", description="of scores; mean: of those there are")
    expect: Literal["higher", "lower"] = Field("higher", description="of the first against the second, if it holds")
    level: float | None = Field(
        None, description="gap recovered that a first arm without a second is compared with: 0, the default, is the "
        "student before, 1 the teacher; the ratio that a ratio is compared with, by default 1")
    scale: Scale = "tiny"
    experiments: list[Experiment] = Field(default_factory=list)
    commands: list[str] = Field(default_factory=list, description="what would make the records, where no suite does")
    not_run: str = Field("", description="why there is no experiment yet")
    if_not: str = Field("", description="why ours may disagree, should it")

    @model_validator(mode="after")
    def _judged_or_explained(self) -> Claim:
        if bool(self.experiments) == bool(self.not_run):
            raise ValueError(f"claim {self.id}: say either its experiments or why there are none")
        return self


class Paper(Frozen):
    """Everything that is known of one paper."""

    key: str
    title: str
    authors_short: str | None
    venue: str
    year: int
    arxiv: str | None
    url: str = ""
    headline: list[Headline] = Field(default_factory=list)
    tables: list[Table] = Field(default_factory=list)
    setup: dict[str, Any] = Field(default_factory=dict)
    common_setup: dict[str, Any] = Field(default_factory=dict)
    networks: dict[str, Any] = Field(default_factory=dict)
    released_hyperparameters: str = ""
    missing: str = Field("", description="what of the paper's numbers was not to be had")
    note: str = ""
    source: Source = Source()
    verified: bool | None = None
    why_not_verified: str = ""
    not_run: str = Field(NO_MODELS, description="why cells without a run of ours have none")
    ours: list[Ours] = Field(default_factory=list)
    claims: list[Claim] = Field(default_factory=list)

    @model_validator(mode="after")
    def _names_exist(self) -> Paper:
        tables = {table.id: table for table in self.tables}
        for ours in self.ours:
            if ours.table not in tables:
                raise ValueError(f"ours: there is no table {ours.table}")
            for row, arms in ours.arms.items():
                for column in arms:
                    if tables[ours.table].value(row, column) is None:
                        raise ValueError(f"ours: table {ours.table} has no cell {row} / {column}")
        return self

    def table(self, name: str) -> Table:
        found = {table.id: table for table in self.tables}
        if name not in found:
            raise unknown(f"table of {self.key}:", name, found, see=f"opdbench paper show {self.key}")
        return found[name]


def names() -> list[str]:
    """The papers that come with opdbench."""
    return shipped.names("papers")


def read(key: str) -> Paper:
    """
    Raises:
        UserError: there is no such paper (names the nearest), or its file says what a paper's cannot.
    """
    return parse(shipped.text("papers", "paper", key, see="opdbench paper list"), key)


def parse(text: str, key: str) -> Paper:
    """A paper from its YAML text; `key` is what it must call itself."""
    paper = shipped.parse(Paper, text, f"paper {key}")
    if paper.key != key:
        raise UserError(f"paper {key} calls itself {paper.key}", "mend the file")
    return paper
