"""Placement against every placement there is, on hundreds of small random fabrics."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.errors import NoPlacementError
from dlcalc.topology.assign import place
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.job import JobShape
from dlcalc.topology.rings import ring_hops, tour_hops
from tests.fabrics import best_by_brute_force, fabrics

SHAPES = [(1, 3), (2, 2), (3, 2), (2, 3), (4, 2), (2, 4), (3, 3), (1, 6), (5, 1)]
"""(rings, nodes of each)"""


def job_of(n_rings: int, ring_nodes: int) -> JobShape:
    return JobShape(tp=8, pp=n_rings, dp=ring_nodes)


def is_sound(fabric: Fabric, placed) -> None:
    """What every placement promises, whatever its objective."""
    job = placed.job
    assert len(placed.rings) == job.n_rings
    assert {len(ring) for ring in placed.rings} == {job.ring_nodes}
    assert len(set(placed.node_order)) == job.n_nodes
    assert placed.cost_hops == sum(tour_hops(fabric, ring) for ring in placed.rings)
    assert placed.lower_bound <= placed.cost
    assert placed.proved_optimal == (placed.cost == placed.lower_bound)


@settings(max_examples=300)
@given(fabrics(fewest_nodes=6), st.sampled_from(SHAPES))
def test_hops_are_never_below_the_optimum_nor_the_bound_above(fabric, shape):
    job = job_of(*shape)
    best = best_by_brute_force(fabric, job)
    if best is None:
        with pytest.raises(NoPlacementError):
            place(fabric, job)
        return
    placed = place(fabric, job)
    is_sound(fabric, placed)
    assert all(tour_hops(fabric, ring) == ring_hops(fabric, ring) for ring in placed.rings)
    assert placed.lower_bound_hops <= best <= placed.cost_hops
    if placed.proved_optimal:
        assert placed.cost_hops == best


@settings(max_examples=200)
@given(fabrics(fewest_nodes=6), st.sampled_from(SHAPES))
def test_the_largest_ring_is_never_below_the_optimum_nor_its_bound_above(fabric, shape):
    job = job_of(*shape)
    best = best_by_brute_force(fabric, job, cost=max)
    if best is None:
        return
    placed = place(fabric, job, objective="worst_ring")
    is_sound(fabric, placed)
    assert placed.lower_bound <= best <= placed.cost
    assert placed.cost == max(tour_hops(fabric, ring) for ring in placed.rings)
    if placed.proved_optimal:
        assert placed.cost == best
    assert placed.lower_bound_hops is None


def blocks_fit(names, block: int, label) -> bool:
    """Whether a ring can be ordered so that every ``block`` consecutive nodes share one label."""
    held = {}
    for name in names:
        held[label(name)] = held.get(label(name), 0) + 1
    return "" not in held and all(count % block == 0 for count in held.values())


@settings(max_examples=200)
@given(fabrics(domains=True, fewest_nodes=6), st.sampled_from([(1, 2), (2, 2), (1, 4), (2, 4), (3, 2)]))
def test_tensor_parallel_groups_stay_in_their_domain(fabric, shape):
    """tp 16 on nodes of 8: every two consecutive nodes are of one domain."""
    job = JobShape(tp=16, pp=shape[0], dp=shape[1] // 2)
    of_root = {name: f"{fabric.chains[name][-1]} {node.domain}" for name, node in fabric.by_name.items()}
    best = best_by_brute_force(fabric, job, allowed=lambda ring: blocks_fit(ring, 2, of_root.__getitem__))
    if best is None:
        with pytest.raises(NoPlacementError, match="needs"):
            place(fabric, job)
        return
    placed = place(fabric, job)
    is_sound(fabric, placed)
    assert placed.lower_bound <= best <= placed.cost
    assert placed.cost == best if placed.proved_optimal else True
    for a, b in zip(placed.node_order[::2], placed.node_order[1::2], strict=True):
        assert of_root[a] == of_root[b]


@settings(max_examples=200)
@given(fabrics(domains=True, fewest_nodes=6, nested=False), st.sampled_from([(1, 2), (2, 2), (1, 4), (2, 4)]))
def test_bounds_hold_where_domains_hang_from_several_switches(fabric, shape):
    job = JobShape(tp=16, pp=shape[0], dp=shape[1] // 2)
    of_root = {name: f"{fabric.chains[name][-1]} {node.domain}" for name, node in fabric.by_name.items()}
    best = best_by_brute_force(fabric, job, allowed=lambda ring: blocks_fit(ring, 2, of_root.__getitem__))
    if best is None:
        with pytest.raises(NoPlacementError, match="needs"):
            place(fabric, job)
        return
    placed = place(fabric, job)
    is_sound(fabric, placed)
    assert placed.lower_bound <= best
    for a, b in zip(placed.node_order[::2], placed.node_order[1::2], strict=True):
        assert of_root[a] == of_root[b]


@settings(max_examples=200)
@given(fabrics(fewest_nodes=6), st.sampled_from([(1, 2), (2, 2), (1, 4), (2, 4), (3, 2)]))
def test_expert_groups_stay_under_one_switch_where_asked(fabric, shape):
    job = JobShape(tp=8, ep=16, pp=shape[0], dp=shape[1])
    closest = {name: node.switches[0] for name, node in fabric.by_name.items()}
    best = best_by_brute_force(fabric, job, allowed=lambda ring: blocks_fit(ring, 2, closest.__getitem__))
    if best is None:
        with pytest.raises(NoPlacementError, match="needs"):
            place(fabric, job, keep_together="switch")
        return
    placed = place(fabric, job, keep_together="switch")
    is_sound(fabric, placed)
    assert placed.lower_bound <= best <= placed.cost
    assert placed.cost == best if placed.proved_optimal else True
    for a, b in zip(placed.node_order[::2], placed.node_order[1::2], strict=True):
        assert closest[a] == closest[b]
