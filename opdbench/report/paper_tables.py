"""A reproduced paper as Markdown, LaTeX, CSV and HTML. Equal records give equal bytes."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

from opdbench.report.claims import GAP, SCORE, Finding, Judged
from opdbench.report.papers import Cell, Reproduction
from opdbench.report.writing import as_csv, as_markdown, as_tabular, csv_text, interval, md, number, tex
from opdbench.schema.paper import Claim, Experiment, Headline, Row, Table
from opdbench.stats import Interval

FILES = ("table.md", "table.tex", "table.csv", "table.html")
_GUIDE = (
    "Reported numbers are the paper's: ~ was read off a drawing, * comes from a secondary source. Ours, with 95% "
    "intervals over seeds and test examples: at the paper's scale in the table's unit; at tiny scale the share of the "
    "gap between student and teacher that was recovered, in percent, judged by its sign against the reference cell.")


def render(found: Reproduction, command: str) -> dict[str, str]:
    """The content of every file, by name."""
    return {"table.md": _markdown(found, command), "table.tex": _tex(found), "table.csv": as_csv(list(_lines(found))),
            "table.html": _html(found, command)}


def as_json(found: Reproduction) -> dict[str, Any]:
    """Everything as JSON values: what `paper show --json` prints, and what a page is made of."""
    paper = found.paper
    return {
        **{name: getattr(paper, name) for name in ("key", "title", "authors_short", "venue", "year", "arxiv", "url")},
        "headline": [headline.model_dump(exclude_defaults=True) for headline in paper.headline],
        "missing": paper.missing, "note": paper.note,
        "tables": [{**table.model_dump(mode="json", exclude={"rows", "full_curves"}, exclude_defaults=True),
                    "cells": [_cell_as_json(cell) for cell in found.cells[table.id].values()]}
                   for table in paper.tables],
        "claims": [_claim_as_json(claim) for claim in found.claims],
    }


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    return {**cell._asdict(), "ours": None if cell.ours is None else interval(cell.ours)}


def _claim_as_json(found: Finding) -> dict[str, Any]:
    claim = found.claim
    return {**claim.model_dump(include={"id", "statement", "where", "axis", "measure", "expect", "scale", "commands"}),
            "verdict": found.verdict, "effect": None if found.effect is None else interval(found.effect),
            "reason": found.reason,
            "experiments": [{**each.experiment.model_dump(), "verdict": each.verdict, "seeds": each.seeds,
                             "effect": None if each.effect is None else interval(each.effect), "reason": each.reason}
                            for each in found.experiments]}


# -------------------------------------------------------------------------------------------------------------- pieces


def reported(cell: Cell) -> str:
    """A published number with its marks."""
    text = f"{'~' if cell.digitised else ''}{cell.reported:g}"
    if cell.std is not None:
        text += f" ± {cell.std:g}"
    if cell.ci95 is not None:
        text += f" ({cell.ci95[0]:g} to {cell.ci95[1]:g})"
    return text + ("" if cell.verified else "*")


def beside(cell: Cell) -> str:
    """What ours says to it; empty for a cell without a run."""
    if cell.ours is None:
        return ""
    return f"ours {_interval(cell.ours)} {cell.scale}: {cell.verdict}"


def _interval(found: Interval) -> str:
    return f"{found.mean:.1f} ({found.low:.1f} to {found.high:.1f})"


def effect(found: Finding | Judged, measure: str) -> str:
    """A claim's effect: a difference in percent of the gap or of the score, or a ratio."""
    if found.effect is None:
        return "-"
    if measure in (GAP, SCORE):
        mean, low, high = (100 * value for value in found.effect[:3])
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    mean, low, high = found.effect[:3]
    return f"x{mean:.2g} (x{low:.2g} to x{high:.2g})"


def _grid(found: Reproduction, table: Table) -> list[tuple[str, list[str]]]:
    """The published table's own columns, each cell with ours beside it."""
    cells = found.cells[table.id]

    def shown(row: Row, column: str) -> str:
        cell = cells.get((row.method, column))
        return "" if cell is None else "; ".join(part for part in (reported(cell), beside(cell)) if part)

    return [("method" if table.rows_are == "methods" else table.rows_are, [row.method for row in table.rows]),
            *((column, [shown(row, column) for row in table.rows]) for column in table.columns)]


