"""The page in a real browser: quiet console, no request, every section visible and drawn, keyboard, names, light and dark."""

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from report_documents import EVIL, minimal_document

from evaluation.inputs import ReportInputs
from evaluation.report import live, page
from fusechat.config import load_config

pytestmark = pytest.mark.skipif(
    browser.BINARY is None, reason=f"no Chromium here: none of {', '.join(browser.NAMES)} is on the path"
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: FUSECHAT_PICTURES, or the tests' own folder."""
    return Path(os.environ.get("FUSECHAT_PICTURES") or tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def opened() -> Iterator[browser.Browser]:
    with browser.opened() as found:
        yield found


@pytest.fixture
def report(run_file: Path, tmp_path: Path) -> Path:
    page.write(minimal_document(load_config(run_file)), tmp_path / "index.html")
    return tmp_path / "index.html"


@pytest.mark.parametrize(("size", "dark"), [(browser.DESKTOP, False), (browser.PHONE, True)])
def test_page_is_quiet_whole_and_readable(
    opened: browser.Browser, report: Path, pictures: Path, size: tuple[int, int], dark: bool
) -> None:
    opened.complaints, opened.requests = [], []
    opened.open(report, size=size, dark=dark)
    opened.picture(
        pictures / f"report-{'phone' if size == browser.PHONE else 'desktop'}-{'dark' if dark else 'light'}.png"
    )
    assert opened.complaints == [] and opened.requests == [report.as_uri()]
    sections = opened.value(
        "[...document.querySelectorAll('section')].map((s) => [s.id, s.getBoundingClientRect().height, "
        "s.querySelector('h2').getClientRects().length])"
    )
    assert len(sections) == 16 and all(height > 60 and heads for _, height, heads in sections), sections
    unfolded = "!place.closest('details:not([open])')"
    places = f"[...document.querySelectorAll('.chart')].filter((place) => {unfolded})"
    drawn = opened.value(f"{places}.map((place) => !!place.querySelector('.main-svg') && place.offsetHeight > 60)")
    assert len(drawn) >= 8 and all(drawn)
    assert opened.value("document.documentElement.scrollWidth <= window.innerWidth"), "the page scrolls sideways"
    ink, paper = opened.value(
        "[getComputedStyle(document.querySelector('.chart text')).fill, getComputedStyle(document.body).backgroundColor]"
    )
    assert contrast(ink, paper) > 7


def contrast(one: str, other: str) -> float:
    """Of two CSS colours, as WCAG defines it."""

    def luminance(colour: str) -> float:
        parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_hostile_text_is_shown_as_text_and_runs_nothing(opened: browser.Browser, report: Path) -> None:
    opened.open(report)
    assert opened.value("document.querySelectorAll('main script, main iframe, main img').length") == 0
    assert EVIL in opened.value("document.querySelector('#samples').textContent")
    labels = opened.value("[...document.querySelectorAll('#loss .chart text')].map((text) => text.textContent)")
    assert any(label.startswith('<script>alert("x")') for label in labels), labels


def test_charts_in_folded_parts_are_drawn_when_they_are_opened(opened: browser.Browser, report: Path) -> None:
    opened.open(report)
    count = "document.querySelectorAll('#merge .main-svg').length"
    before = opened.value(count)
    opened.value(
        "document.querySelector('#merge details').open = true; new Promise((done) => setTimeout(() => done(1), 500))"
    )
    assert opened.value(count) > before > 0


def test_keyboard_and_screen_reader_find_their_way(opened: browser.Browser, report: Path) -> None:
    opened.open(report)
    opened.press("Tab")
    assert opened.value("document.activeElement.textContent") == "Skip to the report"
    opened.press("Tab")
    assert opened.value("document.activeElement.closest('nav') !== null")
    assert opened.value("document.documentElement.lang") == "en"
    heads = opened.value("[...document.querySelectorAll('h1, h2, h3')].map((head) => Number(head.tagName[1]))")
    assert heads.count(1) == 1 and heads[0] == 1 and all(b - a <= 1 for a, b in itertools.pairwise(heads))
    nodes = opened.call("Accessibility.getFullAXTree")["nodes"]
    roles = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    images = [name for role, name in roles if role in ("image", "img")]
    assert len(images) >= 8 and all(":" in name for name in images), f"each chart says what it shows: {images}"
    assert {"main", "navigation", "heading", "table", "columnheader", "rowheader"} <= {role for role, _ in roles}


def test_page_of_a_run_that_goes_on_opens_quietly(opened: browser.Browser, run_file: Path, pictures: Path) -> None:
    config = load_config(run_file)
    (config.run.output / "logs").mkdir(parents=True)
    lines = [{"time": 1.0 + n, "event": "done", "rows": 30, "tokens": 60, "seconds": 1.0} for n in range(9)]
    (config.run.output / "logs" / "extract.llama.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    live.write(ReportInputs.of(config), "extract")
    opened.complaints = []
    opened.open(config.report_path / "index.html")
    opened.picture(pictures / "report-live.png")
    assert opened.complaints == []
    assert "The run goes on: extract." in opened.value("document.querySelector('[role=status]').textContent")
    assert opened.value("document.querySelectorAll('#extraction .main-svg').length") > 0
