"""What a report is made of, whatever shows it: sentences, facts, tables, bars; and how a console shows them.

A page shows the same parts (``report.page.parts``), so that a terminal and a browser cannot say different things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Literal

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlcalc.utils import units

_BAR_CELLS = 32
_WIDE = 110
"""Consoles at least so wide fold the columns of ``FOLDING`` alone."""
FOLDING = frozenset(
    {
        *("what", "link", "sublayer", "also", "nodes", "nodes, in ring order", "closest switches"),
        *("plan", "best plan", "scenario", "why", "source"),
    }
)
_EIGHTHS = " ▏▎▍▌▋▊▉█"

Style = Literal["plain", "answer", "warning", "dim"]


@dataclass(frozen=True)
class Line:
    """A sentence."""

    text: str
    style: Style = "plain"


@dataclass(frozen=True)
class Facts:
    """Labels and what they stand for."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Grid:
    """A table; columns named in ``left`` are aligned left, numbers right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[str] = frozenset()
    caption: str = ""


@dataclass(frozen=True)
class Bars:
    """Parts of a whole, largest first."""

    title: str
    rows: tuple[tuple[str, str, float], ...]
    """(label, value, share of the whole)."""


@dataclass(frozen=True)
class Verbatim:
    """A file as it was written."""

    text: str


Part = Line | Facts | Grid | Bars | Verbatim


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; level 1 is a chapter."""

    title: str
    level: int
    parts: tuple[Part, ...]
    key: str = field(default="")
    """By which a page finds the place of a chart."""


# ---- on a console -------------------------------------------------------------------------------------------------

STYLES: Mapping[Style, str] = {"plain": "", "answer": "bold green", "warning": "bold red", "dim": "dim"}


def print_sections(shown: Sequence[Section], console: Console) -> None:
    """Sections one after the other; chapters under a rule of their own."""
    for section in shown:
        console.print()
        if section.level == 1:
            rule = "=" * min(console.width, max(len(section.title) + 8, 60))
            console.print(Text(rule, style="bold cyan"))
            console.print(Text(section.title, style="bold cyan"))
            console.print(Text(rule, style="bold cyan"))
        else:
            console.print(Text(section.title, style="bold"))
        print_parts(section.parts, console)


def print_parts(parts: Sequence[Part], console: Console) -> None:
    """Parts without a heading."""
    for part in parts:
        console.print(_rendered(part, console), soft_wrap=isinstance(part, Verbatim))


def _rendered(part: Part, console: Console) -> RenderableType:
    match part:
        case Line():
            return Text(part.text, style=STYLES[part.style])
        case Facts():
            return _facts_text(part, console)
        case Grid():
            return _grid_table(part, console)
        case Bars():
            return _bar_text(part, console)
        case Verbatim():
            return Text(part.text)


def _facts_text(part: Facts, console: Console) -> Text:
    """Labels in a column, each text wrapped beside its label."""
    indent = max(len(label) for label, _ in part.rows) + 4
    lines = Text()
    for position, (label, text) in enumerate(part.rows):
        wrapped = wrap(text, max(console.width - indent, 20), break_on_hyphens=False) or [""]
        lines.append("\n" if position else "")
        lines.append(f"  {label}".ljust(indent), style="dim")
        lines.append(("\n" + " " * indent).join(wrapped))
    return lines


def _grid_table(part: Grid, console: Console) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True, header_style="bold")
    for name in part.header:
        folds = name in FOLDING or console.width < _WIDE
        justify: Literal["left", "right"] = "left" if name in part.left else "right"
        table.add_column(Text(name), justify=justify, overflow="fold", no_wrap=not folds)
    for row in part.rows:
        table.add_row(*(Text(cell) for cell in row))
    title = [Text(part.title)] if part.title else []
    caption = [Text(part.caption, style="dim")] if part.caption else []
    return Group(*title, table, *caption)


def _bar_text(part: Bars, console: Console) -> Text:
    """One line per part: label, value, share, bar."""
    lines = Text(part.title)
    if not part.rows:
        return lines
    largest = max(share for _, _, share in part.rows)
    labels = max(len(label) for label, _, _ in part.rows)
    values = max(len(value) for _, value, _ in part.rows)
    cells = max(4, min(_BAR_CELLS, console.width - labels - values - 14))
    for label, value, share in part.rows:
        lines.append(f"\n  {label.ljust(labels)} {value.rjust(values)} {units.percent(share).rjust(7)} ")
        bar = _bar(share / largest if largest > 0 else 0.0, cells, ascii_only=console.options.ascii_only)
        lines.append(bar, style="blue")
    return lines


def _bar(fraction: float, cells: int, *, ascii_only: bool) -> str:
    eighths = round(max(fraction, 0.0) * cells * 8)
    if ascii_only:
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