def _not_run(found: Reproduction, table: Table) -> str:
    """How many cells have no run of ours, and why; reasons in the order of the cells."""
    reasons = [cell.why for cell in found.cells[table.id].values() if cell.verdict == "not run"]
    if not reasons:
        return ""
    total = len(found.cells[table.id])
    said = "; ".join(f"{reason} ({reasons.count(reason)})" if len(set(reasons)) > 1 else reason
                     for reason in dict.fromkeys(reasons))
    return f"Not run: {len(reasons)} of {total} cells: {said}."


def _facts(table: Table) -> str:
    better = {True: "higher is better", False: "lower is better", None: "columns differ in what is better"}
    parts = [f"{table.metric}, {table.unit}; {better[table.higher_is_better]}.",
             f"Read: {table.source.read or table.source.verbatim_rows}." if (
                 table.source.read or table.source.verbatim_rows) else "",
             "" if table.verified else f"Not verified: {table.why_not_verified}.",
             f"Precision: {table.precision}." if table.precision else "",
             f"Note: {table.notes}." if table.notes else ""]
    return " ".join(part for part in parts if part)


def _head(found: Reproduction) -> str:
    paper = found.paper
    where = f"{paper.authors_short or 'Authors not stated'}. {paper.venue}, {paper.year}."
    return where + (f" arXiv {paper.arxiv}." if paper.arxiv else "") + (f" {paper.url}" if paper.url else "")


def _headline(headline: Headline) -> str:
    subject = headline.claim or headline.paper
    return f"{subject}: {headline.value}{'' if headline.verified else '*'}"


def _claim_columns(claims: Sequence[Finding]) -> list[tuple[str, list[str]]]:
    lines = list(_claim_lines(claims))
    names = ("claim", "comparison", "held equal", "seeds", "effect", "verdict", "remark")
    return [(name, [line[index] for line in lines]) for index, name in enumerate(names)]


def _claim_lines(claims: Sequence[Finding]) -> Iterator[tuple[str, ...]]:
    """A line for the claim, and one for each of its experiments."""
    for found in claims:
        claim = found.claim
        remark = found.reason
        if claim.commands and found.verdict == "not run":
            remark += f"; to make the records: {' ; '.join(claim.commands)}"
        yield (claim.statement, f"{_unit(claim)}; {claim.expect} if it holds", claim.axis, "",
               effect(found, claim.measure), found.verdict,
               "" if found.verdict == "not run" and found.experiments else remark)
        for each in found.experiments:
            where = each.experiment
            yield ("", _compared(where, claim), "", str(each.seeds or ""),
                   effect(each, claim.measure), each.verdict, each.reason)


def _unit(claim: Claim) -> str:
    mode = "" if claim.mode == "mean" else f"{claim.mode} "
    if claim.measure in (GAP, SCORE):
        return f"difference in {mode}{'gap recovered' if claim.measure == GAP else 'score'}, %"
    return f"ratio of {mode}{claim.measure}" + (f" against x{claim.level:g}" if claim.level else "")


def _compared(where: Experiment, claim: Claim) -> str:
    second = where.second or f"{100 * (claim.level or 0):g}% of the gap"
    if where.second is not None and where.second_suite is not None and where.second == where.first:
        second += f" of suite {where.second_suite}"
    return f"{where.first} against {second} on {where.task}"


def _made_by(where: Experiment) -> str:
    return f"suite {where.suite}" if where.suite else f"recipe {where.recipe}"


# --------------------------------------------------------------------------------------------------------------- files


