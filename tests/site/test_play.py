"""What a record's page shows of a stranger's folder: its film, when it is a film and nothing else, and prompts."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest

from opdbench.schema.spec import Recipe
from opdbench.site.build import build_site
from opdbench.site.play import LARGEST, check, play_file
from opdbench.site.prompts import prompts_of
from opdbench.site.records import _samples
from opdbench.site.samples import Output, Sample
from opdbench.store import RECORD, read_record
from opdbench.untrusted import PLAY_BYTES, RefusedError
from tests.site.conftest import NASTY, Places
from tests.site.test_build import Tags

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install -e '.[test]'")
WALKS = sorted((Path(__file__).resolve().parents[2] / "results" / "text-maze" / "dagger").glob("s0-*"))[0]


def gif(side: int = 20, frames: int = 3, **settings: object) -> bytes:
    stream = io.BytesIO()
    images = [Image.new("RGB", (side, side), (80 * number, 0, 0)) for number in range(frames)]
    images[0].save(stream, "GIF", save_all=True, append_images=images[1:], duration=40, loop=0, **settings)
    return stream.getvalue()


FILM = gif()
SPOILT = {
    "no GIF": b"<html><script>alert(1)</script>" + FILM,
    "png": b"\x89PNG\r\n\x1a\n" + FILM,
    "empty": b"",
    "head alone": FILM[:13],
    "cut short": FILM[:-30],
    "without its end": FILM[:-1],
    "behind its end": FILM + b"<script>alert(1)</script>",
    "a comment": gif(comment=b"<script>alert(1)</script>"),
    "another program's data": FILM.replace(b"NETSCAPE2.0", b"XMP DataXMP"),
    "too wide": FILM[:6] + (LARGEST + 1).to_bytes(2, "little") + FILM[8:],
    "pictures beyond it": FILM[:6] + b"\x01\x00\x01\x00" + FILM[10:],
    "no picture": FILM[:13 + (3 << (FILM[10] & 7) + 1)] + b";",
}


def test_a_film_is_let_through() -> None:
    assert check(FILM) == (20, 20) and check(gif(frames=1)) == (20, 20)


@pytest.mark.parametrize("fault", SPOILT)
def test_what_is_no_film_or_more_than_one_is_not(fault: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        check(SPOILT[fault])
    (tmp_path / "play.gif").write_bytes(SPOILT[fault])
    assert play_file(tmp_path, "records/a.html") is None


def test_every_cut_and_every_changed_byte_of_a_film_is_answered() -> None:
    refused = 0
    for place in range(len(FILM)):
        for content in (FILM[:place], FILM[:place] + bytes([FILM[place] ^ 0xFF]) + FILM[place + 1:]):
            try:
                check(content)
            except RefusedError:
                refused += 1
    assert refused > len(FILM)


def test_a_link_a_pipe_or_a_large_file_is_no_film(tmp_path: Path) -> None:
    film = tmp_path / "film.gif"
    film.write_bytes(FILM)
    (tmp_path / "play.gif").symlink_to(film)
    assert play_file(tmp_path, "a.html") is None
    (tmp_path / "play.gif").unlink()
    (tmp_path / "play.gif").write_bytes(FILM + bytes(PLAY_BYTES))
    assert play_file(tmp_path, "a.html") is None
    shutil.copy(film, tmp_path / "play.gif")
    shown = play_file(tmp_path, "records/a.html")
    assert shown is not None and shown.page == ("records/a.gif", FILM)


def test_a_page_shows_the_film_of_its_run_when_it_is_asked_to(own: Places) -> None:
    folder = next(path.parent for path in sorted(own.results.rglob(RECORD)) if "pole" in str(path))
    (folder / "play.gif").write_bytes(FILM)
    build_site(own.results, own.boards, own.out)
    (copied,) = own.out.rglob("*.gif")
    page = copied.with_suffix(".html")
    (image,) = [attributes for tag, attributes in Tags(page).tags if tag == "img"]
    assert (page.parent / str(image["src"])).resolve() == copied.resolve() and copied.read_bytes() == FILM
    assert "teacher" in str(image["alt"]) and (image["width"], image["height"]) == ("20", "20")
    text = page.read_text()
    assert text.index("<details") < text.index("<img") < text.index("</details>") and "<details open" not in text
    (folder / "play.gif").unlink()
    done = build_site(own.results, own.boards, own.out)
    assert done.removed == 1 and not list(own.out.rglob("*.gif")) and "<img" not in page.read_text()


# -------------------------------------------------------------------------------------------------------------- prompts


def recipe(**changes: object) -> Recipe:
    return read_record(WALKS / RECORD).recipe.model_copy(update=changes)


def test_prompts_are_made_again_by_tasks_that_make_their_problems() -> None:
    prompts = prompts_of(recipe())
    assert len(prompts) == 480 and prompts["text-maze-test-2"] == "rx:"


@pytest.mark.parametrize("changes", [
    {"task_sha256": "0" * 64}, {"task": "text-maze@99"}, {"task": "nobodys@1"}, {"task": "gsm8k@1"},
    {"task": "cartpole@1"}, {"task_params": {"training_slip": NASTY}}, {"task_params": {"unknown": 1}}])
def test_there_are_none_of_other_problems_nor_of_data_sets(changes: dict[str, object]) -> None:
    assert prompts_of(recipe(**changes)) == {}


def test_a_prompt_stands_above_what_was_written_and_is_text() -> None:
    sample = Sample(NASTY, {"after": Output(0.0, 3, NASTY)})
    words = str(_samples([sample], {NASTY: f"{NASTY} \x1b[31m \u202eturned"}))
    assert "<script" not in words and "<img" not in words and words.count("&lt;script&gt;alert(1)") == 3
    assert "\x1b" not in words and "\u202e" not in words and "\ufffd[31m \ufffdturned" in words
    assert "prompt" not in str(_samples([sample], {}))


def test_a_page_of_texts_shows_its_prompts(own: Places) -> None:
    shutil.copytree(WALKS, own.results / "text-maze" / "dagger" / WALKS.name)
    build_site(own.results, own.boards, own.out)
    page = next(page for page in own.out.rglob("*.html") if "text-maze-test-0" in page.read_text())
    assert page.read_text().count("<figcaption>prompt</figcaption>") == page.read_text().count('class="sample"') > 1
