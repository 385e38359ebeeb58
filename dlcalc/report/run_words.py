"""Words that the sections of a run share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dlcalc.report.run_facts import RunFacts
from dlcalc.report.sections import Line, Part
from dlcalc.utils import units


def shares(
    terms: Mapping[str, float], suffix: str, text: Callable[[float], str], *, by_size: bool = True
) -> tuple[tuple[str, str, float], ...]:
    """Terms that are not zero as (label, value, share of their sum)."""
    total = sum(terms.values())
    shown = [(name, value) for name, value in terms.items() if value]
    if by_size:
        shown.sort(key=lambda item: -item[1])
    return tuple((label(name, suffix), text(value), value / total if total else 0.0) for name, value in shown)


def label(name: str, suffix: str) -> str:
    """A term without its unit."""
    return name.removesuffix(suffix).replace("_", " ")


def whole(value: float) -> str:
    """A count without digits it does not need."""
    return f"{value:.0f}" if value == round(value) else units.significant(value)


def times(value: float) -> str:
    """How often, in words."""
    return "once" if value == 1 else "never" if value == 0 else f"{whole(value)} times"


def rate(bytes_per_s: float) -> str:
    """Bytes per second."""
    return f"{units.short_count(bytes_per_s)}B/s"


def flops(value: float) -> str:
    """Floating-point operations."""
    return f"{units.short_count(value)}FLOP"


def said(value: object) -> str:
    """A section of a run file in one line."""
    if isinstance(value, Mapping):
        inner = (
            f"{key} ({said(item)})" if isinstance(item, Mapping) else f"{key} {said(item)}"
            for key, item in value.items()
        )
        return ", ".join(inner)
    if isinstance(value, (list, tuple)):
        return " ".join(said(item) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)


def refusal_lines(facts: RunFacts) -> list[Part]:
    """Why the plan cannot run, if it cannot."""
    if not facts.refused:
        return []
    return [Line(f"WARNING: this plan is refused: {'; '.join(facts.refused)}.", "warning")]
