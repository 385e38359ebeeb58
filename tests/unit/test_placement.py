"""Where groups sit: inside a node, across nodes, and how many NICs they have."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.costmodel.placement import group_link, job_node_devices_count, links
from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import load_hardware


@pytest.mark.parametrize(
    ("n_ranks", "stride", "ranks_per_node", "n_nodes"),
    [
        pytest.param(8, 1, 8, 1, id="a node"),
        pytest.param(2, 4, 2, 1, id="strided inside a node"),
        pytest.param(16, 1, 8, 2, id="two nodes"),
        pytest.param(16, 4, 2, 8, id="two members on each of eight nodes"),
        pytest.param(16, 8, 1, 16, id="one member on each node"),
        pytest.param(4, 16, 1, 4, id="every other node"),
        pytest.param(1, 32, 1, 1, id="alone"),
    ],
)
def test_members_on_a_node_of_eight(n_ranks, stride, ranks_per_node, n_nodes):
    hardware = load_hardware("h100")
    link = group_link(np.float64(n_ranks), np.float64(stride), np.float64(512), hardware)
    assert float(link.ranks_per_node) == ranks_per_node
    assert float(link.n_nodes) == n_nodes
    nic = hardware.fabric.nic_bytes_per_s_per_device
    assert float(link.fabric_bytes_per_s) == ranks_per_node * nic  # every member brings its own


def test_72_devices_are_one_node():
    hardware = load_hardware("gb200_nvl72")
    assert float(group_link(np.float64(72), np.float64(1), np.float64(144), hardware).n_nodes) == 1
    assert float(group_link(np.float64(144), np.float64(1), np.float64(144), hardware).n_nodes) == 2


@pytest.mark.parametrize(
    ("n_devices", "on_each"),
    [
        pytest.param(64, 72, id="of one rack whatever it needs"),
        pytest.param(128, 64, id="two racks"),
        pytest.param(144, 72, id="two whole racks"),
        pytest.param(256, 64, id="four racks, which is as few as hold them"),
        pytest.param(1024, 64, id="sixteen, as 1024 are not spread evenly over fifteen"),
        pytest.param(12288, 64, id="192"),
        pytest.param(100, 72, id="25 hosts: five times five would leave most of the racks idle"),
        pytest.param(145, 72, id="no whole hosts"),
    ],
)
def test_a_job_gets_equally_many_hosts_of_every_rack(n_devices, on_each):
    rack = load_hardware("gb200_nvl72").node
    assert rack.devices_of_job(n_devices) == on_each
    assert load_hardware("h100").node.devices_of_job(n_devices) == 8
    assert load_hardware("tpu_v5p").node.devices_of_job(n_devices) == load_hardware("tpu_v5p").node.n_devices


@given(st.integers(1, 20_000))
def test_racks_are_filled_evenly_with_whole_hosts_and_no_fewer_than_half(n_hosts):
    on_each = load_hardware("gb200_nvl72").node.devices_of_job(4 * n_hosts)
    assert on_each == 72 or (4 * n_hosts % on_each == 0 and on_each % 4 == 0 and 36 <= on_each < 72)
    assert jobs_per_node(4 * n_hosts) == on_each


def jobs_per_node(n_devices):
    counts = np.array([[n_devices, 128], [144, n_devices]])
    shares = job_node_devices_count(counts, load_hardware("gb200_nvl72").node)
    assert shares[0, 1] == 64
    assert shares[1, 0] == 72
    assert shares[0, 0] == shares[1, 1]
    return shares[0, 0]


def test_experts_of_64_ranks_stay_in_racks_of_72():
    """A job of 256 has 64 of each: no exchange leaves a rack."""
    link = group_link(np.float64(64), np.float64(1), np.float64(256), load_hardware("gb200_nvl72"))
    assert (float(link.ranks_per_node), float(link.n_nodes)) == (64, 1)


@pytest.mark.parametrize(
    ("n_ranks", "stride", "n_devices", "ranks_per_node", "n_nodes"),
    [
        pytest.param(64, 1, 144, 32, 2, id="ranks 64 to 127 sit on two nodes of 72"),
        pytest.param(64, 1, 64, 64, 1, id="no second node to straddle"),
        pytest.param(16, 1, 144, 8, 2, id="72 is not a multiple of 16"),
        pytest.param(8, 1, 144, 8, 1, id="72 is nine times 8"),
        pytest.param(2, 8, 144, 1, 2, id="strided: spans of 16"),
        pytest.param(4, 9, 144, 4, 1, id="strided: spans of 36, half a node"),
        pytest.param(1, 16, 144, 1, 1, id="alone is never torn apart"),
    ],
)
def test_groups_that_do_not_fill_nodes_straddle_them(n_ranks, stride, n_devices, ranks_per_node, n_nodes):
    """The slowest group sets the pace: half of its ranks on each of two nodes."""
    hardware = load_hardware("gb200_nvl72")
    link = group_link(np.float64(n_ranks), np.float64(stride), np.float64(n_devices), hardware)
    assert (float(link.ranks_per_node), float(link.n_nodes)) == (ranks_per_node, n_nodes)
    assert float(link.fabric_bytes_per_s) == ranks_per_node * hardware.fabric.nic_bytes_per_s_per_device


def test_groups_follow_the_rank_order():
    """tp fastest, then cp, dp, pp: tp 4 and cp 2 fill a node, dp and pp leave it."""
    found = links(Plans.point(tp=4, cp=2, pp=2, dp=4, ep=8, etp=1), load_hardware("h100"))
    assert (float(found.tp.n_nodes), float(found.cp.n_nodes)) == (1, 1)
    assert (float(found.shard.n_ranks), float(found.shard.ranks_per_node)) == (8, 2)  # 4 apart: 2 on a node
    assert (float(found.ep.n_ranks), float(found.ep.n_nodes)) == (8, 1)
    assert (float(found.expert_shard.n_ranks), float(found.expert_shard.ranks_per_node)) == (4, 1)  # 32 / 8, 8 apart
    assert float(found.pp_crosses) == 1


def test_replicas_shard_less_and_reduce_across():
    """HSDP: of 16 data-parallel ranks, 2 replicas of 8 that share their states."""
    found = links(Plans.point(dp=16, dp_replicate=2, zero_stage=3), load_hardware("h100"))
    assert (float(found.shard.n_ranks), float(found.shard.n_nodes)) == (8, 1)
    assert (float(found.replicate.n_ranks), float(found.replicate.n_nodes)) == (2, 2)


@pytest.mark.parametrize(("tp", "pp", "crosses"), [(2, 4, 0), (4, 4, 1), (8, 2, 1), (8, 1, 0), (16, 1, 0)])
def test_stages_use_the_fabric_once_they_need_more_than_a_node(tp, pp, crosses):
    hardware = load_hardware("h100")
    found = links(Plans.point(tp=tp, pp=pp), hardware)
    assert float(found.pp_crosses) == crosses
    rate = hardware.fabric.nic_bytes_per_s_per_device if crosses else hardware.node.link_bytes_per_s
    assert float(found.pp_bytes_per_s) == rate
