"""A run beside itself with something changed, and the sources that it rests on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dlcalc.report.plan_words import plan_words
from dlcalc.report.run_facts import Citation, Comparison, Difference
from dlcalc.report.run_words import flops, said
from dlcalc.report.sections import Facts, Grid, Line, Part, Section
from dlcalc.utils import units


def comparison_section(found: Comparison) -> Section:
    """A run as written and changed, side by side."""
    told = ", ".join(f"{key} = {said(value)}" for key, value in found.changes.items())
    rows = tuple(_difference_row(row) for row in found.differences)
    parts: list[Part] = [
        Facts((("as written", plan_words(found.before.plan)), ("what if", plan_words(found.after.plan)))),
        Grid(
            "",
            ("section", "quantity", "as written", "what if", "difference", "%"),
            rows,
            frozenset({"section", "quantity"}),
        ),
        Line(
            f"Total Memory Required: {units.gib(found.before.memory.total_bytes, 3)} GiB per device -> "
            f"{units.gib(found.after.memory.total_bytes, 3)} GiB per device"
        ),
        Line(
            f"Theoretical MFU: {100 * found.before.results.mfu:.2f}% -> {100 * found.after.results.mfu:.2f}%",
            "answer",
        ),
    ]
    for label, facts in (("as written", found.before), ("what if", found.after)):
        parts += [Line(f"Note, {label}: {note}.", "dim") for note in facts.notes]
        if facts.refused:
            parts.append(Line(f"WARNING: {label}, the plan is refused: {'; '.join(facts.refused)}.", "warning"))
    if found.before.hardware.devices != found.after.hardware.devices:
        parts.append(
            Line(
                f"Note: {units.count(found.before.hardware.devices)} devices became "
                f"{units.count(found.after.hardware.devices)}; change dp as well to keep their number.",
                "dim",
            )
        )
    return Section(f"WHAT IF {told}", 1, tuple(parts), "what_if")


def _difference_row(row: Difference) -> tuple[str, ...]:
    text = _UNITS[row.unit]
    change = row.after - row.before
    sign = "+" if change > 0 else "-" if change < 0 else ""
    share = f"{100 * change / row.before:+.1f}" if row.before and change else "-" if not row.before else "0.0"
    moved = f"{100 * abs(change):.2f} points" if row.unit == "fraction" else text(abs(change))
    return row.section, row.what, text(row.before), text(row.after), f"{sign}{moved}" if change else "-", share


_UNITS: Mapping[str, Callable[[float], str]] = {
    "bytes": lambda value: f"{units.gib(value, 3)} GiB",
    "s": lambda value: units.duration(value, 4),
    "fraction": lambda value: units.percent(value, 2),
    "count": lambda value: units.count(value) if value == int(value) and value < 1e9 else units.short_count(value),
    "flops_per_s": lambda value: flops(value) + "/s",
    "usd": units.money,
}


def citation_section(found: Sequence[Citation]) -> Section:
    """Papers and manuals behind the estimate."""
    parts: list[Part] = []
    for one in found:
        parts.append(Line(f"[{one.key}] {one.authors} ({one.year}). {one.title}. {one.url}"))
        parts.append(Line(f"    {', '.join(name.replace('_', ' ') for name in one.equations)}", "dim"))
    return Section("SOURCES", 1, tuple(parts), "sources")
