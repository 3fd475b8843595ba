"""The pages that a run and a comparison write, in a real headless browser: at every width, light, dark and on paper."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from flows.__main__ import main
from models.run import RunRecord

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")]
WIDTHS = {"phone": 390, "tablet": 820, "desk": 1280}


@dataclass
class Pages:
    """The browser, and what the pages that it opened complained of or asked a network for."""

    browser: "Browser"
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def open(self, file: Path, width: int = 1280, scheme: Literal["light", "dark"] = "light") -> "Page":
        """The page, once its charts are drawn."""
        page = self.browser.new_page(viewport={"width": width, "height": 850}, color_scheme=scheme)
        page.on("console", lambda said: self.complaints.append(said.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.goto(file.as_uri())
        page.wait_for_function("[...document.querySelectorAll('.chart')].every(one => one.querySelector('.main-svg'))")
        return page


@pytest.fixture(scope="module")
def browser(report: Path, comparison: Path) -> Iterator["Browser"]:
    """The browser; its driver runs an event loop in this thread, where no flow could run any more."""
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def pages(browser: "Browser") -> Pages:
    return Pages(browser)


@pytest.fixture(scope="module")
def report(finished_run: tuple[Path, RunRecord]) -> Path:
    """The report of a real run."""
    _, record = finished_run
    assert record.report
    return record.report


@pytest.fixture(scope="module")
def comparison(finished_run: tuple[Path, RunRecord], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a real comparison."""
    page = tmp_path_factory.mktemp("comparison") / "page.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_HOME", str(finished_run[0]))
        assert main(["compare", "base", "sft", "--html", str(page)]) == 0
    return page


@pytest.fixture(params=["report", "comparison"])
def file(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_at_every_width_in_light_and_dark(
    pages: Pages, file: Path, width: int, scheme: Literal["light", "dark"]
) -> None:
    page = pages.open(file, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".chart").count() >= 2
    ink, paper = (
        page.evaluate(f"getComputedStyle(document.body).{name}.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)")
        for name in ("color", "backgroundColor")
    )
    bright, dark = (paper, ink) if scheme == "light" else (ink, paper)
    assert bright > 600
    assert dark < 300
    assert pages.complaints == []
    assert pages.requests == [file.as_uri()]
    page.close()


def test_the_first_screen_answers_what_people_decide_by(pages: Pages, report: Path) -> None:
    page = pages.open(report)
    answers = {one.split("\n")[0]: one for one in page.locator(".answer").all_inner_texts()}
    assert {"Better than the base model?", "May it be promoted?", "What did it cost?"} <= set(answers)
    assert "What to look at?" in answers
    assert "You decide" in answers["May it be promoted?"]
    lowest = page.locator(".answer").last.bounding_box()
    assert lowest
    assert lowest["y"] + lowest["height"] < 850
    assert "of training" in answers["What did it cost?"]
    assert page.locator("#comparisons .contrast").count() >= 1
    assert page.locator("#samples").count() == page.locator("#data").count() == 1
    page.close()


@pytest.mark.parametrize("width", WIDTHS.values(), ids=list(WIDTHS))
def test_every_part_opens(pages: Pages, report: Path, width: int) -> None:
    page = pages.open(report, width)
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for link in page.locator("a[href^='#']").all():
        assert page.locator(link.get_attribute("href") or "").count() == 1
    assert pages.complaints == []
    page.close()


def test_it_prints(pages: Pages, file: Path) -> None:
    page = pages.open(file, scheme="dark")
    printed = page.pdf(format="A4")
    assert printed.startswith(b"%PDF")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert pages.complaints == []
    page.close()


def test_charts_hold_what_was_measured(pages: Pages, report: Path, finished_run: tuple[Path, RunRecord]) -> None:
    page = pages.open(report)
    figures = json.loads(page.locator("#figures").text_content() or "")
    lengths = {trace["name"]: trace["y"] for trace in figures["spread-length"]["data"]}
    for result in finished_run[1].evaluations:
        if result.checkpoint.stage == "sft":
            assert lengths["SFT"] == [sample.tokens for sample in result.samples if sample.tokens]
    page.close()
