"""Where the step and the memory of the best plan go, as bars."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dlcalc.report.summary import (
    Breakdown,
    ScenarioSummary,
)
from dlcalc.utils import units

_SIDE_BY_SIDE_WIDTH = 118
_BAR_CELLS = 24
_GAP = 3
_SMALL_TERM_FRACTION = 0.003
_EIGHTHS = " ▏▎▍▌▋▊▉█"


def term_shares(terms: Mapping[str, float], suffix: str) -> list[tuple[str, float, float]]:
    """(label, value, share of the sum), largest first; small ones are added up."""
    total = sum(terms.values())
    if total <= 0:
        return []
    ordered = sorted(((term, value) for term, value in terms.items() if value > 0), key=lambda item: -item[1])
    large = [(term, value) for term, value in ordered if value / total >= _SMALL_TERM_FRACTION]
    small = ordered[len(large) :]
    shown = [(term.removesuffix(suffix).replace("_", " "), value) for term, value in large]
    if small:
        shown.append((f"{len(small)} smaller", sum(value for _, value in small)))
    return [(label, value, value / total) for label, value in shown]


def _bar(share: float, largest: float, cells: int, *, ascii_only: bool) -> str:
    """A bar of ``cells`` characters for the ``largest`` share."""
    eighths = round(share / largest * cells * 8) if largest > 0 else 0
    if ascii_only:
        return "#" * round(eighths / 8)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _bars(title: str, terms: Sequence[tuple[str, str, float]], width: int, *, ascii_only: bool) -> Table:
    """One line per (label, value, share)."""
    table = Table.grid(padding=(0, 1))
    table.title, table.title_justify, table.title_style = Text(title), "left", "none"
    table.add_column(overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    largest = max((share for _, _, share in terms), default=0.0)
    texts = max((len(label) + len(value) for label, value, _ in terms), default=0)
    cells = max(4, min(_BAR_CELLS, width - texts - len("  ") - len(" 100.0 %  ") - 1))
    for label, value, share in terms:
        bar = Text(_bar(share, largest, cells, ascii_only=ascii_only), style="blue")
        table.add_row(Text("  " + label), Text(value), Text(units.percent(share)), bar)
    return table


def _same_unit(largest_s: float) -> Callable[[float], str]:
    """Times that can be compared at a glance."""
    return "{:.3f} s".format if largest_s >= 1 else lambda value_s: f"{value_s * 1e3:.2f} ms"


def breakdown_bars(scenario: ScenarioSummary, breakdown: Breakdown, console: Console) -> RenderableType:
    """Bars of the best plan's terms: side by side where there is room."""
    best = scenario["best"][0]
    ascii_only = console.options.ascii_only
    together = console.width >= _SIDE_BY_SIDE_WIDTH
    width = (console.width - _GAP) // 2 if together else console.width
    seconds = _same_unit(best["step_time_s"])
    times = _bars(
        f"Where the step goes ({units.duration(best['step_time_s'], 4)})",
        [(label, seconds(value), share) for label, value, share in term_shares(breakdown["time_s"], "_s")],
        width,
        ascii_only=ascii_only,
    )
    memory = _bars(
        f"Where the memory goes ({units.gib(best['memory_bytes'])} GiB, {units.gib(best['headroom_bytes'])} free)",
        [
            (label, f"{units.gib(value, 2)} GiB", share)
            for label, value, share in term_shares(breakdown["memory_bytes"], "_bytes")
        ],
        width,
        ascii_only=ascii_only,
    )
    if not together:
        return Group(times, Text(), memory)
    pair = Table.grid(padding=(0, _GAP))
    pair.add_row(times, memory)
    return pair
