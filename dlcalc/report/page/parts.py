"""The parts of a report (``report.sections``) as HTML. Everything that is not markup is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from dlcalc.report.sections import Bars, Facts, Grid, Line, Part, Section, Verbatim
from dlcalc.utils import units


def cards(shown: Sequence[tuple[str, str]]) -> str:
    """Labels and what they stand for, as the first thing that is seen."""
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in shown)
    return f'<dl class="cards">{items}</dl>'


def navigation(sections: Sequence[Section]) -> str:
    """Links to the chapters."""
    titles = {section.key: section.title for section in sections if section.level == 1}
    return " ".join(
        f'<a href="#{escape(key)}">{escape(title.title() if title.isupper() else title)}</a>'
        for key, title in titles.items()
    )


def section_html(section: Section, chart: Mapping[str, Any] | None) -> str:
    """A heading, its chart if it has one, and its parts."""
    level = section.level + 1
    parts = "\n".join(part_html(part) for part in section.parts)
    return (
        f'<section id="{escape(section.key)}" class="level-{section.level}">'
        f"<h{level}>{escape(section.title)}</h{level}>\n{_chart_place(section, chart)}{parts}</section>"
    )


def _chart_place(section: Section, chart: Mapping[str, Any] | None) -> str:
    if chart is None:
        return ""
    label = escape(section.title)
    place = f'<div class="chart" id="chart-{escape(section.key)}" role="img" aria-label="{label}"'
    least = chart.get("min_width_px")
    if not least:
        return place + "></div>"
    return f'<div class="wide">{place} style="min-width:{int(least)}px"></div></div>'


def part_html(part: Part) -> str:
    """One part."""
    match part:
        case Line():
            return f'<p class="{part.style}">{escape(part.text)}</p>'
        case Facts():
            rows = "".join(
                f"<tr><th scope='row'>{escape(label)}</th><td>{escape(text)}</td></tr>" for label, text in part.rows
            )
            return f'<div class="wide"><table class="facts">{rows}</table></div>'
        case Grid():
            return _grid(part)
        case Bars():
            return _bars(part)
        case Verbatim():
            return f"<pre>{escape(part.text)}</pre>"


def _grid(part: Grid) -> str:
    classes = [' class="left"' if name in part.left else "" for name in part.header]
    head = "".join(f"<th scope='col'{css}>{escape(name)}</th>" for name, css in zip(part.header, classes, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{css}>{escape(cell)}</td>" for cell, css in zip(row, classes, strict=True)) + "</tr>"
        for row in part.rows
    )
    title = f"<h4>{escape(part.title)}</h4>" if part.title else ""
    caption = f'<p class="dim">{escape(part.caption)}</p>' if part.caption else ""
    table = f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'{title}<div class="wide">{table}</div>{caption}'


def _bars(part: Bars) -> str:
    largest = max((share for _, _, share in part.rows), default=0.0) or 1.0
    rows = "".join(
        f"<tr><th scope='row'>{escape(label)}</th><td>{escape(value)}</td><td>{escape(units.percent(share))}</td>"
        f'<td class="bar"><span style="width:{100 * max(share, 0.0) / largest:.1f}%"></span></td></tr>'
        for label, value, share in part.rows
    )
    title = f"<h4>{escape(part.title)}</h4>" if part.title else ""
    return f'{title}<div class="wide"><table class="bars">{rows}</table></div>'
