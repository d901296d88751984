"""The report in a real Chromium: read from a file, with and without a mouse, by axe, on a phone and on paper."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python import sync_playwright as axe
from playwright import sync_api
from reported import FIGURES, SUITE
from support import debian

from engine import paths

pytestmark = pytest.mark.slow
DESKTOP, PHONE = 1280, 360
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@pytest.fixture(scope="module")
def address(reported_results: Path) -> str:
    """Where the report lies."""
    return (reported_results / paths.report(SUITE)).as_uri()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    """Debian's Chromium. Where it cannot be had the tests are skipped; in continuous integration they fail."""
    debian.require({"chromium": "chromium"})
    with sync_api.sync_playwright() as playwright:
        # Without its sandbox, which root may not use; it opens nothing but our file.
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), chromium_sandbox=False)
        yield chromium
        chromium.close()


class Tab:
    """A page in the browser, and what it asked for and complained of."""

    def __init__(self, browser: sync_api.Browser, address: str, width: int, scheme: str) -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page = context.new_page()
        self.page.set_default_timeout(10_000)
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)

    def open(self, selector: str = "details") -> None:
        """Open what is closed."""
        self.page.evaluate(f"document.querySelectorAll('{selector}').forEach((details) => {{ details.open = true; }})")


@pytest.fixture
def tab(browser: sync_api.Browser, address: str) -> Iterator[Tab]:
    tab = Tab(browser, address, DESKTOP, "light")
    yield tab
    assert tab.complaints == []
    assert [url for url in tab.asked if not url.startswith(("data:image/svg+xml", "file:"))] == []
    tab.page.context.close()


def column(tab: Tab, title: str) -> list[str]:
    """The texts of a column of the main table."""
    table = tab.page.locator("table.sortable", has=tab.page.get_by_role("button", name=title)).first
    number = [head.inner_text() for head in table.locator("thead th").all()].index(title)
    return [row.locator("th, td").nth(number).inner_text() for row in table.locator("tbody tr").all()]


def test_it_loads_from_a_file_and_asks_for_nothing_else(tab: Tab, address: str) -> None:
    assert [url for url in tab.asked if not url.startswith("data:")] == [address]
    assert tab.page.title() == f"Report: {SUITE}"
    images = tab.page.locator("main img").all()
    assert len(images) == len(FIGURES)
    for image in images:
        assert image.evaluate("image => image.complete && image.naturalWidth > 300")
        assert len(image.get_attribute("alt") or "") > 60


def test_no_name_or_message_of_the_results_is_run(tab: Tab) -> None:
    tab.open()
    assert tab.page.title() == f"Report: {SUITE}"
    assert tab.page.locator("img[src=x]").count() == 0


def test_a_click_on_a_header_sorts_by_numbers_and_says_how(tab: Tab) -> None:
    def means() -> list[float]:
        return [float(text.split()[0]) for text in column(tab, "Average")]

    header = tab.page.locator("table.sortable thead th", has_text=re.compile("^Average$")).first
    given = means()
    header.get_by_role("button").click()
    sync_api.expect(header).to_have_attribute("aria-sort", "descending")
    assert means() == sorted(given, reverse=True) != given
    header.get_by_role("button").click()
    sync_api.expect(header).to_have_attribute("aria-sort", "ascending")
    assert means() == sorted(given)


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_keys_sort_as_well_and_what_has_no_number_comes_last(tab: Tab, key: str) -> None:
    runs = tab.page.locator("table.sortable", has_text="Runs of quickstart")
    header = runs.locator("thead th", has_text=re.compile("^Average, %"))
    header.get_by_role("button").focus()
    for order in ("descending", "ascending"):
        tab.page.keyboard.press(key)
        sync_api.expect(header).to_have_attribute("aria-sort", order)
        sync_api.expect(runs.locator("tbody tr").last).to_contain_text("diverged")
    assert tab.page.evaluate("document.activeElement.innerText") == "Average, %"


def test_every_figure_opens_by_key_zooms_and_gives_the_focus_back_at_escape(tab: Tab) -> None:
    dialog = tab.page.locator("dialog")
    for figure in tab.page.locator("button.figure").all():
        figure.focus()
        tab.page.keyboard.press("Enter")
        sync_api.expect(dialog).to_be_visible()
        image = dialog.locator("img")
        assert image.get_attribute("alt") == figure.locator("img").get_attribute("alt")
        before = image.bounding_box()
        dialog.get_by_role("slider", name="Zoom").focus()
        tab.page.keyboard.press("End")
        after = image.bounding_box()
        assert before is not None
        assert after is not None
        assert after["width"] > 3 * before["width"]
        tab.page.keyboard.press("Escape")
        sync_api.expect(dialog).to_be_hidden()
        sync_api.expect(figure).to_be_focused()


