"""A validation as one HTML page that needs nothing else: tables, and plots of estimates and of errors by knob."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dlcalc.errors import DlcalcError
from dlcalc.report.validation import decimal, percent, remarks
from dlcalc.report.validation_summary import Point, ScoreRow, ValidationSummary
from dlcalc.utils import units

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0 1.2rem; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #d8dee4; }
th:first-child, td:first-child { text-align: left; } tr:last-child td { font-weight: 600; }
.knobs { display: grid; grid-template-columns: repeat(auto-fill, minmax(480px, 1fr)); gap: .5rem; }
"""
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#222255", "#ee7733", "#009988")
"""Told apart also by people who see no red or no green: from Paul Tol's colour schemes."""
MOST_VALUES = 40
"""Distinct values of a knob that make a legible axis."""


def write_page(path: Path, summary: ValidationSummary, points: Sequence[Point]) -> None:
    """The page of a validation."""
    try:
        path.write_text(page(summary, points), encoding="utf-8")
    except OSError as error:
        raise DlcalcError(f"{path}: cannot be written: {error.strerror}") from error


def page(summary: ValidationSummary, points: Sequence[Point]) -> str:
    """The page as text."""
    plots: list[tuple[str, Any]] = []
    timed = [point for point in points if point["measured_s"] and point["estimated_s"]]
    weighed = [point for point in points if point["measured_gib"] and point["estimated_gib"]]
    if timed:
        plots.append(("Step time", _against(timed, "measured_s", "estimated_s", "step time (s)")))
    if weighed:
        plots.append(("Memory", _against(weighed, "measured_gib", "estimated_gib", "peak memory (GiB)")))
    knobs = [(knob, _error_by_knob(timed, knob)) for knob in _knobs_that_vary(timed)]
    drawn = _Drawn()
    body = [
        f"<h1>{units.count(summary['timed'])} measured step times against their estimates</h1>",
        f"<p>{escape(', '.join(summary['files']))}</p>",
        _table("Step time, error in percent", "step_time", summary),
        _table("Memory, error in percent", "memory", summary),
        _ranking_table(summary),
        *(f"<h2>{title}: estimated against measured</h2>{drawn.html(figure)}" for title, figure in plots),
        "<h2>Error of step time against every knob</h2><div class=knobs>",
        *(f"<div>{drawn.html(figure)}</div>" for _, figure in knobs),
        "</div><h2>Remarks</h2><ul>",
        *(f"<li>{escape(line)}</li>" for line in remarks(summary)),
        "</ul>",
    ]
    head = f"<head><meta charset=utf-8><title>dlcalc-validate</title><style>{STYLE}</style></head>"
    return f"<!doctype html><html lang=en>{head}<body>{''.join(body)}</body></html>"


class _Drawn:
    """Figures as HTML; the first brings the library along."""

    def __init__(self) -> None:
        self.has_library = False

    def html(self, figure: Any) -> str:  # noqa: ANN401 - plotly has no types
        from plotly.io import to_html

        text: str = to_html(
            figure, full_html=False, include_plotlyjs=not self.has_library, config={"displaylogo": False}
        )
        self.has_library = True
        return text


def _by_source(points: Iterable[Point]) -> dict[str, list[Point]]:
    found: dict[str, list[Point]] = {}
    for point in points:
        found.setdefault(point["source"], []).append(point)
    return found


