"""One run as a page: the sections of ``run_report``, with charts, in one file that opens offline and prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from dlcalc.costmodel.timeline import Timeline
from dlcalc.report.memory_words import need_of_usable
from dlcalc.report.page.charts import PALETTE, bar, layout
from dlcalc.report.page.parts import cards
from dlcalc.report.page.shell import Chart, page_html
from dlcalc.report.run_comparison import citation_section, comparison_section
from dlcalc.report.run_facts import Citation, Comparison, RunFacts
from dlcalc.report.run_report import sections
from dlcalc.utils import units
from dlcalc.utils.units import GIB

MOST_BARS = 4000
"""Operations of a pipeline that are drawn; more make a slow page and a grey block."""
MILLISECONDS = 1e3


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
    return page_html(f"3dtrn: {facts.name}", _answer(facts), shown, charts, needed_by="--html")


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
        bar(term, "_bytes", names, [stage.bytes_by_term[term] / GIB for stage in stages], position, "GiB", ".3f")
        for position, term in enumerate(terms)
    ]
    limit = facts.memory.limit_bytes / GIB
    frame = layout("GiB per device", height=150 + 34 * len(stages))
    line = {"type": "line", "x0": limit, "x1": limit, "y0": 0, "y1": 1, "yref": "paper"}
    frame["shapes"] = [{**line, "line": {"dash": "dash", "width": 2, "color": "#888"}}]
    frame["annotations"] = [
        {"x": limit, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False, "text": f"limit {limit:.1f} GiB"}
    ]
    frame["yaxis"]["autorange"] = "reversed"
    return {"data": traces, "layout": frame}


def _communication_chart(facts: RunFacts) -> Chart:
    names = [axis.axis for axis in facts.communication]
    exposed = [axis.exposed_s * MILLISECONDS for axis in facts.communication]
    hidden = [axis.hidden_s * MILLISECONDS for axis in facts.communication]
    traces = [bar("exposed", "", names, exposed, 5, "ms", ".3f"), bar("hidden", "", names, hidden, 4, "ms", ".3f")]
    traces[1]["marker"]["pattern"] = {"shape": "/"}
    frame = layout("ms per step", height=140 + 34 * len(names))
    frame["yaxis"]["autorange"] = "reversed"
    return {"data": traces, "layout": frame}


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
        bar(term, "_s", names, [terms[term] * MILLISECONDS for _, terms in rows], position, "ms", ".4f")
        for position, term in enumerate(used)
    ]
    frame = layout("ms per micro-batch", height=310)
    frame["yaxis"]["autorange"] = "reversed"
    return {"data": traces, "layout": frame}


def _iteration_chart(facts: RunFacts) -> Chart:
    terms = {name: value for name, value in facts.step.items() if value > 0}
    traces = [
        bar(name, "_s", ["iteration"], [value], position, "s", ".4f")
        for position, (name, value) in enumerate(sorted(terms.items(), key=lambda item: -item[1]))
    ]
    return {"data": traces, "layout": layout("seconds", height=230)}


def _comparison_chart(found: Comparison) -> Chart:
    terms = [row for row in found.differences if row.section == "iteration"]
    names = ["as written", "what if"]
    traces = [
        bar(row.what, "", names, [row.before, row.after], position, "s", ".4f") for position, row in enumerate(terms)
    ]
    frame = layout("seconds per step", height=260)
    frame["yaxis"]["autorange"] = "reversed"
    return {"data": traces, "layout": frame}


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
    frame = layout("ms from the first forward pass", height=170 + 30 * timeline.n_devices)
    frame["barmode"] = "overlay"
    stages = [f"stage {stage}" for stage in reversed(range(timeline.n_devices))]
    frame["yaxis"].update(categoryorder="array", categoryarray=stages)
    return {"data": traces, "layout": frame}


# ---- text ---------------------------------------------------------------------------------------------------------


def _answer(facts: RunFacts) -> str:
    """The first lines of the page: what comes out."""
    results, memory = facts.results, facts.memory
    shown = [
        ("iteration", units.duration(results.iteration_s, 4)),
        ("MFU", units.percent(results.mfu, 2)),
        ("memory per device", need_of_usable(memory.total_bytes, memory.usable_bytes)),
        ("tokens per day", units.short_count(results.tokens_per_day)),
        ("devices", units.count(facts.hardware.devices)),
    ]
    if results.interval is not None:
        low, high = results.interval.low_s, results.interval.high_s
        shown.insert(1, ("interval", f"{units.duration(low)} to {units.duration(high)}"))
    warning = ""
    if facts.refused:
        warning = f'<p class="warning">This plan is refused: {escape("; ".join(facts.refused))}.</p>'
    return cards(shown) + warning