def test_an_enlarged_figure_fills_the_window(tab: Tab) -> None:
    tab.page.locator("button.figure").first.click()
    window, figure = (tab.page.locator(selector).bounding_box() for selector in ("dialog", "dialog .wide"))
    assert window is not None
    assert figure is not None
    assert figure["y"] + figure["height"] > window["y"] + window["height"] - 3


def test_a_phone_shows_figures_as_drawn_for_a_column_and_enlarges_the_whole(
    browser: sync_api.Browser, address: str
) -> None:
    tab = Tab(browser, address, PHONE, "light")
    figure = tab.page.locator("button.figure").first
    box = figure.locator("img").bounding_box()
    assert box is not None
    assert figure.locator("img").evaluate("image => image.naturalWidth") < 1.1 * box["width"]  # so nothing is tiny
    figure.click()
    shown = tab.page.locator("dialog img")
    assert shown.evaluate("image => image.naturalWidth") > 1.5 * PHONE
    assert tab.complaints == []
    tab.page.context.close()


def test_the_tab_key_reaches_everything_and_the_focus_shows(tab: Tab) -> None:
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.textContent") == "Skip to the content"
    reached, hidden = [], 0
    for _ in range(300):
        tab.page.keyboard.press("Tab")
        place = tab.page.evaluate(
            """() => {
              const element = document.activeElement;
              const style = getComputedStyle(element);
              const shows = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
              return element === document.body ? null : [element.tagName, element.className, shows];
            }"""
        )
        if place is None:
            break
        reached.append((place[0], place[1]))
        hidden += not place[2]
    assert hidden == 0
    assert reached.count(("BUTTON", "figure")) == len(FIGURES)
    for selector, tag in {"thead button": "BUTTON", "summary": "SUMMARY", "a[href]": "A"}.items():
        shown = sum(element.is_visible() for element in tab.page.locator(selector).all())
        assert sum(name == tag for name, _ in reached) >= shown - 1  # the link to skip was the first


@pytest.mark.parametrize(("width", "scheme"), [(DESKTOP, "dark"), (PHONE, "light")])
def test_axe_finds_nothing(browser: sync_api.Browser, address: str, width: int, scheme: str) -> None:
    tab = Tab(browser, address, width, scheme)
    tab.open("details:not(.run), section > details.run:nth-of-type(-n+2)")
    found = axe.Axe().run(tab.page, options={"runOnly": RULES})
    assert found.violations_count == 0, found.generate_report()
    tab.page.locator("button.figure").first.click()
    found = axe.Axe().run(tab.page, context="dialog", options={"runOnly": RULES})
    assert found.violations_count == 0, found.generate_report()
    tab.page.context.close()


@pytest.mark.parametrize("width", [320, PHONE, 768, DESKTOP])
def test_the_page_never_scrolls_sideways(browser: sync_api.Browser, address: str, width: int) -> None:
    tab = Tab(browser, address, width, "light")
    tab.open()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    if width == PHONE:
        boxes = tab.page.locator(".wide").all()
        assert any(box.evaluate("box => box.scrollWidth > box.clientWidth") for box in boxes)
    tab.page.context.close()


def test_the_theme_is_the_systems_until_one_is_chosen_and_is_remembered(tab: Tab) -> None:
    def ground() -> str:
        return str(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))

    button = tab.page.get_by_role("button", name="Dark")
    light = ground()
    sync_api.expect(button).to_have_attribute("aria-pressed", "false")
    button.click()
    sync_api.expect(button).to_have_attribute("aria-pressed", "true")
    dark = ground()
    assert dark != light
    tab.page.reload()
    assert ground() == dark
    sync_api.expect(button).to_have_attribute("aria-pressed", "true")


def test_a_link_to_a_run_opens_it(tab: Tab) -> None:
    link = tab.page.get_by_role("link", name="the run").first
    target = tab.page.locator(f"[id='{(link.get_attribute('href') or '').removeprefix('#')}']")
    sync_api.expect(target.locator("dl").first).to_be_hidden()
    link.click()
    sync_api.expect(target.locator("dl").first).to_be_visible()


def printed(tab: Tab, file: Path, **paper: str) -> str:
    """Print, and return the words."""
    tab.page.pdf(path=file, **paper)
    text = subprocess.run(["pdftotext", "-layout", str(file), "-"], capture_output=True, text=True, check=True).stdout
    return " ".join(text.split())


def test_on_paper_are_all_sections_and_whole_tables(tab: Tab, tmp_path: Path) -> None:
    debian.require({"pdftotext": "poppler-utils"})
    file = tmp_path / "report.pdf"
    words = printed(tab, file, format="A4")
    for heading in tab.page.locator("h1, main h2, main h3, main h4").all():
        assert " ".join((heading.inner_text()).split()) in words
    for cell in tab.page.locator("section.item > .wide td[data-sort]").all_inner_texts():
        assert cell in words
    # On paper so small that the list of runs takes several pages, each has the list's head.
    # A head of two lines comes out of the file line by line.
    assert printed(tab, file, width="210mm", height="50mm").count("Signs of") > 1
