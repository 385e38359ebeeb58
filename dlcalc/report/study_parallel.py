"""Parallel coordinates: a vertical axis per knob, a line per plan.

Drawn with plain lines rather than Plotly's own parallel coordinates, which need WebGL and print as a bitmap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlcalc.costmodel.plans import ALL_LAYERS, PER_STAGE
from dlcalc.report.page.charts import BACK, LINE, TEXT, layout
from dlcalc.report.page.shell import Chart
from dlcalc.report.study_charts import point_words
from dlcalc.report.study_facts import PlanPoint
from dlcalc.utils.units import GIB

BANDS = (("#b0b7bf", "dot", 1.0), ("#7fb2d6", "dot", 1.1), ("#3a86bf", "solid", 1.2), ("#0b4f86", "solid", 1.8))
"""Colour, dash and width of a line by how fast its plan is, slowest quarter first: brighter is slower."""
NAMES = ("slowest quarter", "third quarter", "second quarter", "fastest quarter")
PX_PER_AXIS = 68
HEIGHT = 440


@dataclass(frozen=True)
class _Axis:
    """Where each plan crosses it, from 0 to 1, and what is written beside it."""

    name: str
    heights: Sequence[float]
    ticks: Sequence[tuple[float, str]]


def parallel_chart(points: Sequence[PlanPoint]) -> Chart:
    """Lines of ``points``, the fastest first among them; drawn slowest first, so that the fastest lie on top."""
    axes = _axes(points)
    ranked = sorted(range(len(points)), key=lambda i: -points[i].step_time_s)
    traces = []
    for band, (colour, dash, width) in enumerate(BANDS):
        members = [i for place, i in enumerate(ranked) if place * len(BANDS) // len(ranked) == band]
        if members:
            traces.append(_lines(NAMES[band], axes, points, members, {"color": colour, "dash": dash, "width": width}))
    best = ranked[-1]
    traces.append(_lines("fastest plan", axes, points, [best], {"color": TEXT, "dash": "dash", "width": 4}))
    return {
        "data": traces,
        "layout": _layout(axes),
        "min_width_px": PX_PER_AXIS * len(axes) + 50,
        "follow_axes": len(axes),
    }


def _lines(
    name: str, axes: Sequence[_Axis], points: Sequence[PlanPoint], members: Sequence[int], line: Mapping[str, Any]
) -> dict[str, Any]:
    """Lines with a gap after each, as one trace."""
    x, y, text = [], [], []
    for member in members:
        x += [*range(len(axes)), None]
        y += [*(round(axis.heights[member], 4) for axis in axes), None]
        text += [point_words(points[member])] * len(axes) + [""]
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(members) == 1 else "lines",
        "name": name,
        "x": x,
        "y": y,
        "text": text,
        "hovertemplate": "%{text}<extra></extra>",
        "line": dict(line),
        "marker": {"size": 4, "color": line["color"]},
        "connectgaps": False,
    }


def _axes(points: Sequence[PlanPoint]) -> list[_Axis]:
    """One for each knob that differs, then memory and MFU."""
    knobs: tuple[tuple[str, Callable[[PlanPoint], Any]], ...] = (
        *((knob, _knob(knob)) for knob in ("tp", "cp", "pp", "dp", "ep", "etp", "vpp", "micro_batch", "schedule")),
        ("recompute", lambda point: _recompute(point.plan)),
        *((knob, _knob(knob)) for knob in ("zero_stage", "sequence_parallel", "overlap_tp", "offload_layers", "split")),
    )
    found = []
    for name, value in knobs:
        values = [value(point) for point in points]
        known = sorted(set(values), key=lambda one: (isinstance(one, str), one))
        if len(known) > 1:
            place = {one: i / (len(known) - 1) for i, one in enumerate(known)}
            ticks = [(place[one], _said(one)) for one in known]
            found.append(_Axis(name.replace("_", "<br>"), [place[one] for one in values], ticks))
    found.append(_measured("GiB", [point.memory_bytes / GIB for point in points], "{:.0f}"))
    found.append(_measured("MFU %", [100 * point.mfu for point in points], "{:.1f}"))
    return found


def _knob(name: str) -> Callable[[PlanPoint], Any]:
    return lambda point: point.plan[name]


def _recompute(plan: Mapping[str, Any]) -> str:
    layers = plan["recompute_layers"]
    counted = "per stage" if layers == PER_STAGE else f"{layers:02d}"
    return str(plan["recompute"]) + (f":{counted}" if plan["recompute"] == "full" and layers != ALL_LAYERS else "")


def _said(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value).replace("embedding_and_loss", "emb + loss").replace(":0", " ").replace(":", " ")


def _measured(name: str, values: Sequence[float], digits: str) -> _Axis:
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    ticks = (
        [(i / 4, digits.format(low + i / 4 * span)) for i in range(5)] if high > low else [(0.0, digits.format(low))]
    )
    return _Axis(name, [(value - low) / span for value in values], ticks)


def _layout(axes: Sequence[_Axis]) -> dict[str, Any]:
    frame = layout("", HEIGHT)
    frame["margin"] = {"l": 10, "r": 10, "t": 24, "b": 50}
    frame["hovermode"] = "closest"
    hidden = {"showgrid": False, "zeroline": False, "showticklabels": False, "fixedrange": True}
    frame["xaxis"] = {**hidden, "range": [-0.55, len(axes) - 0.7]}
    frame["yaxis"] = {**hidden, "range": [-0.04, 1.14]}
    frame["legend"]["y"] = -0.02
    frame["shapes"] = [
        {"type": "line", "x0": i, "x1": i, "y0": 0, "y1": 1, "layer": "below", "line": {"color": LINE, "width": 1}}
        for i in range(len(axes))
    ]
    frame["annotations"] = [
        {"x": i, "y": 1.1, "text": f"<b>{axis.name}</b>", "showarrow": False, "font": {"size": 12}}
        for i, axis in enumerate(axes)
    ] + [
        {
            "x": i - 0.05,
            "y": y,
            "text": text,
            "showarrow": False,
            "xanchor": "right",
            "bgcolor": BACK,
            "font": {"size": 10},
        }
        for i, axis in enumerate(axes)
        for y, text in axis.ticks
    ]
    return frame
