"""The canonical fabric: nodes under a tree of switches, whatever the source said it in.

A node knows the switches above it, closest first. Together these chains are a forest: any depth, several roots, nodes
of unequal depth. A node without a chain has no topology data: it is kept and named, and never a candidate to be placed.
Traffic between two nodes *meets* at the closest switch that both are under; the tier of a switch is how many switches
its longest chain passes on the way to it, 0 for one that only nodes hang from. Nothing here knows a file or a cloud.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, Self

from dlcalc.errors import TopologyError

State = Literal["free", "busy", "unusable"]
"""free: may be given to a job; busy: holds one; unusable: down, cordoned, or not of the kind asked for."""


@dataclass(frozen=True)
class FabricNode:
    """A machine that holds devices."""

    name: str
    """Unique: an instance id, or the name of the node."""
    switches: tuple[str, ...] = ()
    """Closest first. Empty: no topology data."""
    host: str = ""
    """What launchers call it; empty: ``name``."""
    n_devices: int = 8
    state: State = "free"
    job: str = ""
    """Of a busy node."""
    rank: int | None = None
    """Of this node in its job: 0 for the node that holds the first devices."""
    domain: str = ""
    """NVLink domain larger than the node (an NVL72 rack, an UltraServer); empty: the node is its own."""
    instance_type: str = ""
    zone: str = ""
    region: str = ""
    why_unusable: str = ""

    @property
    def host_name(self) -> str:
        return self.host or self.name


@dataclass(frozen=True)
class Fabric:
    """Nodes and the forest of switches above them."""

    nodes: tuple[FabricNode, ...]
    tier_bytes_per_s_per_node: tuple[float | None, ...] = ()
    """Of the traffic of a node that meets at a switch of that tier, closest first, when every node under it talks at
    once (so oversubscription is in it); None, or a tier beyond the last: not known."""
    source: str = ""
    """Where it was read, for people."""
    remarks: tuple[str, ...] = field(default=(), compare=False)
    """What the source said that could not be used, for people."""

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            if not node.name:
                raise TopologyError("a node without a name")
            if node.name in seen:
                raise TopologyError(f"node {node.name} is there twice")
            seen.add(node.name)
        parents: dict[str, str] = {}
        for node in self.nodes:
            for switch, parent in zip(node.switches, node.switches[1:], strict=False):
                known = parents.setdefault(switch, parent)
                if known != parent:
                    raise TopologyError(
                        f"switch {switch} is under both {known} and {parent} (node {node.name}): not a tree"
                    )
        for switch in parents:
            above, passed = parents.get(switch), {switch}
            while above is not None:
                if above in passed:
                    raise TopologyError(f"switch {switch} is above itself: not a tree")
                passed.add(above)
                above = parents.get(above)

    @cached_property
    def parent(self) -> dict[str, str]:
        """The switch above each switch that has one."""
        return {
            switch: above
            for node in self.nodes
            for switch, above in zip(node.switches, node.switches[1:], strict=False)
        }

    @cached_property
    def chains(self) -> dict[str, tuple[str, ...]]:
        """Every switch above each node, closest first, completed where another node's chain goes on further up."""
        found = {}
        for node in self.nodes:
            chain = list(node.switches)
            while chain and chain[-1] in self.parent:
                chain.append(self.parent[chain[-1]])
            found[node.name] = tuple(chain)
        return found

    @cached_property
    def tier(self) -> dict[str, int]:
        """Of each switch: the longest way down from it to a switch that only nodes hang from."""
        found: dict[str, int] = {}
        for chain in self.chains.values():
            for tier, switch in enumerate(chain):
                found[switch] = max(found.get(switch, 0), tier)
        return found

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """Switches with none above them, in the order in which nodes name them."""
        return tuple(dict.fromkeys(chain[-1] for chain in self.chains.values() if chain))

    @property
    def n_tiers(self) -> int:
        return max(self.tier.values(), default=-1) + 1

    @cached_property
    def by_name(self) -> dict[str, FabricNode]:
        return {node.name: node for node in self.nodes}

    def meets_at(self, a: str, b: str) -> str | None:
        """The closest switch that both nodes are under; None for nodes of different roots, or without data."""
        under = set(self.chains[b])
        return next((switch for switch in self.chains[a] if switch in under), None)

    def candidates(self) -> tuple[FabricNode, ...]:
        """Free nodes with topology data."""
        return tuple(node for node in self.nodes if node.state == "free" and node.switches)

    def without_data(self) -> tuple[FabricNode, ...]:
        """Free nodes that cannot be placed, since nothing is known of the switches above them."""
        return tuple(node for node in self.nodes if node.state == "free" and not node.switches)

    def of_job(self, prefix: str) -> tuple[FabricNode, ...]:
        """Nodes of the jobs whose names begin with ``prefix``, by rank."""
        found = [node for node in self.nodes if node.state == "busy" and node.job.startswith(prefix)]
        return tuple(sorted(found, key=lambda node: (node.job, node.rank is None, node.rank or 0, node.name)))

    def only(self, nodes: Iterable[FabricNode]) -> Self:
        """The same fabric with these nodes alone; switches that lose every node are gone."""
        return replace(self, nodes=tuple(nodes))

    def rate_bytes_per_s_per_node(self, tier: int) -> float | None:
        """Of a node's traffic that meets at ``tier``."""
        return self.tier_bytes_per_s_per_node[tier] if tier < len(self.tier_bytes_per_s_per_node) else None


def spanning_edges(fabric: Fabric, names: Sequence[str]) -> int:
    """Edges of the subtree that spans the nodes: one per node, and one per switch that holds some of them, not all."""
    if len(names) < 2:
        return 0
    held: dict[str, int] = {}
    for name in names:
        for switch in fabric.chains[name]:
            held[switch] = held.get(switch, 0) + 1
    return len(names) + sum(count < len(names) for count in held.values())
