"""What groups get where they really are: racks, spines, oversubscription, latency; and nothing new on a flat fabric."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.placement import PlacedRates, links
from dlcalc.costmodel.plans import Plans
from dlcalc.errors import TopologyError
from dlcalc.hardware_registry import load_hardware
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.topology.crossing import (
    TIER_LATENCY_S,
    all_to_all_reach,
    groups_of,
    mesh_reaches,
    neighbour_reach,
    placed_rates,
    ring_reach,
    stage_reach,
    state_reaches,
    ways_of,
)
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.job import JobShape, Placement

H100 = load_hardware("h100")
NIC = 8 * H100.fabric.nic_bytes_per_s_per_device


def racks(*sizes, rates=(NIC, NIC / 4)):
    """Racks of nodes under one spine; by default four times oversubscribed."""
    nodes = [
        FabricNode(f"r{rack}n{node}", (f"rack{rack}", "spine"))
        for rack, size in enumerate(sizes)
        for node in range(size)
    ]
    return Fabric(tuple(nodes), rates)


def placement_of(fabric, job, names=None):
    names = names or [node.name for node in fabric.nodes][: job.n_nodes]
    rings = tuple(tuple(names[i : i + job.ring_nodes]) for i in range(0, job.n_nodes, job.ring_nodes))
    return Placement(job, rings, "hops", 0.0, None, 0.0, 0.0, False)


def ways(fabric, names=None):
    return ways_of(fabric, names or [node.name for node in fabric.nodes])


def ring(*nodes):
    return np.array([nodes])


def test_a_ring_inside_a_rack_has_the_racks_rate():
    reach = ring_reach(ways(racks(4, 4)), ring(0, 1, 2, 3))
    assert (reach.bytes_per_s_per_node, reach.latency_s, reach.tier) == (NIC, 0.0, 0)


@pytest.mark.parametrize(("members", "rate"), [(1, NIC / 4), (2, NIC / 2), (4, NIC), (8, NIC)])
def test_members_of_a_rack_lend_their_share_of_the_uplink_to_the_one_that_talks(members, rate):
    """Four times oversubscribed: with four members in each rack the ring no longer feels it."""
    nodes = [*range(members), *range(8, 8 + members)]
    assert ring_reach(ways(racks(8, 8)), ring(*nodes)).bytes_per_s_per_node == rate


def test_a_ring_in_the_wrong_order_leaves_a_rack_often():
    """Two racks of four, visited in turns: each of the four passages has one node's share."""
    assert ring_reach(ways(racks(4, 4)), ring(0, 4, 1, 5, 2, 6, 3, 7)).bytes_per_s_per_node == NIC / 4


def test_the_smallest_part_of_a_ring_sets_its_pace():
    assert ring_reach(ways(racks(7, 1)), ring(*range(8))).bytes_per_s_per_node == NIC / 4


def test_the_slowest_group_sets_the_pace_of_its_kind():
    two = np.array([[0, 1, 2, 3], [4, 5, 6, 7]])  # racks of 5 and 3: the second group has one node in the first
    assert ring_reach(ways(racks(5, 3)), two).bytes_per_s_per_node == NIC / 4


def test_all_to_all_sends_beyond_the_rack_what_is_not_for_the_rack():
    """Of seven peers four are in the other rack: four sevenths of the traffic at a quarter of the rate."""
    assert all_to_all_reach(ways(racks(4, 4)), ring(*range(8))).bytes_per_s_per_node == pytest.approx(NIC / 4 * 7 / 4)


def test_neighbours_that_talk_all_at_once_have_their_own_share():
    reach = neighbour_reach(ways(racks(4, 4)), np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7]))
    assert (reach.bytes_per_s_per_node, reach.latency_s, reach.tier) == (NIC / 4, TIER_LATENCY_S, 1)


def test_a_steps_latency_is_the_rings_average():
    """Two of eight steps go through the spine."""
    assert ring_reach(ways(racks(4, 4)), ring(*range(8))).latency_s == pytest.approx(2 / 8 * TIER_LATENCY_S)


def test_three_tiers_and_nodes_of_unequal_depth():
    """A node right under the core is as far from a rack as another pod is."""
    nodes = (
        *(FabricNode(f"a{n}", ("rack", "pod", "core")) for n in range(2)),
        FabricNode("b", ("pod", "core")),
        FabricNode("c", ("core",)),
    )
    fabric = Fabric(nodes, (NIC, NIC / 2, NIC / 8))
    found = ways(fabric)
    assert neighbour_reach(found, np.array([0]), np.array([1])).tier == 0
    assert neighbour_reach(found, np.array([0]), np.array([2])).bytes_per_s_per_node == NIC / 2
    assert neighbour_reach(found, np.array([0]), np.array([3])).bytes_per_s_per_node == NIC / 8
    ringed = ring_reach(found, ring(0, 1, 2, 3))
    assert (ringed.tier, ringed.bytes_per_s_per_node) == (2, NIC / 8)  # the node under the core has its own share


