"""NVLink domains of several machines as the nodes of the cost model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlcalc.errors import NoPlacementError
from dlcalc.topology.domains import with_node_devices
from dlcalc.topology.fabric import Fabric, FabricNode


def rack(number, machines=18, busy=(), above=("spine",)):
    return [
        FabricNode(
            f"r{number}m{machine}",
            (f"leaf{number}", *above),
            n_devices=4,
            domain=f"rack{number}",
            state="busy" if machine in busy else "free",
        )
        for machine in range(machines)
    ]


def test_nodes_of_the_right_size_stay_what_they_are():
    fabric = Fabric((FabricNode("a", ("s",)), FabricNode("b", ("s",), n_devices=4)))
    found = with_node_devices(fabric, 8)
    assert [node.name for node in found.fabric.candidates()] == ["a"]
    assert found.fabric.by_name["b"].why_unusable == "has 4 devices, not 8"
    assert found.of([("a",)]) == (("a",),)


def test_a_node_is_as_many_machines_of_one_domain_as_hold_its_devices():
    """64 devices are 16 of 18 machines; a rack with three busy ones has only 15 left."""
    fabric = Fabric((*rack(0), *rack(1, busy=(0, 1, 2)), *rack(2, busy=(5, 6))), (1e11, 5e10))
    found = with_node_devices(fabric, 64)
    assert [node.name for node in found.fabric.nodes] == ["rack0", "rack2"]
    assert all(node.n_devices == 64 for node in found.fabric.nodes)
    machines = found.of([("rack2", "rack0")])[0]
    assert machines[:16] == tuple(f"r2m{machine}" for machine in range(18) if machine not in (5, 6))
    assert len(machines) == 32
    assert found.fabric.tier_bytes_per_s_per_node == (16e11, 8e11)  # of sixteen machines together


def test_a_domain_gives_as_many_nodes_as_it_holds():
    found = with_node_devices(Fabric(tuple(rack(0))), 8)
    assert len(found.fabric.nodes) == 9
    assert found.parts["rack0"] == ("r0m0", "r0m1")
    assert found.parts["rack0 part 9"] == ("r0m16", "r0m17")


def test_rates_follow_the_switches_that_are_left():
    """Machines on a switch each, which are no longer in between: the tier of the pod is now the closest."""
    nodes = [replace(node, switches=(f"tor-{node.name}", "pod", "core")) for node in (*rack(0, 2), *rack(1, 2))]
    found = with_node_devices(Fabric(tuple(nodes), (4e10, 2e10, None)), 8)
    assert found.fabric.by_name["rack0"].switches == ("pod", "core")
    assert found.fabric.tier_bytes_per_s_per_node == (4e10, None)


@pytest.mark.parametrize(
    ("nodes", "told"),
    [
        (
            [FabricNode("a", ("s",), n_devices=4)],
            "have 4 devices, a node of the hardware 64; no NVLink domains are named",
        ),
        (rack(0, 15), "no NVLink domain of the fabric has 64 free devices"),
        ([replace(node, n_devices=3) for node in rack(0)], "have 3 devices, a node of the hardware 64"),
    ],
)
def test_what_cannot_hold_a_node_is_said(nodes, told):
    with pytest.raises(NoPlacementError, match=told):
        with_node_devices(Fabric(tuple(nodes)), 64)


def test_no_candidates_are_no_error_here():
    busy = Fabric((FabricNode("a", ("s",), state="busy"),))
    assert with_node_devices(busy, 8).fabric.candidates() == ()
