"""Plans that would train a run faster, fewest changes first: what is worth changing, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlcalc.costmodel.plans import LAYER_WORDS
from dlcalc.report.plan_words import plan_words
from dlcalc.report.sections import Grid, Line, Part, Section
from dlcalc.utils import units


@dataclass(frozen=True)
class BetterPlan:
    """A faster plan."""

    n_changes: int
    """Choices that differ from the run's; dp follows from the other degrees and is not counted."""
    changes: Mapping[str, tuple[int | bool | str, int | bool | str]]
    """By knob: before and after."""
    plan: Mapping[str, int | bool | str]
    step_time_s: float
    memory_bytes: float
    speedup: float
    """Step time of the run over that of this plan."""


@dataclass(frozen=True)
class BetterPlans:
    """The ladder from the run as it is to the fastest plan of its space."""

    n_plans: int
    """Searched."""
    memory_headroom: float
    """Share of the memory that each leaves free."""
    runs: bool
    """Whether the run itself runs and fits."""
    step_time_s: float
    plans: tuple[BetterPlan, ...]
    """Each faster than all before it; the last is the fastest there is."""


def better_section(found: BetterPlans) -> Section:
    """The ladder as a chapter of a run's report."""
    parts: list[Part] = []
    free = f"{100 * found.memory_headroom:.0f} % of the memory free"
    searched = f"of {found.n_plans:,} plans for the same model, batch and devices"
    if not found.runs:
        parts.append(Line("The run as it is cannot run or does not fit; these can.", "warning"))
    if not found.plans:
        said = "fits" if not found.runs else "is faster"
        return Section(
            "BETTER PLANS", 1, (*parts, Line(f"None {searched} {said} and leaves {free}.", "answer")), "better"
        )
    rows = [
        (
            f"{plan.n_changes}",
            ", ".join(f"{knob} {_value(before)} -> {_value(after)}" for knob, (before, after) in plan.changes.items()),
            units.duration(plan.step_time_s, 4),
            f"{plan.speedup:.2f}x",
            f"{plan.memory_bytes / units.GIB:.1f}",
        )
        for plan in found.plans
    ]
    parts += [
        Grid(
            header=("changes", "what", "step", "faster by", "memory GiB"),
            rows=tuple(rows),
            left=frozenset({"what"}),
            title=f"For each number of changes, the fastest {searched} that leaves {free}:",
        ),
        Line(f"Fastest: {plan_words(found.plans[-1].plan)}", "answer"),
    ]
    return Section("BETTER PLANS", 1, tuple(parts), "better")


def _value(value: int | bool | str) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    words = {count: word for word, count in LAYER_WORDS.items()}  # negative, as no other value is
    return words.get(value, str(value)) if isinstance(value, int) else value
