"""One run as a page: the sections of ``run_report``, with charts, in one file that opens offline and prints.

Charts are drawn by Plotly, whose script is embedded once; a browser that runs no scripts still shows every number,
because each chart stands beside the table or the bars it draws.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from dlcalc import __version__
from dlcalc.costmodel.timeline import Timeline
from dlcalc.errors import DlcalcError
from dlcalc.report.run_facts import Citation, Comparison, RunFacts
from dlcalc.report.run_report import (
    Bars,
    Facts,
    Grid,
    Line,
    Part,
    Section,
    citation_section,
    comparison_section,
    sections,
)
from dlcalc.utils import units
from dlcalc.utils.jsontext import plain
from dlcalc.utils.units import GIB

PALETTE = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#666666",
    "#332288",
    "#999933",
    "#117733",
)
"""Okabe and Ito's colours, told apart by colour-blind readers, and a few more for charts of many parts."""
MOST_BARS = 4000
"""Operations of a pipeline that are drawn; more make a slow page and a grey block."""
MILLISECONDS = 1e3

Chart = Mapping[str, Any]
"""``data`` and ``layout`` as Plotly takes them."""


def page(
    facts: RunFacts,
    comparison: Comparison | None = None,
    cited: Sequence[Citation] = (),
    timeline: Timeline | None = None,
) -> str:
    """The whole page."""
    shown = list(sections(facts))
    if comparison is not None:
        shown.insert(0, comparison_section(comparison))
    if cited:
        shown.append(citation_section(cited))
    charts = dict(charts_of(facts, comparison, timeline))
    body = "\n".join(_section(section, section.key in charts) for section in shown)
    return _PAGE.format(
        title=escape(f"3dtrn: {facts.name}"),
        answer=_answer(facts),
        navigation=_navigation(shown),
        body=body,
        version=escape(__version__),
        style=_STYLE,
        plotly=_plotly_script(),
        charts=_json_for_script(charts),
        draw=_DRAW,
    )


def _plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise DlcalcError("--html draws with plotly, which is not installed: pip install 'dlcalc[report]'") from error
    return str(get_plotlyjs()).replace("</script", "<\\/script")


# ---- charts -------------------------------------------------------------------------------------------------------


def charts_of(facts: RunFacts, comparison: Comparison | None, timeline: Timeline | None) -> Iterator[tuple[str, Chart]]:
    """Charts by the key of the section they stand in."""
    yield "memory_stages", _memory_chart(facts)
    if facts.communication:
        yield "communication", _communication_chart(facts)
    if timeline is not None and len(timeline.events) <= MOST_BARS:
        yield "pipeline", _timeline_chart(timeline)
    yield "block", _block_chart(facts)
    yield "iteration", _iteration_chart(facts)
    if comparison is not None:
        yield "what_if", _comparison_chart(comparison)


def _memory_chart(facts: RunFacts) -> Chart:
    """Every stage's peak, term by term, against what the device has."""
    stages = facts.memory.stages
    names = [f"stage {stage.stage}" for stage in stages]
    terms = [term for term in stages[0].bytes_by_term if any(stage.bytes_by_term[term] for stage in stages)]
    traces = [
        _bar(term, "_bytes", names, [stage.bytes_by_term[term] / GIB for stage in stages], position, "GiB", ".3f")
        for position, term in enumerate(terms)
    ]
    capacity = facts.memory.capacity_bytes / GIB
    layout = _layout("GiB per device", height=150 + 34 * len(stages))
    line = {"type": "line", "x0": capacity, "x1": capacity, "y0": 0, "y1": 1, "yref": "paper"}
    layout["shapes"] = [{**line, "line": {"dash": "dash", "width": 2, "color": "#888"}}]
    layout["annotations"] = [
        {"x": capacity, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "text": f"{capacity:.1f} GiB"}
    ]
    layout["yaxis"]["autorange"] = "reversed"
    return {"data": traces, "layout": layout}


def _communication_chart(facts: RunFacts) -> Chart:
    names = [axis.axis for axis in facts.communication]
    exposed = [axis.exposed_s * MILLISECONDS for axis in facts.communication]
    hidden = [axis.hidden_s * MILLISECONDS for axis in facts.communication]
    traces = [_bar("exposed", "", names, exposed, 5, "ms", ".3f"), _bar("hidden", "", names, hidden, 4, "ms", ".3f")]
    traces[1]["marker"]["pattern"] = {"shape": "/"}
    layout = _layout("ms per step", height=140 + 34 * len(names))
    layout["yaxis"]["autorange"] = "reversed"
    return {"data": traces, "layout": layout}


