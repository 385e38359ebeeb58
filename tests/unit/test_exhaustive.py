"""The search finds what a look at every plan finds, however the space is cut."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.costmodel.estimate import OUT_OF_MEMORY
from dlcalc.costmodel.tiles import tiles
from dlcalc.search.exhaustive import Found, evaluate, search_block
from dlcalc.search.pareto import ParetoFilter, front
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


@pytest.mark.parametrize("block_rows", [2, 10_000])
def test_plans_estimated_in_full_are_counted(brute_force, block_rows):
    """All that run, and of the refused ones those that share all their rows with one that runs."""
    case, _, _, _, every = brute_force
    found = _search(case, block_rows)
    looked_at = [tile for start in range(case.shape[0]) for tile in tiles(evaluate(case, start, start + 1), row(case))]
    assert found.n_estimated == sum(tile.runs.size for tile in looked_at)
    assert sum(np.count_nonzero(tile.runs) for tile in looked_at) == np.count_nonzero(
        np.broadcast_to(every.runs, case.shape)
    )
    assert found.n_fit <= found.n_estimated < found.n_plans


def row(case):
    """The shape of one mesh row of a case."""
    return (1, *case.shape[1:])


def test_every_mesh_is_a_product_of_the_devices():
    case = scenario("moe", "full")
    mesh = case.axes[0]
    np.testing.assert_array_equal(mesh["tp"] * mesh["cp"] * mesh["pp"] * mesh["dp"], case.devices)
    rows = set(zip(*(mesh[k].tolist() for k in ("tp", "cp", "pp", "dp", "ep", "etp")), strict=True))
    assert len(rows) == case.shape[0]
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
