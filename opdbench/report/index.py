"""All records as one table, kept as Parquet beside them, for questions in SQL.

The figures are those that the records state, and `results validate` says whether their raw outcomes make them. A record
is read again when its file has changed; the index is a cache, and can be deleted at any time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from opdbench.errors import UserError
from opdbench.report.runs import COSTS, Run, changed, read_run, setting_of
from opdbench.store import RECORD
from opdbench.trust import TRUST
from opdbench.untrusted import inert

INDEX = ".index.parquet"
MODES = ("greedy", "sampled")
_SCORES = {f"{phase}_{mode}": "DOUBLE" for phase in ("before", "teacher", "after", "gap") for mode in MODES}
COLUMNS = {
    "path": "VARCHAR", "stamp": "VARCHAR", "task": "VARCHAR", "method": "VARCHAR", "setting": "VARCHAR",
    "setting_id": "VARCHAR", "seed": "BIGINT", "status": "VARCHAR", "reason": "VARCHAR", "trust": "VARCHAR",
    "problem": "VARCHAR", "metric": "VARCHAR", "teacher": "VARCHAR", "student": "VARCHAR", "budget": "VARCHAR",
    "lr": "DOUBLE", **_SCORES, **dict.fromkeys(COSTS, "DOUBLE"), "seconds": "DOUBLE", "peak_memory_bytes": "DOUBLE",
    "profile": "VARCHAR", "cpu": "VARCHAR", "commit": "VARCHAR", "finished": "VARCHAR", "recipe": "VARCHAR",
}


class Answer(NamedTuple):
    columns: list[str]
    rows: list[tuple[Any, ...]]


def query(results: Path, sql: str) -> Answer:
    """Answer one SQL statement about the table `runs`, whose columns are `COLUMNS`.

    The statement sees that table and nothing else: no files, no network, no extensions.

    Raises:
        UserError: duckdb is missing, there are no records, or the statement is wrong.
    """
    duckdb = _duckdb()
    connection = duckdb.connect()
    _fill(connection, results)
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    try:
        found = connection.execute(sql)
        return Answer([column[0] for column in found.description or []], found.fetchall() if found.description else [])
    except duckdb.Error as error:
        raise UserError(f"the query cannot be answered: {inert(str(error)).strip().splitlines()[0]}",
                        'such as: opdbench results query "SELECT method, avg(gap_greedy) FROM runs GROUP BY method"'
                        ) from None


def _fill(connection: Any, results: Path) -> None:
    """Make the table `runs` from the index and from what has changed since it was written."""
    if not results.is_dir():
        raise UserError(f"there is no folder {results}", "name the folder of records with --results DIR")
    stamps = {str(path.relative_to(results)): _stamp(path) for path in sorted(results.rglob(RECORD))}
    index = results / INDEX
    known = _known(connection, index)
    rows = [known[path] if path in known and known[path]["stamp"] == stamp else _row(results, path, stamp)
            for path, stamp in stamps.items()]
    with TemporaryDirectory(prefix="opdbench-") as place:
        lines = Path(place, "runs.jsonl")
        lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
        types = ", ".join(f"{name!r}: {kind!r}" for name, kind in COLUMNS.items())
        connection.execute("CREATE TABLE runs AS SELECT * FROM read_json($1, format = 'newline_delimited', "
                           f"columns = {{{types}}})", [str(lines)])
    if {path: row["stamp"] for path, row in known.items()} != stamps:
        part = index.with_name(f"{INDEX}.part")
        try:
            connection.execute(f"COPY runs TO '{str(part).replace(chr(39), chr(39) * 2)}' (FORMAT parquet)")
            part.replace(index)
        except Exception:  # a folder that cannot be written has no index, and is asked all the same
            part.unlink(missing_ok=True)


def _known(connection: Any, index: Path) -> dict[str, dict[str, Any]]:
    """The rows of the index by path; none when there is none, or it is of another version."""
    duckdb = _duckdb()
    try:
        found = connection.execute("SELECT * FROM read_parquet($1)", [str(index)])
    except duckdb.Error:
        return {}
    names = [column[0] for column in found.description]
    if names != list(COLUMNS):
        return {}
    return {row[0]: dict(zip(names, row, strict=True)) for row in found.fetchall()}


def _stamp(path: Path) -> str:
    """Changes when a record or its level of trust changes."""
    return "/".join(_stamp_of(file) for file in (path, path.with_name(TRUST)))


def _stamp_of(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "-"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _row(results: Path, path: str, stamp: str) -> dict[str, Any]:
    row = dict.fromkeys(COLUMNS, None) | {"path": path, "stamp": stamp}
    try:
        run = read_run(results / path)
    except UserError as error:
        return {**row, "status": "unreadable", "problem": error.problem}
    return row | dict(_facts(run)) | dict(_figures(run))


def _facts(run: Run) -> Iterator[tuple[str, Any]]:
    record, recipe, setting = run.record, run.record.recipe, setting_of(run.record)
    yield from {"task": recipe.task, "method": recipe.method, "setting_id": setting.digest, "seed": recipe.seed,
                "status": record.status, "reason": record.reason, "trust": run.trust, "problem": run.problem,
                "student": recipe.student.reference, "lr": recipe.training.lr, "profile": record.execution.profile,
                "finished": record.times.finished, "recipe": record.recipe_sha256,
                "commit": record.provenance.get("commit"), "cpu": record.hardware.get("cpu")}.items()
    yield "teacher", recipe.teacher and recipe.teacher.reference
    yield "setting", _words(changed(record))
    yield "budget", _words(recipe.budget.limits())


def _figures(run: Run) -> Iterator[tuple[str, Any]]:
    record = run.record
    for mode in MODES:
        for phase in ("before", "teacher", "after"):
            if (score := getattr(record, phase).get(mode)) is not None:
                yield f"{phase}_{mode}", score.mean
                yield "metric", score.metric
        yield f"gap_{mode}", record.gap_recovered.get(mode)
    for cost in (*COSTS, "seconds", "peak_memory_bytes"):
        yield cost, record.ledger.get(cost)


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def as_rows(answer: Answer) -> list[list[str]]:
    return [["" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value) for value in row]
            for row in answer.rows]


def as_objects(answer: Answer) -> Sequence[dict[str, Any]]:
    return [{name: value if isinstance(value, str | int | float | None) else str(value)
             for name, value in zip(answer.columns, row, strict=True)} for row in answer.rows]


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise UserError("duckdb is not installed, which answers questions in SQL", "pip install 'opdbench[results]'"
                        ) from None
    return duckdb
