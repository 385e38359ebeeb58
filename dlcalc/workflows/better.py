"""Which plan would train a run faster: the use case behind ``3dtrn --better``."""

from __future__ import annotations

from dataclasses import replace

from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.report.better import BetterPlan, BetterPlans
from dlcalc.search.alternatives import Alternative, Knobs, alternatives, changed, scenario_around
from dlcalc.search.run import RunSource

WORTH_A_CHANGE = 0.002
"""Share of the step that one more change must save; less cannot be told apart by any estimate."""


HEADROOM = 0.05
"""Share of the memory that a plan to change to must leave free, as a search has it unless told otherwise."""


def better_plans(source: RunSource) -> BetterPlans:
    """The fastest plans one, two, three ... changes away from the run, as far as each further change pays."""
    run = source.resolve({})
    knobs: Knobs = {knob: value_of(knob, float(getattr(run.plan, knob))) for knob in KNOBS}
    scenario = scenario_around(replace(run, memory_headroom=max(run.memory_headroom, HEADROOM)))
    found = run.estimate()
    step_time_s = float(found.step_time_s)
    runs = _runs(found)
    best_s = step_time_s if runs else float("inf")
    ladder: list[BetterPlan] = []
    for plan in alternatives(scenario, knobs):
        if plan.n_changes and plan.step_time_s < best_s * (1.0 - WORTH_A_CHANGE):
            best_s = plan.step_time_s
            ladder.append(_better(plan, knobs, step_time_s))
    return BetterPlans(scenario.n_plans, scenario.memory_headroom, runs, step_time_s, tuple(ladder))


def _better(plan: Alternative, knobs: Knobs, step_time_s: float) -> BetterPlan:
    return BetterPlan(
        n_changes=plan.n_changes,
        changes={knob: (knobs[knob], plan.knobs[knob]) for knob in changed(knobs, plan.knobs)},
        plan=plan.knobs,
        step_time_s=plan.step_time_s,
        memory_bytes=plan.memory_bytes,
        speedup=step_time_s / plan.step_time_s,
    )


def _runs(found: Estimate) -> bool:
    return bool(found.fits.all())