def _block_chart(facts: RunFacts) -> Chart:
    """Both passes of both sublayers, term by term."""
    block = facts.block
    rows = [
        (f"{sublayer}, {way}", terms)
        for sublayer in (block.attention, block.mlp)
        for way, terms in block.sublayers[sublayer].items()
    ]
    names = [name for name, _ in rows]
    used = [term for term in rows[0][1] if any(terms[term] for _, terms in rows)]
    traces = [
        _bar(term, "_s", names, [terms[term] * MILLISECONDS for _, terms in rows], position, "ms", ".4f")
        for position, term in enumerate(used)
    ]
    layout = _layout("ms per micro-batch", height=310)
    layout["yaxis"]["autorange"] = "reversed"
    return {"data": traces, "layout": layout}


def _iteration_chart(facts: RunFacts) -> Chart:
    terms = {name: value for name, value in facts.step.items() if value > 0}
    traces = [
        _bar(name, "_s", ["iteration"], [value], position, "s", ".4f")
        for position, (name, value) in enumerate(sorted(terms.items(), key=lambda item: -item[1]))
    ]
    return {"data": traces, "layout": _layout("seconds", height=230)}


def _comparison_chart(found: Comparison) -> Chart:
    terms = [row for row in found.differences if row.section == "iteration"]
    names = ["as written", "what if"]
    traces = [
        _bar(row.what, "", names, [row.before, row.after], position, "s", ".4f") for position, row in enumerate(terms)
    ]
    layout = _layout("seconds per step", height=260)
    layout["yaxis"]["autorange"] = "reversed"
    return {"data": traces, "layout": layout}


def _timeline_chart(timeline: Timeline) -> Chart:
    """What each stage does when."""
    kinds = dict.fromkeys(event.op.kind for event in timeline.events)
    colours = {"forward": 0, "backward": 1, "input gradient": 1, "weight gradient": 2, "send": 7}
    traces = []
    for kind in kinds:
        events = [event for event in timeline.events if event.op.kind == kind]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": kind,
                "y": [f"stage {event.device}" for event in events],
                "base": [event.start_s * MILLISECONDS for event in events],
                "x": [(event.end_s - event.start_s) * MILLISECONDS for event in events],
                "customdata": [[event.op.micro_batch, event.op.chunk, event.end_s * MILLISECONDS] for event in events],
                "hovertemplate": kind + " of micro-batch %{customdata[0]}, chunk %{customdata[1]}<br>"
                "%{base:.2f} to %{customdata[2]:.2f} ms<extra>%{y}</extra>",
                "marker": {"color": PALETTE[colours[kind]], "line": {"width": 0.3, "color": "#fff"}},
                "width": 0.4 if kind == "send" else 0.8,
            }
        )
    layout = _layout("ms from the first forward pass", height=170 + 30 * timeline.n_devices)
    layout["barmode"] = "overlay"
    stages = [f"stage {stage}" for stage in reversed(range(timeline.n_devices))]
    layout["yaxis"].update(categoryorder="array", categoryarray=stages)
    return {"data": traces, "layout": layout}


def _bar(
    name: str, suffix: str, categories: Sequence[str], values: Iterable[float], position: int, unit: str, digits: str
) -> dict[str, Any]:
    label = name.removesuffix(suffix).replace("_", " ")
    return {
        "type": "bar",
        "orientation": "h",
        "name": label,
        "y": list(categories),
        "x": list(values),
        "marker": {"color": PALETTE[position % len(PALETTE)]},
        "hovertemplate": f"{label}: %{{x:{digits}}} {unit}<extra>%{{y}}</extra>",
    }


TOP_PX, BOTTOM_PX, LEGEND_PX = 34, 60, 30


def _layout(title: str, height: int) -> dict[str, Any]:
    """A chart of horizontal bars; its legend starts below the axis, whatever the height."""
    return {
        "barmode": "stack",
        "height": height,
        "margin": {"l": 10, "r": 20, "t": TOP_PX, "b": BOTTOM_PX},
        "title": {"text": title, "x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 12}},
        "xaxis": {"automargin": True, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "ticksuffix": " "},
        "legend": {
            "orientation": "h",
            "y": -LEGEND_PX / (height - TOP_PX - BOTTOM_PX),
            "yanchor": "top",
            "traceorder": "normal",
        },
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "hoverlabel": {"align": "left"},
    }


# ---- text ---------------------------------------------------------------------------------------------------------


def _answer(facts: RunFacts) -> str:
    """The first lines of the page: what comes out."""
    results, memory = facts.results, facts.memory
    cards = [
        ("iteration", units.duration(results.iteration_s, 4)),
        ("MFU", units.percent(results.mfu, 2)),
        ("memory per device", f"{units.gib(memory.total_bytes, 1)} of {units.gib(memory.capacity_bytes, 1)} GiB"),
        ("tokens per day", units.short_count(results.tokens_per_day)),
        ("devices", units.count(facts.hardware.devices)),
    ]
    if results.interval is not None:
        low, high = results.interval.low_s, results.interval.high_s
        cards.insert(1, ("interval", f"{units.duration(low)} to {units.duration(high)}"))
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in cards)
    warning = ""
    if facts.refused:
        warning = f'<p class="warning">This plan is refused: {escape("; ".join(facts.refused))}.</p>'
    return f'<dl class="cards">{items}</dl>{warning}'


