"""The drawings of docs/accuracy.md: they exist, show every timed run, and are drawn the same twice."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dlcalc.workflows.validation import run_points, run_validation

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "accuracy.md").read_text(encoding="utf-8")
DRAWINGS = re.findall(r"^!\[.+\]\((.+)\)$", PAGE, re.MULTILINE)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def plot():
    spec = importlib.util.spec_from_file_location("accuracy_plot", ROOT / "benchmarks" / "accuracy_plot.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def points():
    return run_points()


@pytest.fixture(scope="module")
def runs(plot, points):
    return plot.timed_runs(points)


def test_the_page_shows_both_drawings_and_they_exist(plot, tmp_path, points):
    assert [path.name for path in plot.write(tmp_path, points)] == DRAWINGS
    for name in DRAWINGS:
        assert ElementTree.parse(ROOT / "docs" / name).getroot().tag == f"{SVG}svg"


def test_every_timed_run_is_a_dot_with_the_error_that_the_table_has(runs, plot):
    summary = run_validation()
    assert len(runs) == summary["timed"]
    sources = plot.by_source(runs)
    for row in summary["sources"]:
        assert len(sources.get(row["source"], [])) == row["step_time"]["runs"]
        if row["step_time"]["runs"]:
            worst = max(abs(run.error) for run in sources[row["source"]])
            assert worst == pytest.approx(row["step_time"]["worst"])


def test_every_panel_holds_every_run(runs, plot):
    for knob in plot.KNOBS:
        columns = plot.by_column(runs, knob)
        assert sum(map(len, columns.values())) == len(runs), knob
        assert "none" not in columns, knob


def test_every_run_is_drawn(runs, plot):
    """Once on each of two axes, once in each panel; and once a source in the legend."""
    sources = len(plot.by_source(runs))
    for drawing, times in ((plot.against(runs), 2), (plot.by_knob(runs), len(plot.KNOBS))):
        dots = list(ElementTree.fromstring(drawing).iter(f"{SVG}use"))
        assert len(dots) == times * len(runs) + sources


def test_dots_lie_where_their_numbers_are(plot):
    """Three runs on logarithmic axes of equal length: as measured, a tenth too slow, a tenth too fast."""
    knobs = dict.fromkeys(plot.KNOBS, "1")
    three = [plot.Run("a", measured, measured * by, knobs) for measured, by in ((1.0, 1.0), (10.0, 1.1), (100.0, 0.9))]
    dots = [
        (float(dot.get("x")), float(dot.get("y")))
        for dot in ElementTree.fromstring(plot.against(three)).iter(f"{SVG}use")
    ][:6]
    (x1, y1), (x2, y2), (x3, y3), (_, exact), (_, slow), (_, fast) = dots
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert x1 - 74 == pytest.approx(564 - y1, abs=0.2)  # the corner of the axes
    assert x2 - 74 < 564 - y2
    assert x3 - 74 > 564 - y3
    assert exact - slow == pytest.approx(fast - exact, abs=0.2)
    assert exact > slow


def test_columns_are_doublings_and_words(plot):
    def labels(knob, *values):
        return list(plot.by_column([plot.Run("a", 1.0, 1.0, {knob: value}) for value in values], knob))

    assert labels("dp", "16", "1", "9", "8", "2") == ["1", "2", "8", "9–16"]
    assert labels("seq_len", "32768", "512") == ["512", "32k"]
    assert labels("precision", "nvfp4", "bf16", "fp8") == ["bf16", "fp8", "nvfp4"]


def test_the_same_runs_give_the_same_bytes(runs, plot, points):
    again = plot.timed_runs(points)
    assert plot.against(runs) == plot.against(again)
    assert plot.by_knob(runs) == plot.by_knob(again)
