"""Rings: the shortest closed tour of a set of nodes, and how far each group of a job really travels.

The shortest closed tour of leaves of a tree walks every edge of the subtree that spans them twice, and walking the tree
depth first does just that, so the order of a ring is solved exactly. One hop is one edge between a node and a switch or
between two switches. Nodes of different roots, or without topology data, are counted as if one more switch stood above
all roots: their hops are then at least what the path costs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dlcalc.topology.fabric import Fabric, spanning_edges
from dlcalc.topology.job import JobShape

GroupKind = Literal["tp", "cp", "ep", "dp", "expert_dp", "pp"]
GROUP_KINDS: tuple[GroupKind, ...] = ("tp", "cp", "ep", "dp", "expert_dp", "pp")


@dataclass(frozen=True)
class GroupHops:
    """Groups of one kind that sit on the same nodes."""

    kind: GroupKind
    nodes: tuple[str, ...]
    """In rank order."""
    n_groups: int
    """Groups of devices that share exactly these nodes."""
    hops: int
    """See ``group_hops``."""


def depth_first_positions(fabric: Fabric) -> dict[str, int]:
    """Where each node stands on a walk through the whole fabric, switches and nodes as the source orders them."""
    seen: dict[str, int] = {}
    for node in fabric.nodes:
        for switch in fabric.chains[node.name]:
            seen.setdefault(switch, len(seen))
    paths: dict[str, tuple[tuple[int, int], ...]] = {}
    for at, node in enumerate(fabric.nodes):
        above = tuple((1, seen[switch]) for switch in reversed(fabric.chains[node.name]))
        paths[node.name] = (*above, (0, at))
    return {name: position for position, name in enumerate(sorted(paths, key=paths.__getitem__))}


def ring_order(fabric: Fabric, names: Iterable[str]) -> tuple[str, ...]:
    """The nodes in the order of a shortest closed tour."""
    positions = depth_first_positions(fabric)
    return tuple(sorted(names, key=positions.__getitem__))


def ring_hops(fabric: Fabric, names: Sequence[str]) -> int:
    """Hops of the shortest closed tour of these nodes, whatever order they are named in."""
    return 2 * spanning_edges(fabric, names)


def distance_hops(fabric: Fabric, a: str, b: str) -> int:
    """Edges of the path between two nodes; 0 for a node and itself."""
    if a == b:
        return 0
    up, down = fabric.chains[a], fabric.chains[b]
    where = {switch: at for at, switch in enumerate(down)}
    at = next((at for at, switch in enumerate(up) if switch in where), None)
    return len(up) + len(down) + 2 if at is None else at + where[up[at]] + 2


def path_hops(fabric: Fabric, names: Sequence[str]) -> int:
    """Hops from the first to the last of these nodes, in this order."""
    return sum(distance_hops(fabric, a, b) for a, b in itertools.pairwise(names))


def tour_hops(fabric: Fabric, names: Sequence[str]) -> int:
    """Hops of the closed tour of these nodes in this order."""
    return path_hops(fabric, names) + distance_hops(fabric, names[-1], names[0]) if names else 0


def group_hops(fabric: Fabric, job: JobShape, node_order: Sequence[str]) -> dict[GroupKind, tuple[GroupHops, ...]]:
    """Hops of every group of a job whose node ``i`` holds ranks ``i * node_devices`` and following.

    Of tp, cp, dp and expert_dp the closed tour in rank order, as a ring collective goes; of ep, whose all-to-all has no
    order, the shortest closed tour; of pp the open path from the first stage to the last.
    """
    found: dict[GroupKind, tuple[GroupHops, ...]] = {}
    for kind, ranks in _ranks(job).items():
        hosts, n_groups = np.unique(ranks // job.node_devices, axis=0, return_counts=True)
        entries: dict[tuple[str, ...], int] = {}
        for row, count in zip(hosts, n_groups, strict=True):
            nodes = tuple(node_order[at] for at in dict.fromkeys(row.tolist()))
            entries[nodes] = entries.get(nodes, 0) + int(count)
        found[kind] = tuple(
            GroupHops(kind, nodes, count, _hops(fabric, kind, nodes)) for nodes, count in entries.items()
        )
    return found


def _hops(fabric: Fabric, kind: GroupKind, nodes: Sequence[str]) -> int:
    match kind:
        case "ep":
            return ring_hops(fabric, nodes)
        case "pp":
            return path_hops(fabric, nodes)
        case _:
            return tour_hops(fabric, nodes)


def _ranks(job: JobShape) -> dict[GroupKind, NDArray[np.int64]]:
    """Ranks of every group of each kind, one group a row."""
    dense = np.arange(job.n_devices).reshape(job.pp, job.dp, job.cp, job.tp)
    experts = job.ep * job.etp
    sparse = np.arange(job.n_devices).reshape(job.pp, job.stage_devices // experts, job.ep, job.etp)

    def along(ranks: NDArray[np.int64], axis: int) -> NDArray[np.int64]:
        return np.moveaxis(ranks, axis, -1).reshape(-1, ranks.shape[axis])

    return {
        "tp": along(dense, 3),
        "cp": along(dense, 2),
        "ep": along(sparse, 2),
        "dp": along(dense, 1),
        "expert_dp": along(sparse, 1),
        "pp": along(dense, 0),
    }