def test_nodes_of_different_roots_are_beyond_every_tier():
    fabric = Fabric((FabricNode("a", ("x",)), FabricNode("b", ("y",))), (NIC / 2,))
    reach = neighbour_reach(ways(fabric), np.array([0]), np.array([1]))
    assert (reach.tier, reach.bytes_per_s_per_node) == (1, NIC / 2)


def test_groups_follow_the_rank_order():
    """tp 8, dp 4, pp 2: rings of four nodes; experts over two nodes, and who shares their states two nodes apart."""
    job = JobShape(tp=8, pp=2, dp=4, ep=16)
    assert groups_of(4, 8, job).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    found = mesh_reaches(ways(racks(2, 2, 2, 2)), job)
    assert found["ep"].tier == 0
    assert found["tp"].tier == -1
    shard, copy, of_experts = state_reaches(ways(racks(2, 2, 2, 2)), job, 1)
    assert (shard.tier, copy.tier) == (1, -1)
    assert of_experts.bytes_per_s_per_node == NIC / 4
    shard, copy, of_experts = state_reaches(ways(racks(2, 2, 2, 2)), job, 2)
    assert (shard.tier, copy.tier) == (0, 1)
    assert of_experts.tier == -1  # two ranks hold the same experts, each with states of its own
    whole = JobShape(tp=8, pp=1, dp=4)
    shard, _, of_experts = state_reaches(ways(racks(2, 2)), whole, 2)
    assert of_experts == shard  # experts that are not spread out share states as all else does


def test_the_last_stage_is_the_firsts_neighbour_only_with_several_chunks():
    fabric = racks(2, 2, rates=(NIC, NIC / 4))
    found = ways(fabric, ["r0n0", "r0n1"])
    job = JobShape(tp=8, pp=2, dp=1)
    assert stage_reach(found, job, wraps=True).tier == 0
    far = ways(racks(2, 1), ["r0n0", "r0n1", "r1n0"])
    assert stage_reach(far, JobShape(tp=8, pp=3, dp=1), wraps=False).tier == 1


RECIPE = Recipe(seq_len=4096, global_batch=256, precision="bf16", framework=load_framework("megatron"))
MESHES = [
    {"tp": 8, "pp": 2, "dp": 4},
    {"tp": 1, "pp": 8, "dp": 8, "vpp": 2, "schedule": "interleaved"},
    {"tp": 2, "cp": 2, "pp": 4, "dp": 4, "zero_stage": 1},
    {"tp": 1, "pp": 1, "dp": 64, "zero_stage": 3, "dp_replicate": 4},
    {"tp": 1, "pp": 2, "dp": 32, "ep": 8},
    {"tp": 4, "pp": 2, "dp": 8, "ep": 16, "etp": 2},
]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("rates", [(), (NIC,), (2 * NIC, 3 * NIC), (None, NIC)])
def test_a_flat_fabric_changes_no_bit(mesh, rates):
    """One switch, or rates no smaller than the NIC's or not known: the placed estimate is the unplaced one."""
    flat = Fabric(tuple(FabricNode(f"n{n}", ("switch",)) for n in range(8)), rates)
    plan = Plans.point(**mesh)
    model = load_model("mixtral-8x7b" if "ep" in mesh else "llama3-8b")
    job = JobShape(**{knob: mesh.get(knob, 1) for knob in ("tp", "cp", "pp", "dp", "ep", "etp")})
    placed = placed_rates(flat, placement_of(flat, job), H100, dp_replicate=plan.dp_replicate, vpp=plan.vpp)
    with_nodes, without = (estimate(model, H100, RECIPE, plan, placed=rates) for rates in (placed, None))
    assert with_nodes.step.terms() == without.step.terms()
    assert float(with_nodes.step_time_s) == float(without.step_time_s)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_slower_switch_never_makes_a_plan_faster(mesh):
    fabric = racks(3, 3, 2, rates=(NIC, NIC / 8))
    plan = Plans.point(**mesh)
    model = load_model("mixtral-8x7b" if "ep" in mesh else "llama3-8b")
    job = JobShape(**{knob: mesh.get(knob, 1) for knob in ("tp", "cp", "pp", "dp", "ep", "etp")})
    placed = placed_rates(fabric, placement_of(fabric, job), H100, dp_replicate=plan.dp_replicate, vpp=plan.vpp)
    with_nodes, without = (estimate(model, H100, RECIPE, plan, placed=rates) for rates in (placed, None))
    assert float(with_nodes.step_time_s) > float(without.step_time_s)
    assert np.array_equal(with_nodes.memory_bytes, without.memory_bytes)


