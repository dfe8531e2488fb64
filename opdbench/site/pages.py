"""What every page shares: addresses, the template environment, and how numbers are written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from textwrap import dedent
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from opdbench.report import timing
from opdbench.report.axes import short
from opdbench.report.charts import COST_NAMES, gap_of

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_PLAIN = re.compile(r"[\w .,:/@%+-]*")  # text that is the same in HTML
_LONGEST_SLUG = 60
STATUS_WORDS = {"started": "under way", "oom": "out of memory"}


class Page(NamedTuple):
    """One file of the site."""

    path: str  # relative, with slashes
    content: bytes


@lru_cache(maxsize=4096)  # a task's and a method's stand in the addresses of all their records
def slug(name: str) -> str:
    """A file name for any text: the text itself where that is one, otherwise with a checksum, so that no two meet."""
    safe = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")[:_LONGEST_SLUG]
    if safe and safe == name:
        return safe
    return f"{safe or 'x'}-{hashlib.sha256(name.encode(errors='replace')).hexdigest()[:8]}"


def board_path(name: str) -> str:
    return f"boards/{slug(name)}.html"


def method_path(name: str) -> str:
    return f"methods/{slug(name)}.html"


def task_path(task: str) -> str:
    """Of "name@version"."""
    return f"tasks/{slug(task)}.html"


def paper_path(key: str) -> str:
    return f"papers/{slug(key)}.html"


def record_path(parts: tuple[str, ...]) -> str:
    """Of a run's folder below the results folder, which no two runs share."""
    return "records/" + "/".join(slug(part) for part in parts) + ".html"


def render(template: str, path: str, title: str, *, has_papers: bool, wide: bool = False, **values: Any) -> Page:
    """A page from its template; `root` leads from it to the site's top, so that links work under any address."""
    root = "../" * path.count("/")
    before, between, after = _frame(root, "" if root else path, has_papers, wide)
    content = _template(template).render(root=root, **values)
    return Page(path, "".join([before, safe(title), between, content, after]).encode(errors="replace"))


@cache
def _frame(root: str, here: str, has_papers: bool, wide: bool) -> tuple[str, str, str]:
    """What stands around the title and the content of every page in a folder."""
    whole = _template("base.html").render(root=root, here=here, title="@title@", content="@content@",
                                          has_papers=has_papers, wide=wide)
    before, _, rest = whole.partition("@title@")
    between, _, after = rest.partition("@content@")
    return before, between, after


@cache
def _template(name: str) -> Template:
    return environment().get_template(name)


def terms(pairs: Iterable[tuple[str, str]]) -> Markup:
    """Labels and values for a list of facts; those without a value are left out."""
    return Markup("".join([f"<div><dt>{safe(label)}</dt><dd>{safe(value)}</dd></div>"
                           for label, value in pairs if value]))


def safe(text: str) -> str:
    """A text in HTML, for what is put together without a template."""
    return text if _PLAIN.fullmatch(text) else str(escape(visible(text)))


@cache
def environment() -> Environment:
    """Escaping is on for every value, and characters that hide or turn text are shown as replaced."""
    env = Environment(loader=PackageLoader("opdbench.site"), autoescape=True, undefined=StrictUndefined,
                      trim_blocks=True, lstrip_blocks=True, finalize=visible)
    env.filters.update(amount=amount, dedent=dedent, percent=percent, prose=prose, ranged=ranged,
                       short=short, timed_words=timing.words, timed_header=timing.header, words=words)
    env.globals.update(board_path=board_path, method_path=method_path, task_path=task_path, paper_path=paper_path,
                       cost_names=COST_NAMES, gap_of=gap_of, svg=Markup)
    return env


def visible(value: Any) -> Any:
    """A text without characters that hide or turn it."""
    if type(value) is str and not value.isprintable():
        return _HIDDEN.sub("\ufffd", value)
    return value


def prose(text: str) -> Markup:
    """A docstring's text, with what stands between backticks as code."""
    return Markup(re.sub(r"`+([^`]+)`+", r"<code>\1</code>", safe(text)))


def words(status: str) -> str:
    return STATUS_WORDS.get(status, status)


def amount(value: float | None) -> str:
    """A count or a time for people."""
    if value is None:
        return "–"
    if abs(value) >= 1e7:
        return short(value)
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def ranged(interval: Mapping[str, float | None] | None, scale: float = 100.0) -> str:
    """The bounds of an interval."""
    if interval is None or interval["low"] is None or interval["high"] is None:
        return ""
    return f"{scale * interval['low']:.1f} to {scale * interval['high']:.1f}"
