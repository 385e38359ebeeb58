"""The page of dlcalc-report in a real browser, without a network."""

from __future__ import annotations

import os
import re
import shutil

import pytest
from click.testing import CliRunner

from dlcalc.dlcalc_report import main
from tests.studies import EVIL, evil_model, searched

pytest.importorskip("plotly", reason="the page is drawn with plotly")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
OF_EVERY_STUDY = {"pareto", "heat", "parallel", "step_terms", "memory_terms", "pipeline", "sensitivity", "refusals"}
OF_SEVERAL = {"scaling_tokens", "scaling_mfu", "scaling_days", "scaling_cost", "machines"}


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed here")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages by what is special about their study."""
    folder = tmp_path_factory.mktemp("studies")
    studies = {
        "several": searched(folder, "several", hardware="[h100, a100_80gb]", devices="[16, 32]"),
        "one": searched(folder, "one", devices="64", space="{micro_batch: [1, 2, 4]}"),
        "evil": searched(folder, "evil", model=evil_model(folder), devices="[8, 16]"),
        "hopeless": searched(folder, "hopeless", model="llama3-70b", devices="8"),
    }
    for name, result in studies.items():
        done = CliRunner().invoke(main, [str(result), "-o", str(folder / f"{name}.html")])
        assert done.exit_code == (3 if name == "hopeless" else 0), done.output
    return {name: folder / f"{name}.html" for name in studies}


def open_page(browser, file, complaints, viewport=DESKTOP, **choices):
    """A page without a network; what it complains of, or asks a network for, is noted."""
    context = browser.new_context(viewport=viewport, offline=True, **choices)
    context.route(re.compile("^(?!file:|data:|blob:)"), lambda route: route.abort())
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda ask: ask.url.startswith(("file:", "data:", "blob:")) or complaints.append(ask.url))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-drawn]", state="attached")
    if folder := os.environ.get("DLCALC_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/report-{file.stem}-{viewport['width']}.png", full_page=True)
    return page


@pytest.fixture
def opened(browser, pages):
    """Opens a page of its own."""
    contexts, complaints = [], []

    def fresh_page(name, viewport=DESKTOP, **choices):
        page = open_page(browser, pages[name], complaints, viewport, **choices)
        contexts.append(page.context)
        return page

    yield fresh_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def several(browser, pages):
    """The page of a study of several scenarios, for tests that leave it as it is."""
    complaints = []
    page = open_page(browser, pages["several"], complaints)
    yield page
    page.context.close()
    assert complaints == []


def charts_of(page):
    return set(page.evaluate("[...document.querySelectorAll('.chart')].map((one) => one.id.slice(6))"))


def hover_text(page):
    page.wait_for_selector(".hoverlayer .hovertext")
    return " ".join(page.locator(".hoverlayer .hovertext").all_text_contents())


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", ["several", "one", "evil", "hopeless"])
def test_every_chart_draws_and_nothing_sticks_out(opened, name, viewport):
    page = opened(name, viewport)
    expected = {"refusals"} if name == "hopeless" else OF_EVERY_STUDY
    expected = expected | {"several": OF_SEVERAL, "evil": OF_SEVERAL - {"machines"}}.get(name, set())
    assert charts_of(page) == expected
    for key in expected:
        chart = page.locator(f"#chart-{key}")
        assert chart.locator(".main-svg").count() >= 1
        marks = chart.locator(".point, .points path, .hm image, .lines path, .js-line").count()
        assert marks >= 1, key
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_the_answer_is_in_view_at_once(several):
    page = several
    page.evaluate("scrollTo(0, 0)")
    for words in ("Best plan:", "MFU", "80 % sure", "cost", "Why: the best plan of another mesh"):
        box = page.get_by_text(words).first.bounding_box()
        assert box["y"] + box["height"] <= DESKTOP["height"], words


@pytest.mark.parametrize(
    ("key", "mark", "said"),
    [
        ("pareto", ".scatterlayer .trace:last-child .point", "MFU"),
        ("heat", ".hm", "best of"),
        ("step_terms", ".point >> nth=0", "matmul"),
        ("memory_terms", ".point >> nth=0", "GiB"),
        ("pipeline", ".point >> nth=0", "of micro-batch"),
        ("sensitivity", ".point >> nth=2", "faster"),
        ("scaling_tokens", ".scatterlayer .trace .point >> nth=0", "devices"),
        ("machines", ".point >> nth=0", "tokens/s per device"),
        ("refusals", ".point >> nth=0", "plans"),
    ],
)
def test_hovering_says_what_is_there(several, key, mark, said):
    page = several
    page.mouse.move(2, 2)
    page.wait_for_selector(".hoverlayer .hovertext", state="detached")
    page.locator(f"#chart-{key}").scroll_into_view_if_needed()
    box = page.locator(f"#chart-{key} {mark}").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 1, box["y"] + box["height"] / 2 + 1)
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert said in hover_text(page)


def test_a_line_of_the_parallel_coordinates_is_followed(several):
    page = several
    page.locator("#chart-parallel").scroll_into_view_if_needed()
    box = page.locator("#chart-parallel .scatterlayer .trace .point").first.bounding_box()
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    assert "MFU" in hover_text(page)
    n_axes = page.evaluate("CHARTS.parallel.follow_axes")
    assert page.locator(".followed").get_attribute("d").count("L") == n_axes - 1
    page.mouse.move(2, 2)
    page.wait_for_selector(".followed", state="detached")


def test_it_prints_light_and_within_the_paper(opened, tmp_path):
    page = opened("several", color_scheme="dark")
    text = "getComputedStyle(document.querySelector('#chart-heat .xtick text')).fill"
    assert page.evaluate(text) == "rgb(221, 221, 221)"
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(text) == "rgb(34, 34, 34)"
    page.set_viewport_size({"width": 720, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 720
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(text) == "rgb(221, 221, 221)"
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 50_000


def test_without_colour_bars_differ_in_pattern_and_lines_in_dash(several):
    page = several
    patterns = page.evaluate("CHARTS.step_terms.data.slice(0, 6).map((trace) => trace.marker.pattern.shape)")
    assert len(set(patterns)) == len(patterns)
    for key in ("scaling_tokens", "scaling_mfu"):
        lines = page.evaluate(f"CHARTS.{key}.data.map((trace) => [trace.line.dash, trace.marker.symbol])")
        assert len({dash for dash, _ in lines}) == len({symbol for _, symbol in lines}) == len(lines)
    cells = page.locator("#chart-heat .heatmap-label text, #chart-heat .heatmap-label").count()
    assert cells >= page.evaluate("CHARTS.heat.data[0].text.flat().filter((one) => one).length")


def test_names_from_files_are_text_and_nothing_else(opened):
    page = opened("evil")
    assert page.evaluate("document.querySelectorAll('img, .chart script, section script').length") == 0
    assert EVIL in page.locator("h1").inner_text()


def test_the_page_is_one_file_that_loads_nothing(pages):
    for file in pages.values():
        text = file.read_text(encoding="utf-8")
        assert file.stat().st_size < 10e6
        assert text.count("plotly.js v") == 1
        assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?https?:", text) == []
