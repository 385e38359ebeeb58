"""Placement by seconds, against every order of every choice of nodes on small random fabrics."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.errors import NoPlacementError, TopologyError
from dlcalc.topology.assign import place
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.job import JobShape
from dlcalc.topology.seconds import Traffic, tiers_of
from tests.fabrics import fabrics

JOBS = [
    JobShape(tp=8, pp=1, dp=3),
    JobShape(tp=8, pp=2, dp=2),
    JobShape(tp=8, pp=3, dp=2),
    JobShape(tp=8, pp=2, dp=3),
    JobShape(tp=8, pp=1, dp=4, ep=16),
    JobShape(tp=8, pp=1, dp=2, cp=2),
    JobShape(tp=8, pp=1, dp=2, cp=2, ep=16),
    JobShape(tp=8, pp=5, dp=1),
]


def slowest_s(fabric: Fabric, groups, rates) -> float:
    """Seconds per byte of the slowest pair of nodes that share a group."""
    worst = 0.0
    for group in groups:
        for a, b in itertools.combinations(group, 2):
            meet = fabric.meets_at(a, b)
            worst = max(worst, 1.0 / (rates[-1] if meet is None else rates[fabric.tier[meet]]))
    return worst


def seconds_of(fabric: Fabric, job: JobShape, order, traffic: Traffic, rates) -> float:
    m = job.ring_nodes
    rings = [order[at : at + m] for at in range(0, len(order), m)]

    def blocks(devices):
        size = max(1, devices // job.node_devices)
        return [ring[at : at + size] for ring in rings for at in range(0, m, size)]

    neighbours = [pair for a, b in itertools.pairwise(rings) for pair in zip(a, b, strict=True)]
    return (
        traffic.dp_bytes * slowest_s(fabric, rings, rates)
        + traffic.cp_bytes * slowest_s(fabric, blocks(job.tp * job.cp), rates)
        + traffic.ep_bytes * slowest_s(fabric, blocks(job.ep * job.etp), rates)
        + traffic.pp_bytes * slowest_s(fabric, neighbours, rates)
    )


def best_by_brute_force(fabric: Fabric, job: JobShape, traffic: Traffic, rates) -> float | None:
    m, best = job.ring_nodes, None
    for order in itertools.permutations(fabric.by_name, job.n_nodes):
        rings = [order[at : at + m] for at in range(0, len(order), m)]
        if all(len({fabric.chains[name][-1] for name in ring}) == 1 for ring in rings):
            seconds = seconds_of(fabric, job, order, traffic, rates)
            best = seconds if best is None else min(best, seconds)
    return best


@settings(max_examples=150)
@given(
    fabrics(fewest_nodes=4, most_nodes=6), st.sampled_from(JOBS), st.lists(st.integers(0, 9), min_size=4, max_size=4)
)
def test_seconds_are_never_below_the_optimum_nor_the_bound_above(fabric, job, sizes):
    rates = tuple(4.0 / 2**tier for tier in range(fabric.n_tiers))
    fabric = replace(fabric, tier_bytes_per_s_per_node=rates)
    traffic = Traffic(*map(float, sizes))
    best = best_by_brute_force(fabric, job, traffic, rates)
    if best is None:
        with pytest.raises(NoPlacementError):
            place(fabric, job, objective="seconds", traffic=traffic)
        return
    placed = place(fabric, job, objective="seconds", traffic=traffic)
    assert len(set(placed.node_order)) == job.n_nodes
    assert placed.cost == pytest.approx(seconds_of(fabric, job, placed.node_order, traffic, rates), rel=1e-12)
    assert placed.lower_bound <= best * (1 + 1e-12)
    assert placed.cost >= best * (1 - 1e-12)
    if placed.proved_optimal:
        assert placed.cost == pytest.approx(best, rel=1e-12)


def two_tiers(n_leaves: int, per_leaf: int, rates=(8.0, 1.0)) -> Fabric:
    """Leaves under one core that is eight times slower."""
    nodes = [FabricNode(f"n{at}", (f"l{at // per_leaf}", "core")) for at in range(n_leaves * per_leaf)]
    return Fabric(tuple(nodes), tier_bytes_per_s_per_node=rates)


def test_heavy_rings_stay_below_a_leaf_and_stages_cross():
    """Two stages of four nodes on leaves of four: 80 bytes at 8/s and 1 at 1/s, against 80 s the other way round."""
    placed = place(
        two_tiers(2, 4), JobShape(tp=8, pp=2, dp=4), objective="seconds", traffic=Traffic(80.0, pp_bytes=1.0)
    )
    assert placed.cost == 80 / 8 + 1 / 1
    assert placed.proved_optimal


def test_heavy_pipelines_stay_below_a_leaf_and_rings_cross():
    placed = place(
        two_tiers(2, 4), JobShape(tp=8, pp=2, dp=4), objective="seconds", traffic=Traffic(1.0, pp_bytes=80.0)
    )
    assert placed.cost == 1 / 1 + 80 / 8
    assert placed.proved_optimal


def test_expert_groups_and_their_pipeline_neighbours_share_leaves():
    """Experts of two nodes, four stages of four: a leaf of eight holds the like two nodes of every stage."""
    job = JobShape(tp=8, pp=4, dp=4, ep=16)
    placed = place(two_tiers(2, 8), job, objective="seconds", traffic=Traffic(1.0, ep_bytes=80.0, pp_bytes=80.0))
    assert placed.cost == 1 / 1 + 80 / 8 + 80 / 8
    assert placed.proved_optimal
    assert tiers_of(two_tiers(2, 8), job, placed.rings).ep == 0


def test_what_goes_higher_is_never_faster():
    """A core said to be faster than the leaves below it: its traffic passes them too."""
    placed = place(
        two_tiers(2, 2, rates=(1.0, 5.0)), JobShape(tp=8, pp=1, dp=4), objective="seconds", traffic=Traffic(10.0)
    )
    assert placed.cost == 10.0


def test_seconds_need_bandwidths_and_traffic():
    fabric = two_tiers(2, 2, rates=(1.0,))
    with pytest.raises(TopologyError, match="bandwidth of tier 1 is not known"):
        place(fabric, JobShape(tp=8, pp=1, dp=4), objective="seconds", traffic=Traffic(1.0))
    with pytest.raises(TopologyError, match="say the traffic"):
        place(fabric, JobShape(tp=8, pp=1, dp=4), objective="seconds")
    with pytest.raises(TopologyError, match=r"dp_bytes = -1\.0 must be at least 0"):
        Traffic(dp_bytes=-1.0)
