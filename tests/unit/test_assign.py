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

SHAPES = [(1, 1), (1, 3), (2, 2), (3, 2), (2, 3), (4, 2), (2, 4), (3, 3), (1, 6), (5, 1)]
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
@given(fabrics(), st.sampled_from(SHAPES))
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