def _markdown(found: Reproduction, command: str) -> str:
    paper, left = found.paper, ("claim", "comparison", "held equal", "verdict", "remark")
    parts = [f"# {md(paper.title)}", md(_head(found)), md(paper.note), md(_GUIDE)]
    if paper.headline:
        parts.append("\n".join(f"- {md(_headline(headline))}" for headline in paper.headline))
    if found.claims:
        parts += ["## Claims, judged by our records at tiny scale", as_markdown(_claim_columns(found.claims), left)]
    for table in paper.tables:
        parts += [f"## {md(table.id)}", md(table.caption), md(_facts(table)),
                  as_markdown(_grid(found, table), (table.rows_are, "method")), md(_not_run(found, table))]
    parts += [f"Missing here: {md(paper.missing)}" if paper.missing else "", f"Made by `{command}`."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _tex(found: Reproduction) -> str:
    left = ("claim", "comparison", "held equal", "verdict", "remark")
    parts = [f"% {found.paper.key}: {len(found.paper.tables)} tables and {len(found.claims)} claims; for booktabs\n"]
    for table in found.paper.tables:
        tabular = as_tabular(_grid(found, table), (table.rows_are, "method"))
        parts.append(f"% {table.id}\n" + _captioned(table.caption, tabular))
    if found.claims:
        columns = [(name, cells) for name, cells in _claim_columns(found.claims) if name != "remark"]
        parts.append("% claims\n" + _captioned("Claims", as_tabular(columns, left)))
    return "\n".join(parts)


def _captioned(caption: str, tabular: str) -> str:
    return f"\\begin{{table}}\n\\caption{{{tex(' '.join(caption.split()))}}}\n{tabular}\\end{{table}}\n"


def _lines(found: Reproduction) -> Iterator[dict[str, Any]]:
    """Every cell, then every claim and its experiments, in full precision."""
    for table in found.cells.values():
        for cell in table.values():
            yield {"kind": "cell", "table": cell.table, "row": csv_text(cell.row), "column": csv_text(cell.column),
                   "reported": cell.reported, "std": "" if cell.std is None else cell.std, "verified": cell.verified,
                   "digitised": cell.digitised, **_bounds(cell.ours), "scale": cell.scale or "", "seeds": cell.seeds,
                   "runs": csv_text(cell.runs), "verdict": cell.verdict, "why": csv_text(cell.why)}
    for claim in found.claims:
        yield {"kind": "claim", "row": claim.claim.id, "column": claim.claim.measure, **_bounds(claim.effect),
               "scale": claim.claim.scale, "verdict": claim.verdict, "why": csv_text(claim.reason)}
        for each in claim.experiments:
            where = each.experiment
            yield {"kind": "experiment", "row": claim.claim.id, "column": claim.claim.measure, **_bounds(each.effect),
                   "scale": claim.claim.scale, "seeds": each.seeds, "verdict": each.verdict,
                   "why": csv_text(each.reason),
                   "runs": csv_text(f"{_compared(where, claim.claim)}, {_made_by(where)}")}


def _bounds(found: Interval | None) -> dict[str, Any]:
    return {name: "" if found is None else number(getattr(found, part))
            for name, part in (("ours", "mean"), ("low", "low"), ("high", "high"))}


def _html(found: Reproduction, command: str) -> str:
    """One page that needs nothing beside it."""
    text = html.escape
    parts = ["<!doctype html>", '<html lang="en"><head><meta charset="utf-8">',
             f"<title>{text(found.paper.title)}</title></head><body>", f"<h1>{text(found.paper.title)}</h1>",
             f"<p>{text(_head(found))}</p>", f"<p>{text(_GUIDE)}</p>"]
    if found.claims:
        parts += ["<h2>Claims, judged by our records at tiny scale</h2>", _html_table(_claim_columns(found.claims))]
    for table in found.paper.tables:
        parts += [f'<h2 id="{text(table.id)}">{text(table.id)}</h2>', f"<p>{text(table.caption)}</p>",
                  f"<p>{text(_facts(table))}</p>", _html_table(_grid(found, table)),
                  f"<p>{text(_not_run(found, table))}</p>"]
    parts += [f"<p>Made by <code>{text(command)}</code>.</p>", "</body></html>"]
    return "\n".join(parts) + "\n"


def _html_table(columns: Sequence[tuple[str, Sequence[str]]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name, _ in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
                     for line in zip(*(cells for _, cells in columns), strict=True))
    return f"<table>\n<tr>{head}</tr>\n{body}\n</table>"
