"""Which ring is which pipeline stage, and how neighbouring rings are turned towards each other.

Node j of a stage talks to node j of the next. A closed ring costs the same wherever it begins and whichever way it
runs, and rings are alike, so the order of the rings and the turn of each are free: they are chosen so that pipeline
neighbours are few hops apart. What the rings themselves cost never changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlcalc.topology.fabric import Fabric

Rings = tuple[tuple[str, ...], ...]
MOST_ORDERED = 256
"""Rings up to which their order is improved; beyond, they stay in the order of a walk through the fabric."""
MOST_TURNS = 1 << 22
"""Pairs of nodes compared per pair of rings; of larger rings only some turns are tried."""
MOST_PASSES = 20


def ordered(fabric: Fabric, rings: Rings, unit_nodes: int = 1) -> Rings:
    """The same rings with few hops between neighbours; every ``unit_nodes`` consecutive nodes stay together."""
    if len(rings) < 2:
        return rings
    labels = _labels(fabric, rings)
    if len(rings) <= MOST_ORDERED:
        order = _shortest_path(_apart(labels).tolist())
        rings, labels = tuple(rings[at] for at in order), labels[order]
    turned = [np.arange(len(rings[0]))]
    for at in range(1, len(rings)):
        here, ahead = labels[at - 1][turned[-1]], labels[at]
        turned.append(_turn(here, ahead, unit_nodes))
    return tuple(tuple(ring[at] for at in turn.tolist()) for ring, turn in zip(rings, turned, strict=True))


def _labels(fabric: Fabric, rings: Rings) -> NDArray[np.int64]:
    """Of every node of every ring the switches from its root down, as numbers.

    Two nodes share as many switches as their labels agree in; beyond its own switches a node's labels are its own.
    """
    numbers: dict[str, int] = {}
    chains = [[fabric.chains[name] for name in ring] for ring in rings]
    depth = max(len(chain) for ring in chains for chain in ring)
    labels = np.empty((len(rings), len(rings[0]), max(depth, 1)), dtype=np.int64)
    labels[:] = -1 - np.arange(len(rings) * len(rings[0])).reshape(len(rings), -1, 1)
    for at, ring in enumerate(chains):
        for j, chain in enumerate(ring):
            labels[at, j, : len(chain)] = [numbers.setdefault(switch, len(numbers)) for switch in reversed(chain)]
    return labels


def _apart(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Hops between the nodes of two rings if each talked to the nearest it could: edges their counts differ over."""
    n_rings = len(labels)
    apart = np.zeros((n_rings, n_rings))
    for tier in range(labels.shape[2]):
        values, columns = np.unique(labels[:, :, tier], return_inverse=True)
        held = np.zeros((n_rings, len(values)))
        np.add.at(held, (np.arange(n_rings)[:, None], columns.reshape(n_rings, -1)), 1.0)
        held = held[:, values >= 0]
        for at in range(n_rings):
            apart[at] += np.abs(held - held[at]).sum(axis=1)
    return apart


def _shortest_path(apart: list[list[float]]) -> list[int]:
    """An order of the rings in which neighbours are near, from their present order by reversing stretches of it."""
    order = list(range(len(apart)))
    for _ in range(MOST_PASSES):
        better = False
        for first in range(len(order) - 1):
            for last in range(first + 1, len(order)):
                before = apart[order[first - 1]][order[first]] if first else 0.0
                after = apart[order[last]][order[last + 1]] if last + 1 < len(order) else 0.0
                new_before = apart[order[first - 1]][order[last]] if first else 0.0
                new_after = apart[order[first]][order[last + 1]] if last + 1 < len(order) else 0.0
                if new_before + new_after < before + after:
                    order[first : last + 1] = order[first : last + 1][::-1]
                    better = True
        if not better:
            break
    return order


def _turn(here: NDArray[np.int64], ahead: NDArray[np.int64], unit_nodes: int) -> NDArray[np.int64]:
    """The order of the nodes ``ahead``, turned or mirrored, in which they share most switches with those ``here``."""
    n_nodes = len(here)
    step = unit_nodes * max(1, -(-n_nodes * n_nodes // (MOST_TURNS * unit_nodes)))
    best, most = np.arange(n_nodes), -1
    for way in (np.arange(n_nodes), np.arange(n_nodes)[::-1]):
        there = np.concatenate([ahead[way], ahead[way]])
        for turn in range(0, n_nodes, step):
            shared = int(np.count_nonzero(here == there[turn : turn + n_nodes]))
            if shared > most:
                best, most = np.roll(way, -turn), shared
    return best