def test_rates_follow_the_shape_of_the_batch():
    """On a grid, what states cost is on the data axis and what stages cost on the schedule's; as rows, by row."""
    fabric = racks(2, 2, 2, 2)
    job = JobShape(tp=8, pp=2, dp=4)
    where = placement_of(fabric, job)
    copies, chunks = np.array([1.0, 2.0, 4.0]).reshape(1, 3, 1), np.array([1.0, 2.0]).reshape(1, 1, 2)
    grid = placed_rates(fabric, where, H100, dp_replicate=copies, vpp=chunks)
    assert grid.shard.bytes_per_s_per_device.shape == copies.shape
    assert grid.pp.latency_s.shape == chunks.shape
    assert grid.tp.latency_s.shape == ()
    rows = placed_rates(fabric, where, H100, dp_replicate=np.array([4.0, 1.0]), vpp=np.array([1.0, 1.0]))
    assert rows.replicate.bytes_per_s_per_device.tolist() == [
        float(grid.replicate.bytes_per_s_per_device[0, at, 0]) for at in (2, 0)
    ]
    nic = H100.fabric.nic_bytes_per_s_per_device
    for field in fields(PlacedRates):
        assert np.all(getattr(grid, field.name).bytes_per_s_per_device <= nic)


def test_links_say_what_a_placed_group_gets():
    fabric = racks(1, 1, 1, 1)
    plan = Plans.point(tp=8, pp=1, dp=4)
    placed = placed_rates(
        fabric, placement_of(fabric, JobShape(tp=8, pp=1, dp=4)), H100, dp_replicate=plan.dp_replicate, vpp=plan.vpp
    )
    found = links(plan, H100, placed)
    assert float(found.shard.fabric_bytes_per_s) == NIC / 8 / 4  # one member a node, a quarter of its NIC
    assert float(found.shard.fabric_latency_s) == pytest.approx(H100.fabric.latency_s + TIER_LATENCY_S)


def test_a_placement_on_other_nodes_than_the_hardwares_is_refused():
    fabric = racks(2)
    where = placement_of(fabric, JobShape(tp=4, pp=1, dp=2, node_devices=4))
    with pytest.raises(TopologyError, match="nodes of 4 devices, but h100 has 8"):
        placed_rates(fabric, where, H100, dp_replicate=np.float64(1), vpp=np.float64(1))


@st.composite
def forests(draw):
    """Up to twelve nodes of unequal depth, one or two roots, random rates, some unknown; and some rings of them."""
    n_nodes = draw(st.integers(2, 12))
    chains = [
        ("a", "pod0", "core"), ("b", "pod0", "core"), ("c", "pod1", "core"), ("pod1", "core"), ("core",),
        ("x", "other"),
    ]  # fmt: skip
    nodes = tuple(FabricNode(f"n{n}", draw(st.sampled_from(chains))) for n in range(n_nodes))
    rates = tuple(draw(st.lists(st.one_of(st.none(), st.sampled_from([1.0, 3.0, 8.0, 50.0])), max_size=3)))
    groups = draw(
        st.lists(st.lists(st.integers(0, n_nodes - 1), min_size=4, max_size=4).map(sorted), min_size=1, max_size=3)
    )
    return Fabric(nodes, rates), np.array(groups)


@given(forests())
@settings(max_examples=200, deadline=None)
def test_reaches_are_what_counting_every_link_gives(drawn):
    """Link by link and member by member, with sets and dictionaries."""
    fabric, groups = drawn
    found = ways(fabric)
    names = [node.name for node in fabric.nodes]
    ringed, exchanged = np.inf, np.inf
    for group in groups:
        members = list(dict.fromkeys(names[node] for node in group))
        if len(members) < 2:
            continue
        paths = {name: (name, *fabric.chains[name]) for name in members}
        for name in members:
            for below, above in pairwise(paths[name]):
                under = [member for member in members if below in paths[member]]
                rate = fabric.rate_bytes_per_s_per_node(fabric.tier[above])
                if len(under) == len(members) or rate is None:
                    continue
                steps = zip(members, [*members[1:], members[0]], strict=True)
                left = sum(a in under and b not in under for a, b in steps)
                ringed = min(ringed, rate * len(under) / left)
                exchanged = min(exchanged, rate * (len(members) - 1) / (len(members) - len(under)))
    assert ring_reach(found, groups).bytes_per_s_per_node == pytest.approx(ringed)
    assert all_to_all_reach(found, groups).bytes_per_s_per_node == pytest.approx(exchanged)


@given(forests())
@settings(max_examples=100, deadline=None)
def test_the_tier_of_a_pair_is_that_of_the_switch_where_it_meets(drawn):
    fabric, groups = drawn
    found = ways(fabric)
    for a, b in {(int(group[0]), int(group[-1])) for group in groups}:
        reach = neighbour_reach(found, np.array([a]), np.array([b]))
        if a == b:
            assert reach.tier == -1
            continue
        switch = fabric.meets_at(fabric.nodes[a].name, fabric.nodes[b].name)
        assert reach.tier == (fabric.n_tiers if switch is None else fabric.tier[switch])
        assert reach.latency_s == pytest.approx(reach.tier * TIER_LATENCY_S)
