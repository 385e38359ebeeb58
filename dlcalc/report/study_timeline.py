"""The pipeline of a plan: what each stage does when. Of a long step its beginning and its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlcalc.costmodel.timeline import Event, Timeline
from dlcalc.report.page.charts import PALETTE, layout
from dlcalc.report.page.shell import Chart

MOST_EVENTS = 900
"""That are drawn; of a longer step the middle, which repeats itself, is left out."""
MILLISECONDS = 1e3
STYLES: Mapping[str, tuple[str, float]] = {
    "forward": (PALETTE[4], 0.55),
    "backward": (PALETTE[0], 0.85),
    "input gradient": (PALETTE[0], 0.85),
    "weight gradient": (PALETTE[2], 0.7),
    "send": (PALETTE[5], 0.25),
}
"""Colour and height of a bar: told apart by height and brightness, too."""


def timeline_chart(timeline: Timeline) -> Chart:
    """A bar per operation; where the middle is left out, two windows side by side."""
    windows = windows_of(timeline)
    traces: list[dict[str, Any]] = []
    for number, events in enumerate(windows, 1):
        for kind in dict.fromkeys(event.op.kind for event in events):
            named = [event for event in events if event.op.kind == kind]
            traces.append(_bars(kind, named, number, is_named=all(trace["name"] != kind for trace in traces)))
    frame = layout("ms from the first forward pass", height=150 + 30 * timeline.n_devices)
    frame["barmode"] = "overlay"
    stages = [f"stage {stage}" for stage in reversed(range(timeline.n_devices))]
    frame["yaxis"].update(categoryorder="array", categoryarray=stages)
    for number, events in enumerate(windows, 1):
        left, right = (0.0, 1.0) if len(windows) == 1 else ((0.0, 0.49), (0.51, 1.0))[number - 1]
        ends = [min(event.start_s for event in events), max(event.end_s for event in events)]
        axis = {"automargin": True, "domain": [left, right], "range": [end * MILLISECONDS for end in ends], "nticks": 6}
        frame["xaxis" if number == 1 else f"xaxis{number}"] = axis
    return {"data": traces, "layout": frame}


def windows_of(timeline: Timeline) -> list[Sequence[Event]]:
    """All events, or as many of the first and of the last as are drawn."""
    events = timeline.events
    if len(events) <= MOST_EVENTS:
        return [events] if events else []
    half = MOST_EVENTS // 2
    until = sorted(event.end_s for event in events)[half]
    since = sorted((event.start_s for event in events), reverse=True)[half]
    return [[e for e in events if e.end_s <= until], [e for e in events if e.start_s >= since]]


def timeline_words(timeline: Timeline | None) -> str:
    """What of the step is drawn."""
    if timeline is None:
        return "This plan's operations are too many, or have no order, to be replayed."
    windows = windows_of(timeline)
    if len(windows) < 2:
        return "Every pass of every micro-batch is drawn."
    shown = sum(len(events) for events in windows)
    return (
        f"Of {len(timeline.events):,} operations the first and the last, {shown:,} together, are drawn; between them "
        "the pattern goes on."
    )


def _bars(kind: str, events: Sequence[Event], window: int, *, is_named: bool) -> dict[str, Any]:
    colour, height = STYLES[kind]
    return {
        "type": "bar",
        "orientation": "h",
        "name": kind,
        "legendgroup": kind,
        "showlegend": is_named,
        "xaxis": "x" if window == 1 else f"x{window}",
        "y": [f"stage {event.device}" for event in events],
        "base": [round(event.start_s * MILLISECONDS, 4) for event in events],
        "x": [round((event.end_s - event.start_s) * MILLISECONDS, 4) for event in events],
        "customdata": [
            [event.op.micro_batch, event.op.chunk, round(event.end_s * MILLISECONDS, 3)] for event in events
        ],
        "hovertemplate": kind + " of micro-batch %{customdata[0]}, chunk %{customdata[1]}<br>"
        "%{base:.2f} to %{customdata[2]:.2f} ms<extra>%{y}</extra>",
        "marker": {"color": colour, "line": {"width": 0.3, "color": "#fff"}},
        "width": height,
    }
