"""What charts of all pages have in common: colours, patterns, layouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

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
PATTERNS = ("", "/", ".", "\\", "x", "-", "|", "+", "", "/", ".")
"""Of bars, by position like the palette, so that neighbours differ without colour."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "triangle-down", "cross")
TEXT, LINE, BACK = "@text", "@line", "@back"
"""Colours that ``draw.js`` puts in: of text, of grid lines and behind text, in the theme of the reader."""

TOP_PX, BOTTOM_PX, LEGEND_PX = 34, 60, 30


def bar(
    name: str, suffix: str, categories: Sequence[str], values: Iterable[float], position: int, unit: str, digits: str
) -> dict[str, Any]:
    """One part of horizontal bars."""
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


def pattern(position: int) -> dict[str, Any]:
    """Of a bar: white lines over its colour."""
    shape = PATTERNS[position % len(PATTERNS)]
    return {"shape": shape, "size": 7, "solidity": 0.18, "fillmode": "overlay", "fgcolor": "#ffffff", "fgopacity": 0.6}


def layout(title: str, height: int) -> dict[str, Any]:
    """A chart of horizontal bars; its legend starts below the axis, whatever the height."""
    return {
        "barmode": "stack",
        "height": height,
        "margin": {"l": 10, "r": 20, "t": TOP_PX, "b": BOTTOM_PX},
        "title": {
            "text": title,
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 10},
            "font": {"size": 12},
        },
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


def labelled(title: str, height: int, x: str, y: str) -> dict[str, Any]:
    """A chart with two named axes and a legend below them."""
    found = layout(title, height)
    found["xaxis"] = {"automargin": True, "title": {"text": x, "standoff": 6}}
    found["yaxis"] = {"automargin": True, "title": {"text": y, "standoff": 6}}
    found["legend"]["y"] = -(LEGEND_PX + 26) / (height - TOP_PX - BOTTOM_PX)
    return found
