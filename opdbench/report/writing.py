"""Numbers and strangers' texts as cells of CSV, Markdown, LaTeX and HTML tables. Equal content gives equal bytes."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from opdbench.stats import Interval

Columns = Sequence[tuple[str, Sequence[str]]]  # header and cells
LEFT = ("tie", "method", "setting", "trust", "hardware", "commit", "date")  # columns of text

_HIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+")
_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
        **{sign: "\\" + sign for sign in "&%$#_{}"}}
_LONGEST = 200  # characters of a text that someone else wrote


# --------------------------------------------------------------------------------------------------------------- texts


def plain(text: str) -> str:
    """A stranger's text without control characters, marks that reverse the direction of reading, and excess length."""
    return plain_long(text[:10 * _LONGEST])[:_LONGEST].strip()


def plain_long(text: str) -> str:
    return _HIDDEN.sub(" ", text).strip()


def md(text: str) -> str:
    """Text that is neither markup nor HTML in Markdown."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(plain_long(text), quote=False))


def tex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in text)


def csv_text(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@") else text


# ------------------------------------------------------------------------------------------------------------- numbers


def number(value: float | None) -> float | None:
    """Eight digits: sums differ in the last of sixteen from one machine to another."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.8g}")


def interval(found: Interval) -> dict[str, float | None]:
    return {"mean": number(found.mean), "low": number(found.low), "high": number(found.high)}


def shown(found: Mapping[str, Any] | None, scale: float = 1.0) -> str:
    """A mean with its interval; bounds that nothing is known of are left out."""
    if found is None:
        return "-"
    mean = f"{scale * found['mean']:.1f}"
    if found["low"] is None:
        return mean
    return f"{mean} ({scale * found['low']:.1f} to {scale * found['high']:.1f})"


def amount(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1e9:
        return f"{value:.2e}".replace("e+", "e")
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def failure(failed: Mapping[str, Any]) -> str:
    return f"seed {failed['seed']} {failed['status']}" + (f": {failed['reason']}" if failed["reason"] else "")


# -------------------------------------------------------------------------------------------------------------- tables


def as_json(content: Any) -> str:
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """One line an entry; columns in the order in which they are first met."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for line in lines for name in line)), restval="",
                            lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_markdown(columns: Columns, left: Sequence[str] = LEFT) -> str:
    """A table of escaped cells."""
    align = ["---" if name in left else "--:" for name, _ in columns]
    cells = [[md(cell) for cell in line] for line in zip(*(column for _, column in columns), strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in ([md(name) for name, _ in columns], align, *cells))


def as_tabular(columns: Columns, left: Sequence[str] = LEFT) -> str:
    """A tabular for booktabs."""
    lines = [" & ".join(map(tex, cells)) for cells in
             [[name for name, _ in columns], *zip(*(cells for _, cells in columns), strict=True)]]
    head, *body = [line + r" \\" for line in lines]
    align = "".join("l" if name in left else "r" for name, _ in columns)
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\toprule", head, r"\midrule", *body, r"\bottomrule",
                      r"\end{tabular}"]) + "\n"
