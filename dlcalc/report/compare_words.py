"""Words of a comparison that the report and its errors share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlcalc.report.compare_facts import Candidate, Choice, Failures, Range
from dlcalc.utils import units


def cell(value: Range | None, text: Callable[[float], str]) -> str:
    """An estimate, or ``-`` where it is not known or has no end."""
    return text(value.value) if value is not None and 0 < value.value < float("inf") else "-"


def days_cell(days: Range | None) -> str:
    """Days to the token budget; what takes forever is never done."""
    return "never" if days is not None and days.value == float("inf") else cell(days, units.days)


def no_progress(candidates: Sequence[Candidate], failures: Failures) -> str:
    """Which jobs fail too often to get anywhere, in a sentence; empty where none does."""
    stuck = {one.devices: one.goodput for one in candidates if one.goodput and not one.goodput.makes_progress}
    if not stuck:
        return ""
    counts = sorted(stuck)
    every = units.duration(stuck[counts[0]].failure_interval_s)
    needed = units.duration(failures.restart_s + failures.checkpoint_write_s)
    more = "" if len(counts) == 1 else f" on {counts[0]:,} and more often on more"
    return (
        f"No progress on {' or '.join(f'{count:,}' for count in counts)} devices: the job fails every {every}{more}, "
        f"while a restart and a checkpoint take {needed}. What is done in between is mostly lost again."
    )


def priced(one: Candidate) -> str:
    """A candidate with its days and cost: ``1,024 h100, bf16: 12.3 days, $1.23 M``."""
    days = f": {days_cell(one.days)} days" if one.days else ""
    return f"{one.name}{days}" + (f", {cell(one.cost_usd, units.money)}" if one.cost_usd else "")


def nearest_words(choice: Choice) -> str:
    """Limits that nothing keeps within, and what comes nearest."""
    miss = choice.nearest_miss
    if miss is None:
        return f"is {choice.limits}"
    if miss.goodput is not None and not miss.goodput.makes_progress:
        return f"is {choice.limits}: no job makes progress between its failures"
    return (
        f"is {choice.limits}; nearest is {priced(miss)}, {units.significant(choice.over_factor or 0.0)} times the limit"
    )
