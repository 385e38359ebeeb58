"""The cheapest single ring: an exact knapsack over a forest.

``inside[v][k]`` is the least cost of k nodes under vertex v: the edges strictly below v, plus a price per node of each
group. Children are merged one after another by min-plus convolution, so a ring of n nodes out of N costs at most about
``N * n`` elementary steps, and every vertex yields the cheapest ring that stays below it on the way.
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

MERGE_STEPS = 2000.0
"""Elementary steps that take as long as beginning one convolution."""


@dataclass(frozen=True)
class Ring:
    """Nodes a ring takes of each group, and the edges it pays besides one per node."""

    counts: tuple[tuple[int, int], ...]
    """(group, nodes), by group."""
    edges: int


@dataclass(frozen=True)
class Tables:
    """The knapsack of every vertex."""

    ring_nodes: int
    inside: tuple[Array, ...]
    merged: tuple[tuple[Array, ...], ...]
    """Of each vertex, the costs after each of its children."""
    work: float
    """Elementary steps that these tables took."""

    def apexes(self) -> list[tuple[float, int]]:
        """Cost of the cheapest ring below each vertex that has room for one, cheapest first."""
        found = [
            (float(costs[self.ring_nodes]), vertex)
            for vertex, costs in enumerate(self.inside)
            if len(costs) > self.ring_nodes and np.isfinite(costs[self.ring_nodes])
        ]
        return sorted(found)


def tables(
    forest: Forest,
    free: Sequence[int],
    ring_nodes: int,
    prices: Array | None = None,
    *,
    old: Tables | None = None,
    changed: Collection[int] = (),
) -> Tables:
    """Knapsacks of ``free`` nodes of each group, ``prices`` of a node by vertex.

    With ``old``, only vertices above the groups that have ``changed`` since are worked out again.
    """
    stale = _above(forest, changed) if old is not None else None
    inside: list[Array] = []
    merged: list[tuple[Array, ...]] = []
    work = 0.0
    for vertex, children in enumerate(forest.children):
        if old is not None and stale is not None and vertex not in stale:
            inside.append(old.inside[vertex])
            merged.append(old.merged[vertex])
            continue
        steps: list[Array] = []
        if children:
            costs = np.zeros(1)
            for child in children:
                outer = inside[child]
                if forest.edge[child]:
                    outer = outer + forest.edge[child]
                    outer[0] = 0.0
                work += MERGE_STEPS + len(costs) * len(outer)
                costs = _convolved(costs, outer, ring_nodes)
                steps.append(costs)
        else:
            counts = np.arange(min(ring_nodes, free[vertex]) + 1, dtype=np.float64)
            costs = counts * prices[vertex] if prices is not None else np.zeros(len(counts))
        if forest.multiple[vertex] > 1:
            costs = costs.copy()
            costs[np.arange(len(costs)) % forest.multiple[vertex] > 0] = np.inf
        inside.append(costs)
        merged.append(tuple(steps))
    return Tables(ring_nodes, tuple(inside), tuple(merged), work)


def ring_below(forest: Forest, found: Tables, apex: int) -> Ring:
    """The cheapest ring below ``apex``; of equal ones the one whose nodes come first."""
    counts: list[tuple[int, int]] = []
    wanted = [(apex, found.ring_nodes)]
    while wanted:
        vertex, k = wanted.pop()
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
    return Ring(tuple(counts), forest.edges(dict(counts)))


def _taken(found: Tables, forest: Forest, vertex: int, at: int, child: int, k: int) -> int:
    """How many of the ``k`` nodes of the children up to ``at`` are of that child."""
    if at == 0:
        return k
    before, outer = found.merged[vertex][at - 1], found.inside[child]
    least, most = max(0, k - len(before) + 1), min(k, len(outer) - 1)
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


def _above(forest: Forest, groups: Collection[int]) -> set[int]:
    found: set[int] = set()
    for group in groups:
        vertex = group
        while vertex >= 0 and vertex not in found:
            found.add(vertex)
            vertex = forest.parent[vertex]
    return found
