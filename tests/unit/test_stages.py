"""Order and turn of rings: pipeline neighbours come nearer, rings stay what they were."""

import random

from hypothesis import given
from hypothesis import strategies as st

from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.rings import path_hops, tour_hops
from dlcalc.topology.stages import ordered
from tests.fabrics import fabrics


def pipeline_hops(fabric: Fabric, rings) -> int:
    return sum(path_hops(fabric, column) for column in zip(*rings, strict=True))


def leaves(n_leaves: int, per_leaf: int) -> Fabric:
    return Fabric(tuple(FabricNode(f"n{at}", (f"l{at // per_leaf}", "core")) for at in range(n_leaves * per_leaf)))


def test_neighbouring_stages_share_switches_where_they_can():
    """Stage 0 goes round leaves 0, 1, 2 and stage 1 round 1, 2, 0, backwards: all six pairs can share a leaf."""
    fabric = leaves(3, 4)
    rings = (("n0", "n1", "n4", "n5", "n8", "n9"), ("n3", "n2", "n11", "n10", "n7", "n6"))
    assert pipeline_hops(fabric, rings) == 2 * 2 + 4 * 4
    assert pipeline_hops(fabric, ordered(fabric, rings)) == 6 * 2


def test_stages_are_ordered_so_that_near_rings_are_neighbours():
    """Rings alternate between two leaves; ordered, only one of the three boundaries crosses."""
    fabric = leaves(2, 4)
    rings = (("n0", "n1"), ("n4", "n5"), ("n2", "n3"), ("n6", "n7"))
    assert pipeline_hops(fabric, rings) == 2 * 3 * 4
    assert pipeline_hops(fabric, ordered(fabric, rings)) == 2 * (2 + 4 + 2)


@given(fabrics(fewest_nodes=6), st.sampled_from([(2, 3), (3, 2), (2, 2), (3, 1)]), st.randoms(use_true_random=False))
def test_no_ring_changes_but_for_where_it_begins_and_its_way(fabric, shape, chance: random.Random):
    names = list(fabric.by_name)
    chance.shuffle(names)
    n_rings, ring_nodes = shape
    rings = tuple(tuple(names[at * ring_nodes : (at + 1) * ring_nodes]) for at in range(n_rings))
    found = ordered(fabric, rings)
    assert sorted(map(sorted, found)) == sorted(map(sorted, rings))
    before = {frozenset(ring): tour_hops(fabric, ring) for ring in rings}
    assert all(tour_hops(fabric, ring) == before[frozenset(ring)] for ring in found)


def test_what_stays_together_still_does():
    """Two nodes a unit: whatever the turn, units are whole."""
    fabric = leaves(6, 2)
    rings = (("n0", "n1", "n2", "n3", "n4", "n5"), ("n11", "n10", "n7", "n6", "n9", "n8"))
    for ring in ordered(fabric, rings, unit_nodes=2):
        assert all(fabric.chains[a] == fabric.chains[b] for a, b in zip(ring[::2], ring[1::2], strict=True))
