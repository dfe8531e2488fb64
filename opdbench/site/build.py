"""From records and boards to a folder of pages. The same inputs give the same bytes, wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from opdbench import registry
from opdbench.errors import UserError
from opdbench.parallel import chunks, mapped
from opdbench.report.runs import FEW
from opdbench.site.inventory import Board, methods, read_boards, refused, standings, tasks
from opdbench.site.output import (
    Manifest,
    Written,
    is_whole,
    read_manifest,
    remove,
    write_manifest,
    write_page,
)
from opdbench.site.papers import read_papers
from opdbench.site.records import Located, Places, Summary, Unread, record_page
from opdbench.site.views import Part, Site, parts
from opdbench.stamps import find, fingerprint, places
from opdbench.store import RECORD

_CHUNK = 10  # folders of records that a process takes at a time
_MANY = 400  # records from which on the other pages are worth a second process


class Done(NamedTuple):
    """What a build did."""

    pages: int
    changed: int
    removed: int
    unread: Sequence[Unread]


def build_site(results: Path, leaderboards: Path, out: Path, *, papers: Path | None = None, fresh: bool = False
               ) -> Done:
    """Build the site, or find that it is what it should be.

    Args:
        papers: the folder of what `opdbench paper build` wrote; None, or one that is not there: no pages about papers.
        fresh: render every page again, also when nothing has changed.

    Raises:
        UserError: no results, a board without a table, or `out` holds something else.
    """
    for place in (results, leaderboards):
        if not place.is_dir():
            raise UserError(f"there is no folder {place}", "name it with --results DIR or --leaderboards DIR")
    before = read_manifest(out)
    papers = papers if papers is not None and papers.is_dir() else None
    inputs = fingerprint([results, leaderboards, *([] if papers is None else [papers]), *_sources()])
    if before is not None and not fresh and before.inputs == inputs and is_whole(out, before):
        return Done(len(before.files), 0, 0, ())
    write_manifest(out, Manifest("", {} if before is None else before.files))  # so that a killed build is seen
    written, unread = _write(results, leaderboards, papers, out)
    new = {page.path: (page.size, page.sha256) for page in written}
    gone = set() if before is None else before.files.keys() - new.keys()
    remove(out, gone)
    write_manifest(out, Manifest(inputs, new))
    return Done(len(new), sum(page.changed for page in written), len(gone), unread)


def _write(results: Path, leaderboards: Path, papers: Path | None, out: Path) -> tuple[list[Written], list[Unread]]:
    boards = read_boards(leaderboards)
    read = [] if papers is None else read_papers(papers)
    said = Places(standings(boards), refused(boards), bool(read))
    written, runs, unread = _write_records(results, said, out)
    site = Site(boards, methods([run.method for run in runs]), tasks(_tasks(boards, runs)), read, runs, unread)
    made = parts(site)
    todo = range(len(made))
    for pages in mapped(_write_part, (made, out), todo) if len(runs) > _MANY else (
            _write_part((made, out), index) for index in todo):
        written.extend(pages)
    return written, unread


def _write_part(given: tuple[Sequence[Part], Path], index: int) -> list[Written]:
    made, out = given
    return [write_page(out, page) for page in made[index]()]


def _tasks(boards: Sequence[Board], runs: Sequence[Summary]) -> list[str]:
    return [*(run.task for run in runs), *(task for board in boards for task in board.tasks)]


def _sources() -> list[Path]:
    """The files besides records and boards that pages are made of."""
    described = [*registry.descriptions("method"), *registry.descriptions("task")]
    package = Path(str(files("opdbench.site"))).parent
    papers = Path(str(files("opdbench.configs"))) / "papers"
    return [package / "site", package / "report", papers,
            *sorted({each.path for each in described if each.path is not None})]


# ------------------------------------------------------------------------------------------------- records, in parallel


class _Part(NamedTuple):
    written: list[Written]
    runs: list[Summary]
    unread: list[Unread]


def _write_records(results: Path, said: Places, out: Path) -> _Part:
    """The records' pages, in the order of the records."""
    below = places(str(results), 2)
    whole, todo, given = _Part([], [], []), chunks(below, _CHUNK), (results, said, out)
    for part in mapped(_write_chunk, given, todo) if len(below) > FEW else (
            _write_chunk(given, chunk) for chunk in todo):
        whole.written.extend(part.written)
        whole.runs.extend(part.runs)
        whole.unread.extend(part.unread)
    return whole


def _write_chunk(given: tuple[Path, Places, Path], chunk: Sequence[str]) -> _Part:
    results, said, out = given
    part = _Part([], [], [])
    for folder in (Path(path).parent for place in chunk for path in find(place, RECORD)):
        made = record_page(Located(folder, folder.relative_to(results).parts or (results.resolve().name,)), said)
        if isinstance(made, Unread):
            part.unread.append(made)
        else:
            part.written.extend([write_page(out, page) for page in made[0]])
            part.runs.append(made[1])
    return part
