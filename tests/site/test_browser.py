"""The site in a real browser, headless: from files, as from any address; nothing is asked of any network.

Needs Playwright (`pip install -e '.[test]'`) and Chromium (Debian: `apt-get install chromium`; elsewhere
`playwright install chromium`). `OPDBENCH_CHROMIUM` names another browser of that family.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from opdbench.site.serve import server
from tests.site.conftest import Places

sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install -e '.[test]'")
CHROMIUM = os.environ.get("OPDBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install chromium, or name one with OPDBENCH_CHROMIUM")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Containers have no user namespaces for its sandbox; the pages are our own.
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


class Watched:
    """A tab that notes what a visitor would not see: errors, and requests that leave."""

    def __init__(self, browser: Any, **settings: Any) -> None:
        self.context = browser.new_context(**settings)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.left: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text) if message.type != "log" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.left.append(request.url)
                     if not request.url.startswith(("file:", "data:", "http://127.0.0.1:")) else None)

    def open(self, address: str) -> Any:
        self.page.goto(address, timeout=120_000)
        return self.page


@pytest.fixture
def tab(browser: Any) -> Iterator[Watched]:
    watched = Watched(browser)
    yield watched
    watched.context.close()
    assert watched.errors == [] and watched.left == []


def address(places: Places, path: str) -> str:
    return (places.out / path).as_uri()


def methods_in(page: Any) -> list[str]:
    return [text.split("\n")[0] for text in page.locator("#board tbody tr:visible th a").all_inner_texts()]


def test_every_page_loads_in_the_dark_on_a_phone(browser: Any, places: Places) -> None:
    watched = Watched(browser, color_scheme="dark", viewport={"width": 390, "height": 844})
    for path in sorted(places.out.rglob("*.html")):
        page = watched.open(path.as_uri())
        assert page.locator("h1").count() == 1 and page.title().endswith("opdbench")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, (path, wide)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == "rgb(22, 24, 27)" and watched.errors == [] and watched.left == []
    watched.context.close()


def test_sorting_by_click_and_by_keyboard(tab: Watched, places: Places) -> None:
    page = tab.open(address(places, "boards/toy.html"))
    assert methods_in(page) == ["one", "two", "three", "few"]
    header = page.locator("#board thead th", has_text="method")
    header.get_by_role("button").click()
    assert methods_in(page) == ["few", "one", "three", "two"] and header.get_attribute("aria-sort") == "ascending"
    header.get_by_role("button").press("Enter")
    assert methods_in(page) == ["two", "three", "one", "few"] and header.get_attribute("aria-sort") == "descending"
    page.get_by_role("button", name="detectable, %").press("Space")
    assert methods_in(page)[-1] in ("one", "few"), "rows without a value come last"
    assert page.locator("#board thead th[aria-sort]").count() == 1


def test_filtering_says_how_many_are_left(tab: Watched, places: Places) -> None:
    page = tab.open(address(places, "boards/toy.html"))
    page.get_by_label("Filter").fill("t")
    page.get_by_label("Filter").fill("two")
    assert methods_in(page) == ["two"] and page.locator("output").inner_text() == "1 of 4 entries"
    page.get_by_label("Filter").fill("")
    page.get_by_label("ranked only").check()
    assert methods_in(page) == ["one", "two", "three"] and page.locator("output").inner_text() == "3 of 4 entries"
    page.get_by_label("ranked only").uncheck()
    assert len(methods_in(page)) == 4 and page.locator("output").inner_text() == "4 entries"


def test_from_the_first_page_to_a_record_by_keyboard_and_links(tab: Watched, places: Places) -> None:
    page = tab.open(address(places, "index.html"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.get_by_role("link", name="A pole").first.click()
    page.get_by_role("link", name="pole", exact=True).first.click()
    assert page.locator("h1").inner_text() == "pole"
    page.locator("a.seed").first.click()
    assert "seed 0" in page.locator("h1").inner_text()
    assert page.get_by_role("button", name="Copy").count() == 1 and page.locator(".command code").count() == 1


def test_what_is_needed_to_hear_a_page(tab: Watched, places: Places) -> None:
    """Language, landmarks, captions, scopes, labels, and regions that a keyboard can scroll."""
    for path in ("index.html", "boards/toy.html", "methods/one.html", "tasks.html", "guide.html"):
        page = tab.open(address(places, path))
        found = page.evaluate("""() => ({
            lang: document.documentElement.lang, main: document.querySelectorAll('main').length,
            bare: [...document.querySelectorAll('table')].filter(each => !each.caption).length,
            scopes: document.querySelectorAll('th:not([scope])').length,
            deaf: [...document.querySelectorAll('.scroll')].filter(
                each => each.tabIndex !== 0 || !each.ariaLabel).length,
            names: [...document.querySelectorAll('button, a, input')].filter(each => !(
                each.textContent.trim() || each.getAttribute('aria-label') || each.labels?.length)).length,
            doubled: [...document.querySelectorAll('[id]')].map(each => each.id).filter(
                (id, i, all) => all.indexOf(id) !== i),
            levels: [...document.querySelectorAll('h1,h2,h3')].map(each => +each.tagName[1])})""")
        levels = found.pop("levels")
        assert found == {"lang": "en", "main": 1, "bare": 0, "scopes": 0, "deaf": 0, "names": 0, "doubled": []}, path
        assert levels[0] == 1 and all(b - a <= 1 for a, b in pairwise(levels)), path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(browser: Any, places: Places, scheme: str) -> None:
    """WCAG AA: 4.5 to 1, for every text on a board and a record, under its nearest opaque background."""
    watched = Watched(browser, color_scheme=scheme)
    failed = next(path for path in places.out.rglob("s5-*.html"))
    for path in (address(places, "boards/toy.html"), failed.as_uri()):
        page = watched.open(path)
        assert page.evaluate(CONTRAST) == []
    watched.context.close()


CONTRAST = """() => {
  const parse = (color) => color.match(/[0-9.]+/g).map(Number);
  const light = (color) => parse(color).slice(0, 3)
    .map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => { for (; node; node = node.parentElement) {
    const color = parse(getComputedStyle(node).backgroundColor); if (color.length < 4 || color[3] > 0.9)
    return `rgb(${color.slice(0, 3)})`; } return 'rgb(255,255,255)'; };
  return [...document.querySelectorAll('body *')].filter(node => [...node.childNodes].some(
    child => child.nodeType === 3 && child.textContent.trim()) && node.checkVisibility()
      && !node.closest('svg,script,.hidden,.skip'))
    .map(node => { const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((x, y) => y - x);
      return [(a + 0.05) / (b + 0.05), node.tagName + '.' + node.className, node.textContent.slice(0, 30)]; })
    .filter(([ratio]) => ratio < 4.5); }"""


def test_without_scripts_a_page_is_whole(browser: Any, places: Places) -> None:
    watched = Watched(browser, java_script_enabled=False)
    page = watched.open(address(places, "boards/toy.html"))
    assert methods_in(page) == ["one", "two", "three", "few"] and page.locator("svg.chart").count() > 0
    assert not page.locator(".controls").is_visible()
    watched.context.close()


def test_under_a_path_of_a_server(tab: Watched, places: Places, tmp_path: Path) -> None:
    shutil.copytree(places.out, tmp_path / "deep" / "below")
    with server(tmp_path, 0) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        page = tab.open(f"http://127.0.0.1:{running.server_port}/deep/below/index.html")
        page.get_by_role("link", name="A pole").first.click()
        assert page.locator("h1").inner_text() == "A pole" and page.evaluate("document.styleSheets.length") == 1
        running.shutdown()