def _navigation(shown: Sequence[Section]) -> str:
    titles = {section.key: section.title for section in shown if section.level == 1}
    return " ".join(
        f'<a href="#{escape(key)}">{escape(title.title() if title.isupper() else title)}</a>'
        for key, title in titles.items()
    )


def _section(section: Section, has_chart: bool) -> str:
    level = section.level + 1
    parts = "\n".join(_part(part) for part in section.parts)
    chart = ""
    if has_chart:
        label = escape(section.title)
        chart = f'<div class="chart" id="chart-{escape(section.key)}" role="img" aria-label="{label}"></div>'
    return (
        f'<section id="{escape(section.key)}" class="level-{section.level}">'
        f"<h{level}>{escape(section.title)}</h{level}>\n{chart}{parts}</section>"
    )


def _part(part: Part) -> str:
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
    return f'<h4>{escape(part.title)}</h4><div class="wide"><table class="bars">{rows}</table></div>'


def _json_for_script(charts: Mapping[str, Chart]) -> str:
    """JSON that cannot end the script it stands in."""
    text = json.dumps(plain(charts), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --dim: #666;
  --accent: #0072B2; --bad: #C0392B; --good: #00724F; }
@media (prefers-color-scheme: dark) { :root { --dim: #aaa; --accent: #56B4E9; --bad: #FF8A7A; --good: #4FD3A5; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem;
  border-bottom: 2px solid var(--line); letter-spacing: .04em; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
h4 { font-size: .95rem; margin: 1rem 0 .3rem; font-weight: 600; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: 1rem 0; font-size: .9rem; }
a { color: var(--accent); }
.cards { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.cards div { border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .9rem; background: var(--soft); }
.cards dt { font-size: .8rem; color: var(--dim); }
.cards dd { margin: 0; font-size: 1.15rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .15rem .7rem .15rem 0; vertical-align: top; text-align: right; }
.grid tbody tr:nth-child(odd) { background: var(--soft); }
.grid th { border-bottom: 1px solid var(--line); white-space: nowrap; }
.grid td { white-space: nowrap; }
.facts th, .bars th, .left, .facts td { text-align: left; font-weight: normal; }
.facts th, .bars th { color: var(--dim); white-space: nowrap; }
.grid th.left { font-weight: bold; }
.facts td { overflow-wrap: anywhere; }
.bars { width: 100%; }
.bars td { white-space: nowrap; }
.bars .bar { width: 45%; min-width: 6rem; padding-right: 0; vertical-align: middle; }
.bars .bar span { display: block; height: .8em; background: var(--accent); border-radius: .1rem; }
.answer { font-weight: 600; color: var(--good); }
.warning { font-weight: 600; color: var(--bad);
  border: 2px solid var(--bad); border-radius: .3rem; padding: .4rem .7rem; }
.dim, footer { color: var(--dim); font-size: .85rem; }
.chart { width: 100%; min-height: 9rem; margin: .4rem 0; }
@media print { nav { display: none; } section { break-inside: avoid; } body { max-width: none; padding: 0; } }
"""

_DRAW = """
(function () {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  function draw() {
    const text = dark.matches ? "#ddd" : "#222", line = dark.matches ? "#555" : "#ddd";
    for (const [key, chart] of Object.entries(CHARTS)) {
      const layout = structuredClone(chart.layout);
      layout.font = { color: text, family: "system-ui, sans-serif", size: 12 };
      for (const axis of ["xaxis", "yaxis"]) Object.assign(layout[axis], { gridcolor: line, zerolinecolor: line });
      Plotly.react("chart-" + key, chart.data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  }
  draw();
  dark.addEventListener("change", draw);
})();
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{answer}
<nav>{navigation}</nav>
{body}
<footer><p>dlcalc {version}</p></footer>
<script>{plotly}</script>
<script>const CHARTS = {charts};{draw}</script>
</body>
</html>
"""
