"""The site as files: whole, the same wherever it is built, and only what has changed is written again."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from opdbench.cli.main import main
from opdbench.errors import UserError
from opdbench.report import board
from opdbench.site.build import build_site
from opdbench.site.output import MANIFEST, read_manifest
from opdbench.site.pages import slug
from opdbench.site.samples import samples
from opdbench.store import read_record
from tests.report.synthetic import write_run
from tests.site.conftest import NASTY, Places


class Tags(HTMLParser):
    """Every start tag of a page with its attributes, and its text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def pages(out: Path) -> list[Path]:
    return sorted(out.rglob("*.html"))


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_there_is_a_page_for_everything(places: Places) -> None:
    there = set(content(places.out))
    assert {"index.html", "methods.html", "tasks.html", "guide.html", "boards/toy.html", "boards/pole.html",
            "methods/one.html", "methods/few.html", f"tasks/{slug('toy@1')}.html", "boards/toy/table.csv"} <= there
    assert len([path for path in there if path.startswith("records/")]) == 23


def test_every_link_leads_somewhere_inside_and_nothing_is_loaded_from_outside(places: Places) -> None:
    for page in pages(places.out):
        for tag, attributes in Tags(page).tags:
            for name in ("href", "src"):
                address = attributes.get(name)
                if address is None or address in ("#content", "data:,"):
                    continue
                assert not re.match(r"[a-z]+:|//|/", address), (page, tag, address)
                assert (page.parent / address).resolve().is_file(), (page, tag, address)


def test_a_strangers_words_are_text_everywhere(places: Places) -> None:
    failed = next(path for path in pages(places.out) if path.name.startswith("s5-"))
    for page in (failed, places.out / "boards" / "toy.html"):
        tags = Tags(page)
        assert NASTY in tags.text and not any(tag == "img" for tag, _ in tags.tags)
        assert [attributes.get("src", "").rpartition("/")[2] for tag, attributes in tags.tags  # type: ignore[union-attr]
                if tag == "script"] == ["site.js"]


def test_characters_that_hide_or_turn_text_are_shown_as_replaced(own: Places) -> None:
    path = next(path for path in own.results.rglob("record.json") if path.parent.name.startswith("s5-"))
    table = own.boards / "toy" / "table.json"
    table.write_text(table.read_text().replace("A toy", "A\\u202e toy\\u0007"))
    assert path.is_file()
    build_site(own.results, own.boards, own.out)
    text = (own.out / "boards" / "toy.html").read_text()
    assert "\u202e" not in text and "\u0007" not in text and "A\ufffd toy\ufffd" in text


def test_an_unchanged_rebuild_writes_nothing(own: Places) -> None:
    before = content(own.out)
    stamps = {path: path.stat().st_mtime_ns for path in own.out.rglob("*")}
    done = build_site(own.results, own.boards, own.out)
    assert (done.changed, done.removed) == (0, 0) and done.pages == len(before) - 1
    assert content(own.out) == before and stamps == {path: path.stat().st_mtime_ns for path in own.out.rglob("*")}


def test_the_same_inputs_give_the_same_bytes_wherever_they_lie(own: Places) -> None:
    first = content(own.out)
    build_site(own.results, own.boards, own.out.parent / "again")
    assert content(own.out.parent / "again") == first
    done = build_site(own.results, own.boards, own.out, fresh=True)
    assert done.changed == 0 and content(own.out) == first