def _against(points: Sequence[Point], measured: str, estimated: str, quantity: str) -> Any:  # noqa: ANN401 - plotly has no types
    """Estimated over measured on logarithmic axes, with the line where they agree."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    every = [float(point[key]) for point in points for key in (measured, estimated)]  # type: ignore[literal-required]
    ends = [min(every) / 1.2, max(every) * 1.2]
    for factor, dash in ((1.0, "solid"), (1.1, "dot"), (1 / 1.1, "dot")):
        figure.add_scatter(
            x=ends, y=[end * factor for end in ends], mode="lines", hoverinfo="skip", showlegend=False,
            line={"color": "#888", "dash": dash, "width": 1},
        )  # fmt: skip
    for position, (source, members) in enumerate(_by_source(points).items()):
        figure.add_scatter(
            x=[point[measured] for point in members],  # type: ignore[literal-required]
            y=[point[estimated] for point in members],  # type: ignore[literal-required]
            mode="markers", name=escape(source), text=[escape(point["case"]) for point in members],
            marker={"size": 6, "opacity": 0.7, "color": COLOURS[position % len(COLOURS)]},
            hovertemplate="%{text}<br>measured %{x:.4g}, estimated %{y:.4g}",
        )  # fmt: skip
    figure.update_xaxes(type="log", title=f"measured {quantity}")
    figure.update_yaxes(type="log", title=f"estimated {quantity}")
    figure.update_layout(template="plotly_white", height=620, margin={"t": 20})
    return figure


def _error_by_knob(points: Sequence[Point], knob: str) -> Any:  # noqa: ANN401 - plotly has no types
    """Errors of all runs with one value of a knob, value by value."""
    from plotly import graph_objects

    values = sorted({point["knobs"][knob] for point in points}, key=_in_order)
    figure = graph_objects.Figure()
    for value in values:
        members = [point for point in points if point["knobs"][knob] == value]
        errors = [100 * ((point["estimated_s"] or 0) / (point["measured_s"] or 1) - 1) for point in members]
        figure.add_box(
            y=errors, name=escape(value) or "(empty)", boxpoints="all", jitter=0.5, pointpos=0, showlegend=False,
            marker={"size": 3, "opacity": 0.5, "color": COLOURS[0]}, line={"width": 1},
            fillcolor="rgba(68,119,170,0.15)", text=[escape(point["case"]) for point in members],
            hovertemplate="%{text}<br>%{y:+.1f} %",
        )  # fmt: skip
    figure.update_xaxes(title=escape(knob), type="category")
    figure.update_yaxes(title="error of step time (%)")
    figure.update_layout(template="plotly_white", height=340, margin={"t": 10, "l": 60, "r": 10})
    return figure


def _knobs_that_vary(points: Sequence[Point]) -> list[str]:
    """Knobs with several values, but not so many that none can be read."""
    if not points:
        return []
    return [knob for knob in points[0]["knobs"] if 1 < len({point["knobs"][knob] for point in points}) <= MOST_VALUES]


def _in_order(value: str) -> tuple[int, float, str]:
    """Numbers by size, words after them."""
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)


def _rows(summary: ValidationSummary) -> list[ScoreRow]:
    return [*summary["sources"], summary["overall"]]


def _html_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h2>{escape(title)}</h2><table><tr>{head}</tr>{lines}</table>"


def _table(title: str, what: str, summary: ValidationSummary) -> str:
    rows = []
    for row in _rows(summary):
        errors = row[what]  # type: ignore[literal-required]
        if errors["runs"]:
            figures = [percent(errors[key]) for key in ("median", "mean", "p90", "worst")]
            rows.append([row["source"], str(errors["runs"]), *figures, percent(errors["bias"], signed=True)])
    return _html_table(title, ("source", "runs", "median", "mean", "p90", "worst", "bias"), rows) if rows else ""


def _ranking_table(summary: ValidationSummary) -> str:
    rows = []
    for row in _rows(summary):
        ranking, memory = row["ranking"], row["out_of_memory"]
        figures = [
            decimal(ranking["spearman_mean"]),
            percent(ranking["regret_at_1_mean"]),
            percent(ranking["regret_at_3_mean"]),
        ]
        rows.append(
            [
                row["source"],
                str(ranking["sweeps"]),
                *figures,
                percent(memory["accuracy"]),
                percent(row["interval_coverage"]),
            ]
        )
    headings = (
        "source",
        "sweeps",
        "Spearman",
        "regret at 1 (%)",
        "regret at 3 (%)",
        "memory verdicts right (%)",
        "in the interval (%)",
    )
    return _html_table("Ranking, memory verdicts and intervals", headings, rows)
