"""What groups get of the links inside a node: behind a switch, in a mesh, among neighbours with links of their own."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.calculators.communication import GroupLink, all_gather_time_s
from dlcalc.costmodel.placement import group_link, links, node_bytes_per_s
from dlcalc.costmodel.plans import Plans
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.base import Quoted
from dlcalc.specs.hardware import Group
from dlcalc.workflows.sensitivity import _of_node


def rate_gb_per_s(machine, n_ranks, stride=1):
    return float(node_bytes_per_s(np.float64(n_ranks), np.float64(stride), load_hardware(machine).node)) / 1e9


@pytest.mark.parametrize(
    ("machine", "n_ranks", "stride", "gb_per_s"),
    [
        pytest.param("h100", 2, 1, 450, id="a switch gives any pair everything"),
        pytest.param("h100", 4, 2, 450, id="strided behind a switch"),
        pytest.param("tpu_v5p", 2, 1, 100, id="neighbours in a torus: one of six links"),
        pytest.param("tpu_v5p", 4, 1, 200, id="a ring in a torus: one axis of three"),
        pytest.param("tpu_v5e", 256, 1, 200, id="a whole torus"),
        pytest.param("tpu_v5e", 16, 16, 100, id="one axis of two"),
        pytest.param("tpu_v5e", 8, 1, 50, id="half of an axis: one link at its ends"),
        pytest.param("trn2", 4, 1, 256, id="an axis of a server"),
        pytest.param("mi300x", 8, 1, 448, id="a whole mesh: seven links of 64"),
        pytest.param("mi300x", 2, 1, 64, id="a pair in a mesh: one of the seven"),
        pytest.param("mi300x", 4, 2, 192, id="strided in a mesh: three of the seven"),
        pytest.param("mi300x", 1, 8, 448, id="alone"),
        pytest.param("gh200", 2, 1, 150, id="six NVLinks of 25 between two superchips"),
        pytest.param("mi250x", 2, 1, 200, id="the two dies of a package"),
        pytest.param("mi250x", 2, 2, 100, id="dies of two packages"),
        pytest.param("mi250x", 8, 1, 100, id="all dies of a node"),
        pytest.param("h100_nvl", 2, 1, 300, id="a bridged pair"),
        pytest.param("h200_nvl", 4, 1, 450, id="four bridged cards"),
        pytest.param("h100_nvl", 2, 4, 32, id="two cards without a bridge"),
        pytest.param("v100_32gb", 4, 1, 100, id="half of the cube: four of six links"),
        pytest.param("v100_32gb", 8, 1, 150, id="the whole cube"),
        pytest.param("dgx2", 2, 1, 150, id="V100s behind switches"),
    ],
)
def test_a_group_gets_the_links_between_its_members(machine, n_ranks, stride, gb_per_s):
    assert rate_gb_per_s(machine, n_ranks, stride) == pytest.approx(gb_per_s)


def test_a_group_on_several_nodes_gets_the_links_among_those_on_one():
    hardware = load_hardware("mi300x")
    link = group_link(np.float64(16), np.float64(2), np.float64(32), hardware)  # four members on each of four nodes
    assert float(link.ranks_per_node) == 4
    assert float(link.node_bytes_per_s) == pytest.approx(3 * 64e9)


def test_neighbouring_stages_of_a_mesh_have_one_link():
    plans = Plans.point(tp=2, pp=4)
    assert float(links(plans, load_hardware("mi300x")).pp_bytes_per_s) == pytest.approx(64e9)
    assert float(links(plans, load_hardware("h100")).pp_bytes_per_s) == 450e9


def test_copies_of_a_devices_own_shard_do_not_depend_on_the_group():
    """A pair in a mesh has a seventh of the links and takes seven times as long on them; its copies take the same."""
    rates = load_hardware("h100").calibration.node_collectives["all_gather"]
    rates = rates.model_copy(update={"low_latency_fraction": None, "latency_us": 1e-9, "launch_us": 0.0})

    def seconds(node, device):
        link = GroupLink(np.float64(2), np.float64(2), node, np.float64(1.0), np.float64(0.0), device)
        return float(all_gather_time_s(2e9, link, node=rates, fabric=rates))

    whole, pair = seconds(np.float64(448e9), 448e9), seconds(np.float64(64e9), 448e9)
    copied = 1e9 / (448e9 * rates.copy_fraction)
    assert pair - copied == pytest.approx(7 * (whole - copied))


# ---- a torus


def test_groups_that_divide_a_slice_share_its_axes():
    """Tensor parallelism of 16 and data parallelism of 16 on 256 devices: an axis of four links each."""
    found = links(Plans.point(tp=16, dp=16), load_hardware("tpu_v5e"))
    assert float(found.tp.node_bytes_per_s) == pytest.approx(100e9)
    assert float(found.shard.node_bytes_per_s) == pytest.approx(100e9)


def test_a_small_slice_has_ends():
    """4 x 4 of a v5e: the corners have two of four links; 4 x 4 x 4 of a v5p is a cube that closes."""
    whole = {
        name: links(Plans.point(dp=dp), load_hardware(name)).shard for name, dp in (("tpu_v5e", 16), ("tpu_v5p", 64))
    }
    assert float(whole["tpu_v5e"].node_bytes_per_s) == pytest.approx(100e9)
    assert float(whole["tpu_v5p"].node_bytes_per_s) == pytest.approx(600e9)


def test_slices_that_do_not_fill_a_pod_do_not_close_however_many_there_are():
    """Of a v6e, sixteen each: as in one of them, whether the job has fifteen or sixteen."""
    hardware = load_hardware("tpu_v6e")
    hardware = hardware.model_copy(update={"node": hardware.node.with_devices(16)})
    one, several = (links(Plans.point(tp=16, dp=dp), hardware).tp.node_bytes_per_s for dp in (1, 16))
    assert float(one) == float(several) == pytest.approx(200e9)  # two of four links at the corners


def test_a_ring_in_a_torus_takes_fewer_steps():
    """256 devices, 16 x 16, both ways round: 8 steps an axis, not 255."""
    assert float(links(Plans.point(dp=256), load_hardware("tpu_v5e")).shard.node_steps) == pytest.approx(16)
    assert float(links(Plans.point(dp=512), load_hardware("tpu_v5e")).shard.node_steps) == pytest.approx(32)  # two pods
    assert float(links(Plans.point(dp=16), load_hardware("h100")).shard.node_steps) == 14


def test_a_torus_needs_axes():
    node = load_hardware("tpu_v5e").node
    for changes in ({"torus": None}, {"topology": "switch"}):
        with pytest.raises(ValueError, match="need each other"):
            type(node).model_validate({**node.model_dump(), **changes})


# ---- nodes of another size


def test_part_of_a_mesh_keeps_the_links_of_each_pair():
    node = load_hardware("mi300x").node.with_devices(4)
    assert (node.n_devices, node.topology, node.link_bytes_per_s) == (4, "mesh", pytest.approx(3 * 64e9))
    assert float(node_bytes_per_s(np.float64(2), np.float64(1), node)) == pytest.approx(64e9)


def test_a_larger_node_has_a_switch():
    node = load_hardware("v100_32gb").node.with_devices(16)
    assert (node.topology, node.groups, node.link_bytes_per_s) == ("switch", (), 150e9)


def test_groups_larger_than_the_node_are_gone():
    node = load_hardware("v100_32gb").node.with_devices(4)
    assert [group.n_devices for group in node.groups] == [2]
    assert load_hardware("mi250x").node.with_devices(1).groups == ()


def test_hosts_that_do_not_fill_the_node_are_gone():
    assert load_hardware("gb200_nvl72").node.with_devices(36).n_host_devices == 4
    assert load_hardware("gb200_nvl72").node.with_devices(2).n_host_devices is None


def test_groups_grow_and_are_smaller_than_the_node():
    node = load_hardware("h100").node

    def grouped(*sizes):
        quoted = Quoted(value=100.0, source="drawn for a test")
        groups = [Group(n_devices=size, link_gb_per_s=quoted).model_dump() for size in sizes]
        return type(node).model_validate({**node.model_dump(), "groups": groups})

    assert [group.n_devices for group in grouped(2, 4).groups] == [2, 4]
    for sizes in ((4, 2), (2, 2), (8,)):
        with pytest.raises(ValueError, match="must grow, and be smaller than the node's 8"):
            grouped(*sizes)


def test_faster_links_are_faster_for_every_group():
    before, after = load_hardware("mi250x"), _of_node(load_hardware("mi250x"))
    for n_ranks in (2, 8):
        was, now = (float(node_bytes_per_s(np.float64(n_ranks), np.float64(1), one.node)) for one in (before, after))
        assert now == pytest.approx(1.1 * was)
