"""The page in a browser without a window, used as a person would with mouse, keys and fields."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from poa.report.content import Content
from poa.report.page import html
from report.pages import FEW, HOSTILE, MANY, page, point

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
Open = Callable[..., "Opened"]


class Opened(NamedTuple):
    """A page in the browser, what it asked for, and what went wrong there."""

    page: Any
    requests: list[str]
    errors: list[str]

    def texts(self, selector: str) -> list[str]:
        found: list[str] = self.page.locator(selector).all_text_contents()
        return found

    def answer(self) -> str:
        return str(self.page.inner_text("#answer"))

    def names(self) -> list[str]:
        """First cells of the rows that are shown."""
        return self.texts("tbody tr:not([hidden]) td:first-child")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra `dev`, is not installed")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)} is found")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found)
        yield started
        started.close()


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Open a page, of the width and in the colours that are given."""
    contexts = []

    def opened(content: Content, *, width: int = 1280, colours: str = "light") -> Opened:
        file = tmp_path / "a page.html"
        file.write_text(html(f"Sizes of {HOSTILE}", HOSTILE, content), encoding="utf-8")
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=colours))
        shown = contexts[-1].new_page()
        requests: list[str] = []
        errors: list[str] = []
        shown.on("request", lambda request: requests.append(request.url))
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.on("console", lambda message: errors.append(message.text))
        shown.goto(file.as_uri())
        return Opened(shown, requests, errors)

    yield opened
    for context in contexts:
        context.close()


def test_a_budget_is_typed_drawn_and_cleared(show: Open) -> None:
    shown = show(FEW)
    assert shown.answer() == (
        "The best of 5: 128x6, top1@20 75.0 ± 1.0 %, 4.00 ms. Within its interval and cheaper: 96x6."
    )
    assert shown.page.locator("circle.out").count() == 0
    shown.page.get_by_label("ms, at most").fill("2.5")
    assert shown.answer() == (
        "The best of 3: 96x3, top1@20 72.0 ± 1.0 %, 1.50 ms. 1 of all sizes are not measured and left out."
    )
    assert shown.names() == ["64x3", "64x6", "96x3"]
    assert shown.page.locator("circle.out").count() == 2
    assert shown.page.inner_text("#detail h2") == "96x3"
    shown.page.fill("#least", "80")
    assert shown.answer().startswith("No size is within the budget.")
    shown.page.click("#clear")
    assert len(shown.names()) == 6
    box = shown.page.locator("#plot svg").bounding_box()
    places = {
        name: shown.page.locator("circle.point").nth(at).bounding_box() for at, name in ((1, "96x3"), (3, "96x6"))
    }
    right = (places["96x3"]["x"] + places["96x6"]["x"]) / 2
    shown.page.mouse.move(box["x"] + 60, box["y"] + 60)
    shown.page.mouse.down()
    shown.page.mouse.move(right, places["96x3"]["y"] + 15)
    shown.page.mouse.up()
    assert shown.names() == ["96x3"]
    assert 1.5 < float(shown.page.get_by_label("ms, at most").input_value()) < 3
    assert 70 < float(shown.page.input_value("#least")) < 72
    assert shown.errors == []


def test_front_other_axes_and_a_subject_that_is_hidden(show: Open) -> None:
    shown = show(page(*FEW.points, point("64x3", 0.5, 90.0, subject=1), others=(HOSTILE,)))
    front = shown.page.get_attribute(".front", "d")
    assert front.count("H") == 0, "the cheapest point is the best, so the front is that point"
    assert f"{HOSTILE} 64x3" in shown.answer()
    shown.page.locator("#legend input").nth(1).uncheck()
    assert shown.page.get_attribute(".front", "d").count("H") == 3
    assert "mine 128x6" in shown.answer()
    shown.page.select_option("#x", label="parameters in millions")
    shown.page.select_option("#y", label="linear top1")
    assert shown.answer().startswith("The best of 6: mine 64x6, linear top1 31.0 %, 3.84 M parameters.")
    assert shown.errors == []


def test_keys_table_and_details(show: Open) -> None:
    shown = show(FEW)
    shown.page.focus("#plot svg")
    shown.page.keyboard.press("ArrowLeft")
    assert shown.page.inner_text("#detail h2") == "96x6"
    shown.page.keyboard.press("Home")
    assert shown.page.inner_text("#detail h2") == "64x3"
    assert shown.texts("#detail pre") == ["poa extract mine --size 64x3"]
    assert shown.page.locator("#detail .kept").count() == 3
    shown.page.keyboard.press("Escape")
    assert shown.page.inner_text("#detail h2") == "128x6"
    shown.page.get_by_role("button", name="top1@20").click()
    assert shown.names() == ["128x6 *", "96x6", "128x3", "96x3", "64x3", "64x6"]
    shown.page.get_by_role("button", name="ms", exact=True).click()
    shown.page.get_by_role("button", name="ms", exact=True).click()
    assert shown.names() == ["128x6 *", "96x6", "64x6", "96x3", "64x3", "128x3"], "what is not known comes last"
    shown.page.focus("tr.chosen")
    shown.page.keyboard.press("ArrowDown")
    assert shown.page.inner_text("#detail h2") == "96x6"
    assert shown.page.evaluate("document.activeElement.firstChild.textContent") == "96x6"
    shown.page.fill("#filter", "x3")
    assert shown.names() == ["96x3", "64x3", "128x3"]
    shown.page.locator("circle").first.click()
    assert shown.page.inner_text("#detail h2") == "64x3"
    assert shown.errors == []


def test_hostile_names_are_text_and_nothing_is_asked_for(show: Open) -> None:
    shown = show(page(point("64x3", 1.0, 70.0), point("64x3", 2.0, 71.0, subject=1), others=(HOSTILE,)))
    assert shown.page.evaluate("window.hacked") is None
    assert shown.names() == ["mine 64x3", f"{HOSTILE} 64x3"]
    assert HOSTILE in shown.page.inner_text("h1")
    assert shown.page.locator("img").count() == 0
    assert "ln(prototypes) = 4.20" in shown.page.text_content("#curves")
    assert shown.errors == []
    assert len(shown.requests) == 1, shown.requests
    shown.page.evaluate("document.body.append(Object.assign(new Image(), {src: 'http://127.0.0.1:9/'}))")
    assert shown.page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 'refused')") == "refused"
    assert sum("violates the" in error and "Content Security Policy" in error for error in shown.errors) >= 2


def test_hundreds_of_sizes_on_a_phone_in_the_dark(show: Open) -> None:
    shown = show(MANY, width=390, colours="dark")
    assert shown.page.locator("circle.point").count() == 465
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390
    shown.page.get_by_label("ms, at most").fill("5")
    inside = [point for point in MANY.points if point.costs["ms 0"] <= 5]
    assert len(shown.names()) == len(inside) == 465 - shown.page.locator("circle.out").count()
    assert "64x7" in shown.answer()
    background, ink = (
        shown.page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    assert sum(map(int, background[4:-1].split(","))) < 100 < 600 < sum(map(int, ink[4:-1].split(",")))
    assert shown.errors == []
