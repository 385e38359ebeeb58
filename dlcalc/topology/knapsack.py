"""The cheapest single ring: an exact knapsack over a forest.

``inside[v][k]`` is the least cost of k nodes under vertex v: the edges strictly below v, plus a price per node of each
group. A whole ring is counted where its *apex* is, the lowest vertex that all its nodes are under. Children are merged
one after another by min-plus convolution, so a ring of n nodes out of N costs at most about ``N * n`` elementary steps,
and every vertex yields the cheapest ring whose apex it is on the way.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from dlcalc.topology.forest import Forest

Array = NDArray[np.float64]
CHUNK = 1 << 18
"""Elements of a convolution held at once; stays in cache."""

MERGE_STEPS = 10000.0
"""Elementary steps that take as long as beginning one convolution."""


@dataclass(frozen=True)
class Ring:
    """Nodes a ring takes of each group, and the edges it pays besides one per node."""

    counts: tuple[tuple[int, int], ...]
    """(group, nodes), by group."""
    edges: int
    apex: int
    """The lowest vertex that all its nodes are under."""


def ring_of(forest: Forest, counts: dict[int, int]) -> Ring:
    """The ring that takes ``counts`` nodes of each group."""
    ring_nodes = sum(counts.values())
    held = forest.held(counts)
    return Ring(tuple(sorted(counts.items())), forest.edges(counts), held.index(ring_nodes))


@dataclass(frozen=True)
class Tables:
    """The knapsack of every vertex."""

    ring_nodes: int
    inside: tuple[Array, ...]
    merged: tuple[tuple[tuple[Array, Array], ...], ...]
    """Of each vertex, the costs after each of its children, and those of that child."""
    ring_prices: tuple[float, ...]
    """Of each vertex, what a ring pays whose apex it is: the prices of a whole ring below it and below all above it."""
    work: float
    """Elementary steps that these tables took."""

    def apexes(self) -> list[tuple[float, int]]:
        """Cost of the cheapest ring of each vertex that is the apex of one, cheapest first."""
        found = [(self.cost(vertex), vertex) for vertex in range(len(self.inside))]
        return sorted(entry for entry in found if entry[0] < np.inf)

    def cost(self, apex: int) -> float:
        """Of its cheapest ring; infinite where there is none."""
        costs = self.inside[apex]
        return float(costs[self.ring_nodes]) + self.ring_prices[apex] if len(costs) > self.ring_nodes else np.inf


def tables(forest: Forest, free: Sequence[int], ring_nodes: int, prices: Array | None = None) -> Tables:
    """Knapsacks of ``free`` nodes of each group.

    ``prices[0]`` is of a node of each group, ``prices[1]`` of a ring that stays below each vertex.
    """
    empty: tuple[Array, ...] = (np.zeros(0),) * len(forest)
    blank = Tables(ring_nodes, empty, ((),) * len(forest), _summed_down(forest, prices), 0.0)
    return refreshed(forest, blank, free, prices, range(len(forest)))


def refreshed(
    forest: Forest, old: Tables, free: Sequence[int], prices: Array | None, vertices: Collection[int]
) -> Tables:
    """``old`` with the knapsacks of these vertices worked out again, from those of their children."""
    inside, merged = list(old.inside), list(old.merged)
    work = 0.0
    for vertex in sorted(vertices):
        children = forest.children[vertex]
        steps: list[tuple[Array, Array]] = []
        if children:
            for step, child in zip(old.merged[vertex], children, strict=False):
                if step[1] is not inside[child]:
                    break  # from here on children have changed
                steps.append(step)
            costs = steps[-1][0] if steps else np.zeros(1)
            for child in children[len(steps) :]:
                outer = inside[child][: old.ring_nodes]  # one that takes a whole ring is the apex itself
                if forest.edge[child]:
                    outer = outer + forest.edge[child]
                    outer[0] = 0.0
                work += MERGE_STEPS + len(costs) * len(outer)
                costs = _convolved(costs, outer, old.ring_nodes)
                steps.append((costs, inside[child]))
        else:
            counts = np.arange(min(old.ring_nodes, free[vertex]) + 1, dtype=np.float64)
            costs = counts * prices[0][vertex] if prices is not None else np.zeros(len(counts))
        if forest.multiple[vertex] > 1:
            costs = costs.copy()
            costs[np.arange(len(costs)) % forest.multiple[vertex] > 0] = np.inf
        inside[vertex] = costs
        merged[vertex] = tuple(steps)
    return Tables(old.ring_nodes, tuple(inside), tuple(merged), old.ring_prices, work)


def _summed_down(forest: Forest, prices: Array | None) -> tuple[float, ...]:
    if prices is None:
        return (0.0,) * len(forest)
    found = prices[1].tolist()
    for vertex in range(len(forest) - 1, -1, -1):
        if forest.parent[vertex] >= 0:
            found[vertex] += found[forest.parent[vertex]]
    return tuple(found)


def ring_below(forest: Forest, found: Tables, apex: int) -> Ring:
    """The cheapest ring of ``apex``; of equal ones the one whose nodes come first."""
    counts: list[tuple[int, int]] = []
    edges = -forest.edge[apex]
    wanted = [(apex, found.ring_nodes)]
    while wanted:
        vertex, k = wanted.pop()
        edges += forest.edge[vertex]
        children = forest.children[vertex]
        if not children:
            counts.append((vertex, k))
            continue
        for at in range(len(children) - 1, -1, -1):
            child = children[at]
            taken = _taken(found, forest, vertex, at, child, k)
            if taken:
                wanted.append((child, taken))
            k -= taken
    counts.sort()
    return Ring(tuple(counts), edges, apex)


def _taken(found: Tables, forest: Forest, vertex: int, at: int, child: int, k: int) -> int:
    """How many of the ``k`` nodes of the children up to ``at`` are of that child."""
    if at == 0:
        return k
    before, outer = found.merged[vertex][at - 1][0], found.inside[child]
    least, most = max(0, k - len(before) + 1), min(k, len(outer) - 1, found.ring_nodes - 1)
    costs = before[k - most : k - least + 1][::-1] + outer[least : most + 1]
    costs[(1 if least == 0 else 0) :] += forest.edge[child]
    return least + int(np.argmin(costs))


def _convolved(a: Array, b: Array, most: int) -> Array:
    """Min-plus convolution of two cost tables, up to ``most`` nodes."""
    if len(a) < len(b):
        a, b = b, a
    length = min(most, len(a) + len(b) - 2) + 1
    if len(a) == 1:
        return a + float(b[0])
    reach = len(b) - 1
    padded: Array = np.full(length + reach, np.inf)
    padded[reach : reach + min(len(a), length)] = a[:length]
    # row k of the view is a shifted by k: view[k, j] = a[j - k]
    step = padded.strides[0]
    shifted = as_strided(padded[reach:], shape=(len(b), length), strides=(-step, step), writeable=False)
    rows = max(1, CHUNK // length)
    if len(b) <= rows:
        return np.asarray((shifted + b[:, None]).min(axis=0), dtype=np.float64)
    least = np.full(length, np.inf)
    for start in range(0, len(b), rows):
        block = shifted[start : start + rows] + b[start : start + rows, None]
        np.minimum(least, block.min(axis=0), out=least)
    return least
