"""Laws that an estimate obeys whatever its constants: more of something good is never worse."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.calculators.schedule import GPIPE, INTERLEAVED, ONE_F_ONE_B
from dlcalc.calculators.stages import EVEN
from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import ALL_LAYERS
from dlcalc.specs.recompute import FULL, NONE
from tests.scenarios import scenario

STUDIES = ["dense", "moe", "latent", "windowed"]
N_ROWS = 300
SLACK = 1 + 1e-9  # of rounding


def some_plans(study, seed):
    """Plans of the full space, picked at random."""
    case = scenario(study, "full")
    return case, case.rows(np.random.default_rng(seed).integers(0, case.n_plans, N_ROWS))


def estimated(case, plans, *, hardware=None, **recipe):
    found = estimate(case.model, hardware or case.hardware, case.recipe.model_copy(update=recipe), plans)
    return found, np.broadcast_to(found.step_time_s, N_ROWS), np.broadcast_to(found.memory_bytes, N_ROWS)


def scaled(hardware, part, field, factor):
    """The hardware with one of its numbers (or all of a table) times ``factor``."""
    section = getattr(hardware, part)
    value = getattr(section, field)

    def times(quoted):
        return quoted.model_copy(update={"value": quoted.value * factor})

    changed = {key: times(each) for key, each in value.items()} if isinstance(value, dict) else times(value)
    return hardware.model_copy(update={part: section.model_copy(update={field: changed})})


WHOLE_BACKWARD = (ONE_F_ONE_B, INTERLEAVED, GPIPE)
"""Schedules that do not postpone weight gradients."""
FASTER = [
    ("device", "peak_tflops"),
    ("device", "hbm_tb_per_s"),
    ("node", "link_gb_per_s"),
    ("node", "host_link_gb_per_s"),
    ("fabric", "nic_gbit_per_s_per_device"),
]
laws = settings(max_examples=12, deadline=None)
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("part", "field"), FASTER)
@laws
@given(study=st.sampled_from(STUDIES), seed=seeds, factor=st.floats(1.0, 8.0))
def test_faster_hardware_is_never_slower(part, field, study, seed, factor):
    """But for what hides or fills gaps: where launches or offload set the pace, less of it means more to wait for."""
    case, plans = some_plans(study, seed)
    plans = replace(plans, overlap_grad=np.zeros(N_ROWS), overlap_param=np.zeros(N_ROWS))
    found, before, _ = estimated(case, plans)
    _, after, _ = estimated(case, plans, hardware=scaled(case.hardware, part, field, factor))
    paced = (plans.offload_layers > 0) & (plans.vpp > 1)  # by the host, while shorter passes hide less of the sends
    runs = np.broadcast_to(found.runs & np.isin(plans.schedule, WHOLE_BACKWARD) & ~paced, N_ROWS)
    assert np.all(after[runs] <= before[runs] * SLACK)


@laws
@given(study=st.sampled_from(STUDIES), seed=seeds, factor=st.floats(1.0, 4.0))
def test_more_memory_never_refuses_more(study, seed, factor):
    case, plans = some_plans(study, seed)
    larger = scaled(case.hardware, "device", "hbm_gib", factor)
    if larger.device.usable_hbm_gib:
        larger = scaled(larger, "device", "usable_hbm_gib", factor)
    before, after = estimated(case, plans)[0], estimated(case, plans, hardware=larger)[0]
    assert not np.any(before.fits & ~after.fits)
    np.testing.assert_array_equal(before.step_time_s, after.step_time_s)  # and memory is not time


@laws
@given(study=st.sampled_from(STUDIES), seed=seeds)
def test_recomputation_saves_memory_and_costs_time(study, seed):
    case, plans = some_plans(study, seed)
    layers = np.full(N_ROWS, float(ALL_LAYERS))
    none = replace(plans, recompute=np.full(N_ROWS, float(NONE)), recompute_layers=layers, offload_layers=0 * layers)
    full = replace(none, recompute=np.full(N_ROWS, float(FULL)))
    found, time_kept, memory_kept = estimated(case, none)
    _, time_again, memory_again = estimated(case, full)
    runs = np.broadcast_to(found.runs, N_ROWS)
    assert np.all(memory_again[runs] <= memory_kept[runs] * SLACK)
    assert np.all(time_again[runs] * SLACK >= time_kept[runs])


@laws
@given(study=st.sampled_from(STUDIES), seed=seeds, factor=st.integers(2, 5))
def test_a_larger_batch_never_costs_more_time_a_token(study, seed, factor):
    case, plans = some_plans(study, seed)
    found, before, _ = estimated(case, plans)
    larger, after, _ = estimated(case, plans, global_batch=factor * case.recipe.global_batch)
    runs = np.broadcast_to(found.runs & larger.runs, N_ROWS)
    assert np.all(after[runs] <= factor * before[runs] * SLACK)
    assert np.all(after[runs] * SLACK >= before[runs])  # nor less in all


@laws
@given(study=st.sampled_from(STUDIES), seed=seeds)
def test_sharding_more_never_needs_more_memory(study, seed):
    """Optimizer states, then gradients; of stage 3 the states alone, because it also gathers layers.

    Trainers that gather once a step keep in a pipeline what stage 1 keeps.
    """
    case, plans = some_plans(study, seed)
    plans = replace(plans, dp_replicate=np.ones(N_ROWS), offload_layers=np.zeros(N_ROWS))
    stages = [replace(plans, zero_stage=np.full(N_ROWS, float(stage))) for stage in range(4)]
    found = [estimated(case, stage) for stage in stages]
    for (_, _, more), (_, _, less) in pairwise(found[:3]):
        assert np.all(less <= more * SLACK)
    states = [
        e.footprint.weights_bytes + e.footprint.gradients_bytes + e.footprint.optimizer_bytes for e, _, _ in found
    ]
    for more, less in pairwise(states[:3]):
        assert np.all(less <= more * SLACK)
    once = np.broadcast_to(case.recipe.framework.gathers_once_in_pipeline & (plans.pp > 1), N_ROWS)
    sharded, first, whole = (np.broadcast_to(states[stage], (len(states[stage]), N_ROWS)) for stage in (3, 1, 2))
    assert np.all(sharded[:, ~once] <= whole[:, ~once] * SLACK)
    np.testing.assert_array_equal(sharded[:, once], first[:, once])


@laws
@given(study=st.sampled_from(STUDIES), seed=seeds)
def test_every_term_of_a_plan_that_runs_is_a_quantity(study, seed):
    case, plans = some_plans(study, seed)
    found, step, memory = estimated(case, plans)
    runs = np.broadcast_to(found.runs, N_ROWS)
    assert np.all(np.isfinite(step[runs]) & (step[runs] > 0))
    assert np.all(np.isfinite(memory[runs]) & (memory[runs] > 0))
    for name, term in {**found.step.terms(), **found.footprint.terms_of_peak()}.items():
        # the average stage has parts of layers: where a stage has fewer than are recomputed, it recomputes too many
        rounding = 0.01 * np.asarray((plans.recompute_layers != ALL_LAYERS) & (plans.split != EVEN))[runs]
        values = np.broadcast_to(term, N_ROWS)[runs]
        scale = (step if name.endswith("_s") else memory)[runs]
        assert np.all(np.isfinite(values)), name
        assert np.all(values >= -(1e-9 + rounding * (name == "imbalance_s")) * scale), name
    assert np.all(np.broadcast_to(found.mfu, N_ROWS)[runs] < 1)
    assert np.all(np.broadcast_to(found.hfu, N_ROWS)[runs] >= np.broadcast_to(found.mfu, N_ROWS)[runs])


@laws
@given(study=st.sampled_from(STUDIES), seed=seeds)
def test_terms_of_memory_add_up_to_the_peak(study, seed):
    case, plans = some_plans(study, seed)
    found, _, memory = estimated(case, plans)
    runs = np.broadcast_to(found.runs, N_ROWS)
    total = sum(np.broadcast_to(term, N_ROWS) for term in found.footprint.terms_of_peak().values())
    np.testing.assert_allclose(total[runs], memory[runs], rtol=1e-9)


@pytest.mark.parametrize("study", STUDIES)
def test_a_mesh_row_of_a_full_space_is_estimated_in_bounded_memory(study):
    """Its totals are full-size, a few arrays at a time; its terms are not."""
    case = scenario(study, "full")
    full_size_bytes = 8 * case.n_plans // case.shape[0]
    estimate(case.model, case.hardware, case.recipe, case.plans(0, 1))  # loads what is loaded once
    tracemalloc.start()
    try:
        found = estimate(case.model, case.hardware, case.recipe, case.plans(0, 1))
        terms_bytes = tracemalloc.get_traced_memory()[1]
        sizes = [np.size(getattr(found, quantity)) for quantity in ("step_time_s", "memory_bytes", "mfu", "fits")]
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sizes == [case.n_plans // case.shape[0]] * 4
    assert terms_bytes < 3 * full_size_bytes
    assert peak_bytes < 8 * full_size_bytes
