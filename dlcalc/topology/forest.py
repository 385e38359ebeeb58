"""The fabric as placement sees it: trees of interchangeable nodes, with what must stay together written on them.

Nodes that hang from one switch (and sit in one NVLink domain, where that matters) are alike: only how many of them a
ring takes counts. They are one *group*, a leaf of the forest. A ring of nodes under vertex ``v`` that also has nodes
elsewhere pays ``edge[v]`` tree edges; one all of whose nodes are under ``v`` does not. Its hops are twice these edges
and one per node. What must stay together is a rule about counts: of each ring, the nodes under ``v`` come in multiples
of ``multiple[v]``. A rule about a domain that hangs from several switches is written where these meet, so the edges
inside it are not counted and the forest is not ``exact``: it then finds placements, but proves nothing about them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from dlcalc.errors import TopologyError
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.rings import depth_first_positions

Scope = Literal["domain", "switch"] | int
"""One NVLink domain, the switches closest to a node, or one switch of at most this tier."""


@dataclass(frozen=True)
class Together:
    """Every ``nodes`` consecutive nodes of a ring sit inside one ``scope``."""

    nodes: int
    scope: Scope


@dataclass(frozen=True)
class Forest:
    """Vertices in an order in which children come before their parents; a tree's are consecutive."""

    parent: tuple[int, ...]
    """-1 of a root."""
    edge: tuple[int, ...]
    multiple: tuple[int, ...]
    members: tuple[tuple[str, ...], ...]
    """Nodes of a group, depth first; none of every other vertex."""
    exact: bool = True
    """Whether edges of the forest are all edges of the fabric."""
    rules: tuple[Together, ...] = ()

    def __len__(self) -> int:
        return len(self.parent)

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.parent]
        for vertex, above in enumerate(self.parent):
            if above >= 0:
                found[above].append(vertex)
        return tuple(map(tuple, found))

    @cached_property
    def first(self) -> tuple[int, ...]:
        """Of each vertex the first one below it: those from there to itself are its subtree."""
        found = list(range(len(self)))
        for vertex, above in enumerate(self.parent):
            if above >= 0:
                found[above] = min(found[above], found[vertex])
        return tuple(found)

    @cached_property
    def groups(self) -> tuple[int, ...]:
        return tuple(vertex for vertex, nodes in enumerate(self.members) if nodes)

    @cached_property
    def free(self) -> tuple[int, ...]:
        """Nodes of each group, 0 of every other vertex."""
        return tuple(map(len, self.members))

    def usable(self, free: Sequence[int]) -> list[int]:
        """Of ``free`` nodes of each group, the most that rings can take under each vertex."""
        most = list(free)
        for vertex, above in enumerate(self.parent):
            most[vertex] -= most[vertex] % self.multiple[vertex]
            if above >= 0:
                most[above] += most[vertex]
        return most

    def n_rings(self, ring_nodes: int) -> int:
        """The most rings of this size that fit, each inside one tree."""
        usable = self.usable(self.free)
        return sum(usable[root] // ring_nodes for root, above in enumerate(self.parent) if above < 0)

    def held(self, counts: dict[int, int]) -> list[int]:
        """Nodes under each vertex of what takes ``counts`` of each group."""
        held = [0] * len(self)
        for group, count in counts.items():
            held[group] = count
        for vertex, above in enumerate(self.parent):
            if above >= 0:
                held[above] += held[vertex]
        return held

    def edges(self, counts: dict[int, int]) -> int:
        """Edges that a ring pays which takes ``counts`` nodes of each group, besides one per node."""
        ring_nodes = sum(counts.values())
        return sum(paid for paid, held in zip(self.edge, self.held(counts), strict=True) if 0 < held < ring_nodes)


def forest_of(
    fabric: Fabric,
    nodes: Iterable[FabricNode],
    together: Iterable[Together] = (),
    *,
    ring_tier: int | None = None,
) -> Forest:
    """The forest above ``nodes``, whose rings stay below one switch of at most ``ring_tier`` where that is given."""
    kept = [node for node in nodes if fabric.chains[node.name]]
    rules = [rule for rule in together if rule.nodes > 1]
    domain_nodes = math.lcm(*(rule.nodes for rule in rules if rule.scope == "domain"))
    anchors = _anchors(fabric, kept) if domain_nodes > 1 else {}
    splits = any(rule.scope != "domain" for rule in rules) or ring_tier is not None
    if any(rule.scope == "switch" and rule.nodes % domain_nodes for rule in rules) and _scattered(
        fabric, kept, anchors
    ):
        raise TopologyError(
            f"groups of {domain_nodes} nodes that stay in an NVLink domain cannot be combined with smaller ones that "
            "stay under a switch, since domains here hang from several switches"
        )
    paths: dict[str, list[tuple[str, str]]] = {}
    multiples: dict[tuple[str, str], int] = {}
    exact = True
    for node in kept:
        chain = fabric.chains[node.name]
        closest, cell = chain[0], ""
        if domain_nodes > 1:
            cell = _cell(fabric, node)
            exact = exact and anchors[cell] == chain[0]
            closest = chain[0] if splits else anchors[cell]
        above = [
            switch for switch in chain[chain.index(closest) :] if ring_tier is None or fabric.tier[switch] <= ring_tier
        ]
        path = [("switch", switch) for switch in reversed(above)] + [("held", closest), ("group", f"{closest} {cell}")]
        multiples[path[-1]] = domain_nodes
        for rule in rules:
            if rule.scope == "switch":
                multiples[path[-2]] = math.lcm(multiples.get(path[-2], 1), rule.nodes)
            elif isinstance(rule.scope, int):
                inside = next((step for step in path[:-2] if fabric.tier[step[1]] <= rule.scope), None)
                if inside is None:
                    break  # this node shares no switch of that tier with another
                multiples[inside] = math.lcm(multiples.get(inside, 1), rule.nodes)
        else:
            if above:
                paths[node.name] = path
    return replace(_built(fabric, paths, multiples), exact=exact, rules=tuple(rules))


def _scattered(fabric: Fabric, nodes: Sequence[FabricNode], anchors: dict[str, str]) -> bool:
    return any(anchors.get(_cell(fabric, node)) != fabric.chains[node.name][0] for node in nodes)


def _cell(fabric: Fabric, node: FabricNode) -> str:
    """What names the domain of a node; a domain of several roots is several, since no ring spans them."""
    return f"{fabric.chains[node.name][-1]} {node.domain}" if node.domain else f" {node.name}"


def _anchors(fabric: Fabric, nodes: Sequence[FabricNode]) -> dict[str, str]:
    """Of each domain (inside one root) the closest switch that all its nodes are under."""
    found: dict[str, str] = {}
    for node in nodes:
        chain = fabric.chains[node.name]
        cell = _cell(fabric, node)
        known = found.get(cell)
        if known is None:
            found[cell] = chain[0]
        elif known not in chain:
            above = known
            while above not in chain:
                above = fabric.parent[above]
            found[cell] = above
    return found


def _built(fabric: Fabric, paths: dict[str, list[tuple[str, str]]], multiples: dict[tuple[str, str], int]) -> Forest:
    """The forest of these ways down to each node, without vertices that have one child and nothing else."""
    positions = depth_first_positions(fabric)
    below: dict[tuple[str, str], dict[tuple[str, str], None]] = {}
    members: dict[tuple[str, str], list[str]] = {}
    roots: dict[tuple[str, str], None] = {}
    for name in sorted(paths, key=positions.__getitem__):
        path = paths[name]
        roots[path[0]] = None
        for step, deeper in itertools.pairwise(path):
            below.setdefault(step, {})[deeper] = None
        members.setdefault(path[-1], []).append(name)

    parent: list[int] = []
    edge: list[int] = []
    multiple: list[int] = []
    nodes: list[tuple[str, ...]] = []

    def add(step: tuple[str, str], paid: int, together: int) -> int:
        """Append the vertex of ``step`` and everything below it; its number."""
        paid += step[0] == "switch"
        together = math.lcm(together, multiples.get(step, 1))
        deeper = list(below.get(step, ()))
        if len(deeper) == 1:
            return add(deeper[0], paid, together)
        children = [add(child, 0, 1) for child in deeper]
        together = math.lcm(together, math.gcd(*(multiple[child] for child in children))) if children else together
        parent.append(-1)
        edge.append(paid)
        multiple.append(together)
        nodes.append(tuple(members.get(step, ())))
        for child in children:
            parent[child] = len(parent) - 1
        return len(parent) - 1

    for root in roots:
        add(root, 0, 1)
    return Forest(tuple(parent), tuple(edge), tuple(multiple), tuple(nodes))
