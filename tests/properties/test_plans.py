"""The promise of Plans: the shape of a batch never changes an answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import KNOBS, Plans
from tests.scenarios import scenario

STUDIES = ["dense", "moe", "latent", "windowed"]


def _estimate(case, plans):
    return estimate(case.model, case.hardware, case.recipe, plans)


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("space", ["auto", "full"])
@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_a_grid_its_rows_and_its_points_agree(study, space, data):
    case = scenario(study, space)
    row = data.draw(st.integers(0, case.shape[0] - 1))
    grid = case.plans(row, row + 1)
    picked = np.sort(np.array(data.draw(st.lists(st.integers(0, len(grid) - 1), min_size=1, max_size=12))))
    rows = grid.take(picked)

    of_grid, of_rows = _estimate(case, grid), _estimate(case, rows)
    for quantity in ("step_time_s", "memory_bytes", "mfu", "hfu", "fits"):
        from_grid = np.broadcast_to(getattr(of_grid, quantity), grid.shape).ravel()[picked]
        from_rows = np.broadcast_to(getattr(of_rows, quantity), picked.shape)
        np.testing.assert_array_equal(from_grid, from_rows, err_msg=quantity)  # to the last digit
        point = rows.take(np.array(0))
        alone = getattr(_estimate(case, point), quantity)
        assert float(alone) == float(from_rows[0]), quantity


@pytest.mark.parametrize("study", STUDIES)
def test_the_index_of_a_plan_finds_its_knobs(study):
    case = scenario(study, "auto")
    index = np.linspace(0, case.n_plans - 1, 50).astype(np.int64)
    of_index = case.rows(index)
    of_grid = case.plans().take(index)
    for knob in KNOBS:
        np.testing.assert_array_equal(getattr(of_index, knob), getattr(of_grid, knob), err_msg=knob)


@pytest.mark.parametrize("study", STUDIES)
def test_terms_add_up_to_the_step(study):
    case = scenario(study, "auto")
    found = _estimate(case, case.plans(0, 2))
    shape = found.plans.shape
    terms = sum(np.broadcast_to(value, shape) for value in found.step.terms().values())
    where = np.broadcast_to(found.runs, shape)
    assert where.any()
    np.testing.assert_allclose(terms[where], np.broadcast_to(found.step_time_s, shape)[where], rtol=1e-12)


def test_a_point_reads_like_its_knobs():
    plan = Plans.point(tp=8, pp=4, schedule="interleaved", vpp=5, recompute="full", sequence_parallel=True)
    assert plan.shape == ()
    assert (float(plan.tp), float(plan.schedule), float(plan.recompute)) == (8, 1, 2)
    assert float(plan.recompute_layers) == -1
