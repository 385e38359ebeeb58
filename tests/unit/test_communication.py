"""Collectives against hand calculations and their lower bounds."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from dlcalc.calculators.communication import (
    GroupLink,
    all_gather_time_s,
    all_reduce_time_s,
    all_to_all_time_s,
    reduce_scatter_time_s,
    ring_all_gather_time_s,
    send_time_s,
)
from dlcalc.specs.calibration import CollectiveRates

LINK = 400e9
NIC = 50e9
IDEAL = CollectiveRates(bus_fraction=1.0, latency_us=1.0)
FABRIC = CollectiveRates(bus_fraction=1.0, latency_us=2.0)
RATES = {"node": IDEAL, "fabric": FABRIC}
COLLECTIVES = [all_gather_time_s, reduce_scatter_time_s, all_reduce_time_s, all_to_all_time_s]


def group(n_ranks, ranks_per_node=None, nics=None):
    """A group on nodes of 400 GB/s links and one 50 GB/s NIC a device, 3 us apart."""
    inside = n_ranks if ranks_per_node is None else ranks_per_node
    return GroupLink(
        n_ranks=n_ranks,
        ranks_per_node=inside,
        node_bytes_per_s=LINK,
        fabric_bytes_per_s=NIC * (inside if nics is None else nics),
        fabric_latency_s=3e-6,
    )


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_a_group_of_one_has_nobody_to_talk_to(collective):
    assert collective(1e9, group(1.0), **RATES) == 0.0


def test_an_all_gather_in_a_node_is_a_ring():
    """Eight ranks: seven steps of 1 us, each passing 100 MB at 400 GB/s."""
    seconds = all_gather_time_s(800e6, group(8.0), **RATES)
    assert seconds == pytest.approx(7 * (1e-6 + 100e6 / 400e9))
    assert seconds == pytest.approx(
        ring_all_gather_time_s(800e6, n_ranks=8.0, link_bytes_per_s=LINK, link_latency_s=1e-6)
    )
    assert reduce_scatter_time_s(800e6, group(8.0), **RATES) == pytest.approx(seconds)
    assert all_reduce_time_s(800e6, group(8.0), **RATES) == pytest.approx(2 * seconds)


def test_across_nodes_the_slower_link_sets_the_pace():
    """16 ranks on two nodes: 14 steps inside (1 us), one between (2 + 3 us); 8 NICs give 400 GB/s, 4 half of it."""
    latency_s = 14 * 1e-6 + 5e-6
    full = all_gather_time_s(1.6e9, group(16.0, 8.0), **RATES)
    assert full == pytest.approx(latency_s + 15 * 100e6 / 400e9)
    shared = all_gather_time_s(1.6e9, group(16.0, 8.0, nics=4.0), **RATES)
    assert shared == pytest.approx(latency_s + 15 * 100e6 / 200e9)


def test_one_rank_per_node_has_one_nic():
    assert all_gather_time_s(400e6, group(4.0, 1.0), **RATES) == pytest.approx(3 * (5e-6 + 100e6 / 50e9))


def test_many_nodes_reduce_small_tensors_over_trees():
    """256 nodes: a ring needs 2 x 255 steps of 5 us, a tree 2 x 8; a large tensor costs a tree n / (n - 1) more."""
    wide = group(256.0, 1.0)
    assert all_reduce_time_s(1e3, wide, **RATES) == pytest.approx(2 * 8 * 5e-6 + 2 * 1e3 / NIC)
    huge = all_reduce_time_s(1e12, wide, **RATES)
    assert huge == pytest.approx(2 * (255 * 5e-6 + 1e12 * 255 / 256 / NIC))


def test_the_switch_reduces_for_more_than_four_ranks():
    """At 0.6 of the link's rate it takes size / 240 GB/s after 10 us, a ring 2 x 7 / 8 x size / 400 GB/s."""
    rates = {
        "node": IDEAL.model_copy(update={"in_network_fraction": 0.6, "in_network_start_us": 10.0}),
        "fabric": FABRIC,
    }
    assert all_reduce_time_s(4e9, group(8.0), **rates) == pytest.approx(10e-6 + 4e9 / (0.6 * LINK))
    for small_or_far in (group(4.0), group(16.0, 8.0)):
        assert all_reduce_time_s(4e9, small_or_far, **rates) == all_reduce_time_s(4e9, small_or_far, **RATES)


def test_the_quicker_protocol_wins():
    """Low latency at a quarter of the rate against full rate after 20 us: equal where 3 size / rate = 20 us."""
    both = IDEAL.model_copy(
        update={"low_latency_fraction": 0.25, "bandwidth_start_us": 20.0, "bandwidth_latency_us": 1.0, "launch_us": 5.0}
    )
    rates = {"node": both, "fabric": FABRIC}
    sent = 7 / 8
    small, large = 1e6, 1e9
    assert all_gather_time_s(small, group(8.0), **rates) == pytest.approx(12e-6 + sent * small / (0.25 * LINK))
    assert all_gather_time_s(large, group(8.0), **rates) == pytest.approx(32e-6 + sent * large / LINK)
    even = 20e-6 * LINK / 3 / sent
    assert all_gather_time_s(even, group(8.0), **rates) == pytest.approx(12e-6 + 4 * sent * even / LINK)


