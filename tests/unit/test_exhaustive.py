"""The search finds what a look at every plan finds, however the space is cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlcalc.costmodel.bounds import fitting, least_memory_bytes, least_step_time_s
from dlcalc.costmodel.estimate import OUT_OF_MEMORY
from dlcalc.costmodel.placement import Crossing, unplaced
from dlcalc.costmodel.plans import number
from dlcalc.costmodel.tiles import parts, tile_at, tiles
from dlcalc.search.exhaustive import evaluate, search_block
from dlcalc.search.found import Found
from dlcalc.search.pareto import ParetoFilter, front
from dlcalc.search.space import DEGREES
from tests.scenarios import scenario


def _search(case, block_rows, keep=25, key="step_time"):
    found = Found()
    for start in range(0, case.shape[0], block_rows):
        stop = min(start + block_rows, case.shape[0])
        block = search_block(case, start, stop, keep=keep, key=key, bound=found.bound(keep, key), fastest=found.fastest)
        found.add(block, keep=keep, key=key)
    return found


@pytest.fixture(scope="module")
def brute_force():
    """Every plan of the dense scenario, flat."""
    case = scenario("dense", "auto")
    every = evaluate(case, 0, case.shape[0])
    shape = case.shape
    return (
        case,
        np.broadcast_to(every.step_time_s, shape).ravel(),
        np.broadcast_to(every.memory_bytes, shape).ravel(),
        np.broadcast_to(every.fits, shape).ravel(),
        every,
    )


@pytest.mark.parametrize("block_rows", [1, 3, 7, 10_000])
@pytest.mark.parametrize("key", ["step_time", "memory"])
def test_the_kept_plans_are_the_best_whatever_the_block(brute_force, block_rows, key):
    case, step, memory, fits, _ = brute_force
    found = _search(case, block_rows, key=key)
    index = np.flatnonzero(fits)
    order = (index, step[index]) if key == "step_time" else (index, step[index], memory[index])
    expected = index[np.lexsort(order)][:25]
    np.testing.assert_array_equal(found.leaders.index, expected)
    assert found.n_plans == case.n_plans == len(step)
    assert found.n_fit == np.count_nonzero(fits)
    near = np.flatnonzero(fits & (step <= 1.02 * step[fits].min()))
    assert set(found.near.index.tolist()) == set(near.tolist())


@pytest.mark.parametrize("block_rows", [2, 10_000])
def test_refusals_are_counted_plan_by_plan(brute_force, block_rows):
    case, _, memory, _, every = brute_force
    found = _search(case, block_rows)
    for reason, mask in every.refused.items():
        assert found.refused[reason] == np.count_nonzero(np.broadcast_to(mask, case.shape)), reason
    runs = np.broadcast_to(every.runs, case.shape).ravel()
    assert found.refused[OUT_OF_MEMORY] == np.count_nonzero(runs & (memory > every.capacity_bytes))


def test_parts_hold_every_plan_that_runs_exactly_once(brute_force):
    case, _, _, _, every = brute_force
    runs = np.flatnonzero(np.broadcast_to(every.runs, case.shape))
    for in_order in (True, False):
        seen = [
            tile.plan_index(np.flatnonzero(np.broadcast_to(tile.runs, tile.step_time_s.shape)))
            for part in parts(every, case.shape, in_order=in_order)
            for tile in tiles(part)
        ]
        np.testing.assert_array_equal(np.sort(np.concatenate(seen)), runs)


def test_a_part_is_estimated_as_the_grid_is(brute_force):
    case, step, memory, fits, every = brute_force
    for part in parts(every, case.shape):
        points = np.arange(np.prod(part.point_shape))
        tile = tile_at(part, points)
        local = np.flatnonzero(tile.runs)
        index = tile.plan_index(local)
        np.testing.assert_array_equal(tile.step_time_s.reshape(-1)[local], step[index])
        np.testing.assert_array_equal(tile.memory_bytes.reshape(-1)[local], memory[index])
        assert fitting(part).n_fit == np.count_nonzero(fits[index])
        assert fitting(part).n_run == len(index)


def test_placed_plans_take_their_links_along(brute_force):
    """Links that differ by pipeline, as those of placed plans do."""
    case, _, _, _, every = brute_force
    slower = Crossing(np.linspace(5e9, 5e10, case.shape[2]).reshape(1, 1, -1, 1, 1, 1), number(2e-6))
    rates = replace(unplaced(case.hardware), pp=slower, shard=slower)
    placed = replace(every, placed=rates)
    step = np.broadcast_to(placed.step_time_s, case.shape).ravel()
    fits = np.flatnonzero(np.broadcast_to(placed.fits, case.shape))
    found = search_block(case, 0, case.shape[0], keep=40, placed=rates)
    assert found.leaders.index.tolist() == fits[np.lexsort((fits, step[fits]))][:40].tolist()


def test_nothing_beats_its_bounds(brute_force):
    case, _, _, _, every = brute_force
    for part in parts(every, case.shape):
        fitting_points = np.flatnonzero(fitting(part).points)
        tile = tile_at(part, fitting_points)
        fits = tile.memory_bytes <= every.capacity_bytes
        steps = np.where(fits, tile.step_time_s, np.inf).min(axis=1)
        least_s = least_step_time_s(part).reshape(-1)[fitting_points]
        assert np.all(least_s <= steps)
        assert np.median(least_s / steps) > 0.9, "the bound says little"
        least_bytes = least_memory_bytes(part).reshape(-1)[fitting_points]
        np.testing.assert_array_equal(least_bytes, np.where(tile.runs, tile.memory_bytes, np.inf).min(axis=1))


def test_every_mesh_is_a_product_of_the_devices():
    case = scenario("moe", "full")
    mesh = case.axes[0]
    np.testing.assert_array_equal(mesh["tp"] * mesh["cp"] * mesh["pp"] * mesh["dp"], case.devices)
    rows = set(zip(*(mesh[k].tolist() for k in (*DEGREES, "cp_exchange")), strict=True))
    assert len(rows) == case.shape[0]
    assert all(mesh["cp_exchange"][mesh["cp"] == 1] == mesh["cp_exchange"][0])
    stage = mesh["tp"] * mesh["cp"] * mesh["dp"]
    assert np.all(stage % (mesh["ep"] * mesh["etp"]) == 0)


def test_the_front_holds_every_plan_that_nothing_beats():
    random = np.random.default_rng(7)
    steps, memory = random.integers(1, 30, (2, 400)).astype(float)
    expected = [
        i
        for i in range(400)
        if not any(
            (steps[j] < steps[i] and memory[j] <= memory[i])
            or (steps[j] <= steps[i] and memory[j] < memory[i])
            or (steps[j] == steps[i] and memory[j] == memory[i] and j < i)
            for j in range(400)
        )
    ]
    assert front(steps, memory).tolist() == expected

    filtered = ParetoFilter()
    kept = np.concatenate(
        [
            start + filtered.candidates(steps[start : start + 57], memory[start : start + 57])
            for start in range(0, 400, 57)
        ]
    )
    pairs = {(steps[i], memory[i]) for i in kept[front(steps[kept], memory[kept])]}
    assert pairs == {(steps[i], memory[i]) for i in expected}
