"""Nodes as the cost model counts them: where an NVLink domain holds several machines, a node is a part of a domain.

A rack of 18 machines with 4 devices each is one node of 72 to the cost model, or, where a job gets 64 of them, 16 of
its machines. What is placed then is such parts; their machines, in the order of the fabric, are named afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from dlcalc.errors import NoPlacementError
from dlcalc.topology.fabric import Fabric, FabricNode


@dataclass(frozen=True)
class Machines:
    """A fabric whose candidates have as many devices as the cost model's nodes, and what they are made of."""

    fabric: Fabric
    parts: Mapping[str, tuple[str, ...]]
    """Of a node that is several machines, their names."""

    def of(self, rings: Iterable[Sequence[str]]) -> tuple[tuple[str, ...], ...]:
        """Rings of nodes as rings of machines."""
        return tuple(tuple(name for node in ring for name in self.parts.get(node, (node,))) for ring in rings)


def with_node_devices(fabric: Fabric, node_devices: int) -> Machines:
    """``fabric`` with nodes of ``node_devices``: as it is, or with parts of its domains as nodes."""
    sizes = sorted({node.n_devices for node in fabric.candidates()})
    if node_devices in sizes or not sizes:
        fitting = tuple(_unless(node, node.n_devices == node_devices, node_devices) for node in fabric.nodes)
        return Machines(replace(fabric, nodes=fitting), {})
    if all(node_devices % size for size in sizes) or not any(node.domain for node in fabric.candidates()):
        raise NoPlacementError(
            f"free nodes of {fabric.source or 'the fabric'} have {' or '.join(map(str, sizes))} devices, a node of the "
            f"hardware {node_devices}; no NVLink domains are named that could hold as many"
        )
    return _parts_of_domains(fabric, node_devices)


def _unless(node: FabricNode, fits: bool, node_devices: int) -> FabricNode:
    if fits or node.state != "free":
        return node
    return replace(node, state="unusable", why_unusable=f"has {node.n_devices} devices, not {node_devices}")


def _parts_of_domains(fabric: Fabric, node_devices: int) -> Machines:
    by_domain: dict[str, list[FabricNode]] = {}
    for node in fabric.candidates():
        if node.domain and node_devices % node.n_devices == 0:
            by_domain.setdefault(node.domain, []).append(node)
    nodes: list[FabricNode] = []
    parts: dict[str, tuple[str, ...]] = {}
    for domain, machines in by_domain.items():
        per_node = node_devices // machines[0].n_devices
        for number in range(len(machines) // per_node):
            chosen = machines[number * per_node : (number + 1) * per_node]
            chain = _common([fabric.chains[node.name] for node in chosen])
            if not chain:
                continue
            name = domain if number == 0 else f"{domain} part {number + 1}"
            parts[name] = tuple(node.name for node in chosen)
            nodes.append(FabricNode(name, chain, n_devices=node_devices, domain=domain, zone=chosen[0].zone))
    if not nodes:
        raise NoPlacementError(
            f"no NVLink domain of {fabric.source or 'the fabric'} has {node_devices} free devices, which are a node of "
            f"the hardware"
        )
    merged = Fabric(tuple(nodes), source=fabric.source)
    per_node = max(len(names) for names in parts.values())
    return Machines(replace(merged, tier_bytes_per_s_per_node=_rates(fabric, merged, per_node)), parts)


def _common(chains: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Switches above all of the machines, closest first."""
    return tuple(switch for switch in chains[0] if all(switch in chain for chain in chains[1:]))


def _rates(fabric: Fabric, merged: Fabric, per_node: int) -> tuple[float | None, ...]:
    """Of the merged fabric's tiers: the slowest of what its switches are to the machines, times their number."""
    found: list[float | None] = []
    for tier in range(merged.n_tiers):
        below = [switch for switch, position in merged.tier.items() if position == tier]
        known = [fabric.rate_bytes_per_s_per_node(fabric.tier[switch]) for switch in below]
        rates = [rate for rate in known if rate is not None]
        found.append(per_node * min(rates) if rates else None)
    return tuple(found)