def test_a_long_transfer_hides_the_shortest_time_of_its_steps():
    """Seven steps of 4 us and 21 us of transfer take 35 us: 28, 21 and 35 make a right angle."""
    stepping = CollectiveRates(bus_fraction=1.0, latency_us=1.0, low_latency_fraction=0.01, bandwidth_step_us=4.0)
    size = 21e-6 * LINK * 8 / 7
    assert all_gather_time_s(size, group(8.0), node=stepping, fabric=FABRIC) == pytest.approx(35e-6)
    long = all_gather_time_s(1e4 * size, group(8.0), node=stepping, fabric=FABRIC)
    assert long == pytest.approx(1e4 * 21e-6, rel=1e-6)


def test_every_rank_copies_its_own_shard():
    copying = IDEAL.model_copy(update={"copy_fraction": 2.0})
    extra = 100e6 / (2 * LINK)
    bare = all_gather_time_s(800e6, group(8.0), **RATES)
    assert all_gather_time_s(800e6, group(8.0), node=copying, fabric=FABRIC) == pytest.approx(bare + extra)


def test_an_all_to_all_sends_each_share_once():
    """Eight ranks in a node: seven shares of 100 MB at 400 GB/s."""
    seconds = all_to_all_time_s(800e6, group(8.0), **RATES)
    assert seconds == pytest.approx(7 * 1e-6 + 700e6 / LINK)


def test_an_all_to_all_across_nodes_waits_for_the_fabric():
    """32 ranks on four nodes: 24 of 32 shares leave over the rank's own NIC, 7 go over the node's link meanwhile."""
    seconds = all_to_all_time_s(3.2e9, group(32.0, 8.0), **RATES)
    assert seconds == pytest.approx(31 * 1e-6 + 5e-6 + 24 * 100e6 / NIC)
    assert all_to_all_time_s(3.2e9, group(32.0, 8.0, nics=4.0), **RATES) == pytest.approx(
        36e-6 + 24 * 100e6 / (NIC / 2)
    )


def test_a_send_is_a_latency_and_the_bytes():
    half = CollectiveRates(bus_fraction=0.5, latency_us=1.0, launch_us=4.0)
    assert send_time_s(1e9, link_bytes_per_s=NIC, link_latency_s=3e-6, rates=half) == pytest.approx(8e-6 + 1e9 / 25e9)


FITTED = CollectiveRates(
    bus_fraction=0.78, latency_us=0.7, launch_us=6.0, low_latency_fraction=0.3, bandwidth_latency_us=1.0,
    bandwidth_step_us=5.0, bandwidth_start_us=14.0, copy_fraction=1.9, in_network_fraction=0.5,
    in_network_start_us=45.0,
)  # fmt: skip


@pytest.mark.parametrize("collective", COLLECTIVES)
@given(size=st.floats(1e3, 1e10), more=st.floats(1.0, 10.0), nodes=st.integers(1, 64), inside=st.integers(1, 8))
def test_more_bytes_never_take_less_time(collective, size, more, nodes, inside):
    link = group(float(nodes * inside), float(inside))
    rates = {"node": FITTED, "fabric": FABRIC}
    assert collective(size * more, link, **rates) >= collective(size, link, **rates)


@given(size=st.floats(1e3, 1e10), nodes=st.integers(2, 64), inside=st.integers(1, 8))
def test_no_gather_beats_what_must_enter_a_node(size, nodes, inside):
    """Each node lacks all but its own share, and that must come in over its NICs."""
    link = group(float(nodes * inside), float(inside))
    rates = {"node": FITTED, "fabric": FABRIC}
    missing = size * (1 - 1 / nodes)
    assert all_gather_time_s(size, link, **rates) >= missing / (NIC * inside)
    assert all_reduce_time_s(size, link, **rates) >= 2 * missing / (NIC * inside)


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_arrays_broadcast_to_the_same_answers(collective):
    sizes = np.array([1e4, 1e6, 1e8])
    n_ranks, inside = np.array([[1.0], [4.0], [8.0], [16.0], [24.0]]), np.array([[1.0], [4.0], [8.0], [8.0], [8.0]])
    link = replace(group(n_ranks, inside), fabric_bytes_per_s=NIC * inside)
    rates = {"node": FITTED, "fabric": FABRIC}
    grid = collective(sizes, link, **rates)
    points = [
        [collective(float(size), group(float(n), float(i)), **rates) for size in sizes]
        for n, i in zip(n_ranks[:, 0], inside[:, 0], strict=True)
    ]
    assert_allclose(grid, points, rtol=1e-14)
