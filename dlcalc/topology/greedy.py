"""Placements built ring by ring: the cheapest ring again and again, and the usual depth-first heuristic."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

from dlcalc.topology.forest import Forest
from dlcalc.topology.knapsack import Array, Ring, Tables, refreshed, ring_below, ring_of, tables

REFRESH_STEPS = 1e5
"""Elementary steps that take as long as choosing which tables to work out again, and reading a ring off them."""


def cheapest_first(
    forest: Forest,
    n_rings: int,
    ring_nodes: int,
    *,
    prices: Array | None = None,
    start: Tables | None = None,
    stop: Callable[[float], bool] = lambda work: False,
) -> list[Ring]:
    """Up to ``n_rings`` disjoint rings, each the cheapest (with ``prices`` as ``tables`` takes them) of what is left.

    Rings only get dearer as nodes are taken, so the tables above taken nodes are left stale until one of them would
    have the cheapest ring. ``start`` saves working out the tables of the whole forest. ``stop`` is told the work of
    every step and may end it early.
    """
    left = list(forest.free)
    found = tables(forest, left, ring_nodes, prices) if start is None else start
    cheapest = found.apexes()  # a sorted list is a heap
    stale: set[int] = set()
    rings: list[Ring] = []
    while len(rings) < n_rings and cheapest:
        cost, apex = heapq.heappop(cheapest)
        if apex in stale:
            below = [vertex for vertex in stale if forest.first[apex] <= vertex <= apex]
            found = refreshed(forest, found, left, prices, below)
            stale.difference_update(below)
            if stop(found.work + REFRESH_STEPS):
                break
        now = found.cost(apex)
        if now > cost:
            if now < math.inf:
                heapq.heappush(cheapest, (now, apex))
            continue
        ring = ring_below(forest, found, apex)
        while len(rings) < n_rings and all(count <= left[group] for group, count in ring.counts):
            rings.append(ring)
            for group, count in ring.counts:
                left[group] -= count
        heapq.heappush(cheapest, (cost, apex))
        for group, _ in ring.counts:
            vertex = group
            while vertex >= 0 and vertex not in stale:
                stale.add(vertex)
                vertex = forest.parent[vertex]
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
                    rings.append(ring_of(forest, counts))
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