def test_pages_by_several_processes_are_the_same(own: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opdbench.site.build.FEW", 0)
    monkeypatch.setattr("opdbench.site.build._MANY", 1)
    monkeypatch.setattr("opdbench.site.build._CHUNK", 1)
    build_site(own.results, own.boards, own.out.parent / "again")
    assert content(own.out.parent / "again") == content(own.out)


def test_a_new_record_changes_only_the_pages_that_speak_of_it(own: Places) -> None:
    before = content(own.out)
    write_run(own.results, "pole", 5, after=0.7, task="pole@1", text=False)
    own.build_boards()
    build_site(own.results, own.boards, own.out)
    after = content(own.out)
    changed = {path for path in after if after[path] != before.get(path)} - {MANIFEST}
    assert any(path.startswith("records/pole/pole/s5-") for path in changed)
    assert "boards/pole.html" in changed and not any("toy/one" in path or path == "boards/toy.html" for path in changed)


def test_a_record_that_is_gone_takes_its_page_with_it(own: Places) -> None:
    folder = next(path.parent for path in own.results.rglob("record.json") if path.parent.name.startswith("s5-"))
    for file in folder.iterdir():
        file.unlink()
    done = build_site(own.results, own.boards, own.out)
    assert done.removed == 1 and not list((own.out / "records").rglob("s5-*"))


def test_a_page_that_was_lost_or_a_build_that_was_killed_is_made_good(own: Places) -> None:
    before = content(own.out)
    (own.out / "index.html").unlink()
    assert build_site(own.results, own.boards, own.out).changed == 1
    (own.out / MANIFEST).write_text((own.out / MANIFEST).read_text().replace('"inputs":"', '"inputs":"x'))
    (own.out / "guide.html").write_text("half a pa")
    assert build_site(own.results, own.boards, own.out).changed == 1
    assert content(own.out) == before


def test_a_folder_that_holds_something_else_is_left_alone(own: Places, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no site"):
        build_site(own.results, own.boards, other)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_manifest_removes_nothing_outside(own: Places) -> None:
    treasure = own.out.parent / "treasure"
    treasure.write_text("gold")
    manifest = json.loads((own.out / MANIFEST).read_text())
    manifest["files"] |= {"../treasure": [4, "x"], str(treasure): [4, "x"]}
    (own.out / MANIFEST).write_text(json.dumps({**manifest, "inputs": ""}))
    build_site(own.results, own.boards, own.out)
    found = read_manifest(own.out)
    assert treasure.read_text() == "gold" and found is not None
    assert not any(".." in PurePosixPath(path).parts for path in found.files)


def test_a_board_without_a_table_names_the_command(own: Places) -> None:
    (own.boards / "toy" / "table.json").unlink()
    with pytest.raises(UserError) as error:
        build_site(own.results, own.boards, own.out)
    assert error.value.fix == "opdbench board build toy"


def test_what_cannot_be_read_is_said_on_the_first_page(own: Places) -> None:
    path = next(iter(sorted(own.results.rglob("record.json"))))
    path.write_text(path.read_text()[:100])
    done = build_site(own.results, own.boards, own.out)
    assert len(done.unread) == 1 and "Records that could not be read" in (own.out / "index.html").read_text()


def test_a_link_in_the_results_leads_nowhere(own: Places, tmp_path: Path) -> None:
    secret = tmp_path / "elsewhere" / "task" / "method" / "s0"
    secret.mkdir(parents=True)
    source = next(iter(sorted(own.results.rglob("record.json"))))
    (secret / "record.json").write_bytes(source.read_bytes())
    os.symlink(tmp_path / "elsewhere", own.results / "linked")
    build_site(own.results, own.boards, own.out)
    assert not (own.out / "records" / "linked").exists()


def test_samples_show_where_the_student_fails_and_refuse_other_files(own: Places) -> None:
    path = next(path for path in sorted(own.results.rglob("record.json")) if "three" in str(path))
    record = read_record(path)
    found = samples(path.parent, record.outcomes)
    assert len(found) == 4 and [sample.outputs["after"].score for sample in found] == [0, 0, 1, 1]
    assert all(set(sample.outputs) == {"before", "after", "teacher"} for sample in found)
    (path.parent / "after.jsonl.gz").write_bytes(b"something else")
    assert samples(path.parent, record.outcomes) == []


def test_what_a_probe_saw_is_drawn_and_what_is_no_series_left_out(own: Places) -> None:
    path = next(path for path in sorted(own.results.rglob("record.json")) if "three" in str(path))
    content = json.loads(path.read_text())
    content["probes"] = {
        "overlap": {"series": [{"step": step, "shared": step / 7, NASTY: 1.0} for step in range(5)], "at_last": [1, 2]},
        "words": {"series": [{"step": 0, "said": "much"}, {"step": 1, "said": "more"}]}, "none": {"series": 7}}
    path.write_text(json.dumps(content))
    build_site(own.results, own.boards, own.out)
    page = next(page for page in own.out.rglob("*.html") if "Seen by the probe" in page.read_text())
    text = page.read_text()
    assert text.count("Seen by the probe") == 1 and "Seen by the probe overlap" in text and "shared" in text
    assert "<script>alert" not in text


def test_a_board_page_says_what_the_table_says(places: Places) -> None:
    text = Tags(places.out / "boards" / "toy.html").text
    built = board.build(places.boards, "toy", board.read(places.results))
    for entry in json.loads(built.files["table.json"])["entries"]:
        gap = entry["ranked_by"] or entry["gap_recovered"]["mean"]
        assert f"{100 * gap['mean']:.1f}" in text and entry["method"] in text
    assert "diverged" in text and "A toy & <b>more</b>" in text


@pytest.mark.parametrize("name", ["index", "UP", "a/b", "..", "", "a b", "é", "x" * 300, "con:1", "toy@1"])
def test_any_name_is_a_file_name_of_its_own(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9_-]{1,80}", slug(name))
    assert len({slug(each) for each in (name, name + "@", name.swapcase() + "!", name + " ")}) == 4


def test_from_the_command_line(own: Places, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["board", "site", "--results", str(own.results), "--leaderboards", str(own.boards), "--papers",
             str(own.out.parent / "none"), "--out", str(own.out.parent / "cli")]
    assert main(words) == 0
    assert "open " in capsys.readouterr().out and (own.out.parent / "cli" / "index.html").is_file()
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["changed"] == 0
