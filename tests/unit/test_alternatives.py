"""Plans a few changes away: the fastest of each distance is really the fastest, and the distance counts choices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import DEFAULTS, KNOBS, Plans, code_of, value_of
from dlcalc.hardware_registry import load_hardware
from dlcalc.search.alternatives import CHOICES, alternatives, changed, n_changes, scenario_around
from dlcalc.search.run import Run
from dlcalc.search.space import default_profile_knobs
from dlcalc.search.study import resolved_recipes
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.space import RecipeSpec

RECIPE = RecipeSpec(seq_len=4096, global_batch=64)


def run_of(framework="megatron", target=None, headroom=0.0, **knobs):
    (recipe,) = resolved_recipes(RECIPE.model_copy(update={"framework": framework, "target": target}))
    return Run(
        name="run",
        written={},
        model=load_model("llama3-8b"),
        hardware=load_hardware("h100"),
        recipe=recipe,
        plan=Plans.point(**{**default_profile_knobs(recipe.framework), **knobs}),
        memory_headroom=headroom,
    )


def knobs_of(run):
    return {knob: value_of(knob, float(getattr(run.plan, knob))) for knob in KNOBS}


def brute_force(scenario, knobs):
    """Fastest step by number of changes, from every plan of the space at once."""
    plans = scenario.rows(np.arange(scenario.n_plans))
    found = estimate(
        scenario.model, scenario.hardware, scenario.recipe, plans, memory_headroom=scenario.memory_headroom
    )
    fits = np.broadcast_to(found.fits, len(plans))
    count = n_changes(plans.columns(), knobs)[fits]
    step = np.broadcast_to(found.step_time_s, len(plans))[fits]
    return {int(n): float(step[count == n].min()) for n in np.unique(count)}


@settings(max_examples=8, deadline=None)
@given(
    tp=st.sampled_from([1, 2, 4]),
    pp=st.sampled_from([1, 2]),
    micro_batch=st.sampled_from([1, 2, 3]),
    recompute=st.sampled_from(["none", "selective", "full"]),
    framework=st.sampled_from(["megatron", "torchtitan"]),
)
def test_each_rung_is_the_fastest_of_its_distance(tp, pp, micro_batch, recompute, framework):
    run = run_of(framework, tp=tp, pp=pp, dp=8 // (tp * pp), micro_batch=micro_batch, recompute=recompute)
    scenario, knobs = scenario_around(run), knobs_of(run)
    ladder = alternatives(scenario, knobs)
    expected = brute_force(scenario, knobs)
    assert {plan.n_changes: plan.step_time_s for plan in ladder} == pytest.approx(expected, rel=1e-9)


def test_a_run_that_fits_is_its_own_nearest_plan():
    run = run_of(tp=2, dp=4, micro_batch=4, sequence_parallel=1)
    nearest = alternatives(scenario_around(run), knobs_of(run))[0]
    assert nearest.n_changes == 0
    assert nearest.knobs == knobs_of(run)
    assert nearest.step_time_s == pytest.approx(float(run.estimate().step_time_s), rel=1e-9)


def test_the_space_around_a_run_holds_its_own_unusual_values():
    """micro_batch 3 and uncommon overlaps are in no automatic range."""
    run = run_of(tp=1, dp=8, micro_batch=3, overlap_grad=0, overlap_param=0)
    axes = {knob: values for axis in scenario_around(run).axes for knob, values in axis.items()}
    assert 3 in axes["micro_batch"]
    assert 1 in axes["micro_batch"]
    assert {0.0, 1.0} <= set(axes["overlap_grad"])


def test_degrees_that_follow_are_no_changes_of_their_own():
    knobs = knobs_of(run_of(tp=2, dp=8))
    columns = {knob: np.array([code_of(knob, value)]) for knob, value in knobs.items()}
    assert n_changes(columns, knobs).tolist() == [0]
    assert n_changes({**columns, "pp": np.array([2.0]), "dp": np.array([4.0])}, knobs).tolist() == [1]
    both = {"schedule": np.array([1.0]), "vpp": np.array([4.0])}
    assert n_changes({**columns, **both}, knobs).tolist() == [1]
    assert {knob for choice in CHOICES for knob in choice} | {"dp"} == set(KNOBS)


def test_changed_names_the_knobs_that_differ():
    knobs = knobs_of(run_of(tp=2, dp=8))
    assert changed(knobs, {**knobs, "tp": 4, "dp": 4}) == ("tp", "dp")


def test_nothing_fits_on_a_machine_that_is_too_small():
    run = run_of(dp=2, headroom=0.95)
    assert alternatives(scenario_around(run), knobs_of(run)) == ()


def test_what_would_be_exchanged_at_cp_1_is_no_change():
    """torchtitan's plans carry its all-gather; to another trainer's ring that is none where nothing is sent."""
    gathers = {knob: value_of(knob, value) for knob, value in DEFAULTS.items()} | {"cp_exchange": "all_gather"}
    ring = gathers | {"cp_exchange": "ring"}
    assert changed(gathers, ring) == ()
    assert changed(gathers | {"cp": 2}, ring | {"cp": 2}) == ("cp_exchange",)

    def count(cp):
        columns = {knob: np.array([code_of(knob, value)]) for knob, value in (ring | {"cp": cp}).items()}
        return int(n_changes(columns, gathers | {"cp": cp})[0])

    assert (count(1), count(2)) == (0, 1)
