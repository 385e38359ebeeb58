"""Other plans for the same run: the fastest there are, and the one that differs least from a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.search.exhaustive import BLOCK_PLANS, Found, search_block
from dlcalc.search.run import Run
from dlcalc.search.space import Scenario, axes_of
from dlcalc.specs.space import KnobRanges

LEADERS = 10_000
"""Fastest plans among which the nearest is looked for."""

Knobs = Mapping[str, int | bool | str]


@dataclass(frozen=True)
class Alternative:
    """A plan that runs and fits."""

    knobs: Knobs
    step_time_s: float
    memory_bytes: float


def scenario_of_run(run: Run, ranges: KnobRanges | None = None, constraints: Sequence[str] = ()) -> Scenario:
    """Every plan of the model, machine, devices and recipe of ``run``."""
    return Scenario(
        name=run.name,
        model=run.model,
        hardware=run.hardware,
        devices=run.devices,
        recipe=run.recipe,
        axes=axes_of(run.model, run.hardware, run.devices, run.recipe, ranges or KnobRanges()),
        constraints=tuple(constraints),
        memory_headroom=run.memory_headroom,
        custom_split=run.custom_split,
    )


def fastest_plans(scenario: Scenario, keep: int = LEADERS) -> tuple[Alternative, ...]:
    """The ``keep`` fastest plans of a scenario, fastest first; none where nothing fits."""
    found = Found()
    for start, stop in scenario.blocks(BLOCK_PLANS):
        part = search_block(scenario, start, stop, keep=keep, bound=found.bound(keep, "step_time"))
        found.add(part, keep=keep, key="step_time")
    leaders = found.leaders.best(keep, "step_time")
    columns = scenario.rows(leaders.index).columns()
    return tuple(
        Alternative(
            knobs={knob: value_of(knob, float(columns[knob][position])) for knob in KNOBS},
            step_time_s=float(leaders.step_time_s[position]),
            memory_bytes=float(leaders.memory_bytes[position]),
        )
        for position in range(len(leaders.index))
    )


def nearest_plan(plans: Sequence[Alternative], knobs: Knobs) -> Alternative | None:
    """Of ``plans`` the one that differs from ``knobs`` in the fewest, the fastest of several."""
    return min(plans, key=lambda plan: (len(changed(knobs, plan.knobs)), plan.step_time_s), default=None)


def changed(before: Knobs, after: Knobs) -> tuple[str, ...]:
    """Knobs whose values differ."""
    return tuple(knob for knob in KNOBS if before[knob] != after[knob])
