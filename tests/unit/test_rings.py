"""Ring order and hop lengths, against walks over the tree drawn with networkx."""

import itertools

import networkx
import pytest
from hypothesis import given

from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.job import JobShape
from dlcalc.topology.rings import distance_hops, group_hops, path_hops, ring_hops, ring_order, tour_hops
from tests.fabrics import fabrics


def graph(fabric: Fabric) -> networkx.Graph:
    """The fabric as edges, with one more switch above all roots."""
    edges = [
        edge
        for node in fabric.nodes
        for edge in itertools.pairwise((node.name, *fabric.chains[node.name], "<above all>"))
    ]
    return networkx.Graph(edges)


@given(fabrics())
def test_distances_are_those_of_the_graph(fabric):
    apart = dict(networkx.all_pairs_shortest_path_length(graph(fabric)))
    for a, b in itertools.product(fabric.by_name, repeat=2):
        assert distance_hops(fabric, a, b) == apart[a][b]


@given(fabrics(most_nodes=6))
def test_no_order_beats_the_depth_first_one(fabric):
    names = list(fabric.by_name)
    best = min(tour_hops(fabric, order) for order in itertools.permutations(names))
    assert tour_hops(fabric, ring_order(fabric, names)) == best == ring_hops(fabric, names)


def chain_of_leaves() -> Fabric:
    """Eight nodes, two a leaf, four a spine: l0 l0 l1 l1 | l2 l2 l3 l3."""
    return Fabric(tuple(FabricNode(f"n{i}", (f"l{i // 2}", f"s{i // 4}", "core")) for i in range(8)))


def test_hops_of_a_ring_are_those_of_a_drawing():
    fabric = chain_of_leaves()
    assert ring_hops(fabric, ["n3"]) == 0
    assert ring_hops(fabric, ["n0", "n1"]) == 4  # up and down one switch, twice
    assert ring_hops(fabric, ["n0", "n1", "n2"]) == 10  # 3 nodes and 2 leaves, each edge twice
    assert path_hops(fabric, ["n0", "n1", "n2", "n7"]) == 2 + 4 + 6
    assert tour_hops(fabric, ["n0", "n2", "n1"]) == 4 + 4 + 2  # as placed, not the best order


def test_groups_follow_the_rank_order():
    """tp 8 fills a node; cp 2 are neighbours, dp 2 two nodes apart, pp four; experts of 16 devices are neighbours."""
    job = JobShape(tp=8, cp=2, dp=2, pp=2, ep=16)
    found = group_hops(chain_of_leaves(), job, [f"n{i}" for i in range(8)])
    shape = {kind: [(group.nodes, group.n_groups, group.hops) for group in groups] for kind, groups in found.items()}
    assert shape["tp"] == [((f"n{i}",), 1, 0) for i in range(8)]
    assert shape["cp"] == [((f"n{i}", f"n{i + 1}"), 8, 4) for i in (0, 2, 4, 6)]
    assert shape["ep"] == [((f"n{i}", f"n{i + 1}"), 1, 4) for i in (0, 2, 4, 6)]
    assert shape["dp"] == [((f"n{i}", f"n{i + 2}"), 8, 8) for i in (0, 1, 4, 5)]  # 4 up and down, and back
    assert shape["expert_dp"] == [((f"n{i}", f"n{i + 2}"), 8, 8) for i in (0, 1, 4, 5)]
    assert shape["pp"] == [((f"n{i}", f"n{i + 4}"), 8, 6) for i in range(4)]  # the way there only


def test_groups_that_share_a_node_are_one_entry():
    """dp 8 of single devices, two stages on two nodes: each stage's group is one node."""
    found = group_hops(chain_of_leaves(), JobShape(tp=1, dp=8, pp=2), ["n0", "n1"])
    assert [(group.nodes, group.n_groups, group.hops) for group in found["dp"]] == [(("n0",), 1, 0), (("n1",), 1, 0)]
    assert [(group.nodes, group.n_groups, group.hops) for group in found["pp"]] == [(("n0", "n1"), 8, 2)]


@pytest.mark.parametrize("job", [JobShape(tp=16, dp=2, pp=2), JobShape(tp=3, dp=8, pp=2), JobShape(tp=2, dp=2, pp=8)])
def test_every_group_is_counted_once(job):
    order = [f"n{i}" for i in range(job.n_nodes)]
    sizes = {"tp": job.tp, "cp": job.cp, "ep": job.ep, "dp": job.dp, "pp": job.pp}
    found = group_hops(chain_of_leaves(), job, order)
    for kind, size in sizes.items():
        assert sum(group.n_groups for group in found[kind]) * size == job.n_devices
