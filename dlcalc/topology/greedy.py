"""Placements built ring by ring: the cheapest ring again and again, and the usual depth-first heuristic."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlcalc.topology.forest import Forest
from dlcalc.topology.knapsack import Array, Ring, Tables, ring_below, tables


def cheapest_first(
    forest: Forest,
    n_rings: int,
    ring_nodes: int,
    *,
    prices: Array | None = None,
    free: Sequence[int] | None = None,
    start: Tables | None = None,
    stop: Callable[[float], bool] = lambda work: False,
) -> list[Ring]:
    """Up to ``n_rings`` disjoint rings, each the cheapest (with ``prices`` of a node by vertex) of what is left.

    ``start`` saves working out the tables of the whole forest again. ``stop`` is told the work of every step and may
    end it early.
    """
    left = list(forest.free if free is None else free)
    found = tables(forest, left, ring_nodes, prices) if start is None else start
    rings: list[Ring] = []
    while len(rings) < n_rings:
        apexes = found.apexes()
        if not apexes:
            break
        ring = ring_below(forest, found, apexes[0][1])
        while len(rings) < n_rings and all(count <= left[group] for group, count in ring.counts):
            rings.append(ring)  # as cheap as any other: what is left only makes rings dearer
            for group, count in ring.counts:
                left[group] -= count
        if len(rings) == n_rings:
            break
        found = tables(forest, left, ring_nodes, prices, old=found, changed=[group for group, _ in ring.counts])
        if stop(found.work):
            break
    return rings


def depth_first(forest: Forest, n_rings: int, ring_nodes: int) -> list[Ring]:
    """The usual heuristic: walk each tree once and cut the walk into rings; nothing is chosen."""
    rings: list[Ring] = []
    usable = forest.usable(forest.free)
    granted = _granted(forest, usable)
    roots = [vertex for vertex, above in enumerate(forest.parent) if above < 0]
    first = 0
    for root in roots:
        room = usable[root] // ring_nodes
        counts: dict[int, int] = {}
        held = 0
        for group in range(first, root + 1):
            left = granted[group] if forest.members[group] else 0
            while left and room and len(rings) < n_rings:
                taken = min(left, ring_nodes - held)
                counts[group] = taken
                held, left = held + taken, left - taken
                if held == ring_nodes:
                    rings.append(Ring(tuple(sorted(counts.items())), forest.edges(counts)))
                    counts, held, room = {}, 0, room - 1
        first = root + 1
    return rings


def _granted(forest: Forest, usable: Sequence[int]) -> list[int]:
    """Nodes of each vertex a walk may use so that what stays together does: the first children give all they can."""
    granted = list(usable)
    for vertex in range(len(forest) - 1, -1, -1):
        left = granted[vertex]
        for child in forest.children[vertex]:
            granted[child] = min(usable[child], left)
            left -= granted[child]
    return granted
