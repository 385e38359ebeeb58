"""Words of a comparison that the report and its errors share."""

from __future__ import annotations

from collections.abc import Callable

from dlcalc.report.compare_facts import Candidate, Choice, Range
from dlcalc.utils import units


def cell(value: Range | None, text: Callable[[float], str]) -> str:
    """An estimate, or ``-`` where it is not known; what takes forever is never done."""
    if value is None:
        return "-"
    return text(value.value) if value.value < float("inf") else "never"


def priced(one: Candidate) -> str:
    """A candidate with its days and cost: ``1,024 h100, bf16: 12.3 days, $1.23 M``."""
    days = f": {cell(one.days, units.days)} days" if one.days else ""
    return f"{one.name}{days}" + (f", {cell(one.cost_usd, units.money)}" if one.cost_usd else "")


def nearest_words(choice: Choice) -> str:
    """Limits that nothing keeps within, and what comes nearest."""
    miss = choice.nearest_miss
    if miss is None:
        return f"is {choice.limits}"
    return (
        f"is {choice.limits}; nearest is {priced(miss)}, {units.significant(choice.over_factor or 0.0)} times the limit"
    )
