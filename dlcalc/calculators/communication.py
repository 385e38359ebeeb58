"""Time of collectives and point-to-point transfers.

A collective costs a floor, a latency per step and a time per byte, by the quicker of two protocols: low latency for
small messages, full bandwidth for large ones. Functions take the size of the *whole* gathered (or reduced) tensor of
one group, in bytes; all-to-all takes what one rank holds before the exchange, its own share included. Rates of links
are per device and one direction, except the fabric's, which is that of all NICs that a group's members on one node may
use. Which links a group crosses is decided by the placement, what is overlapped with compute by the cost model; neither
is known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from dlcalc.specs.calibration import CollectiveRates

Numeric = float | NDArray[np.float64]

IN_NETWORK_RANKS = 4.0
"""Up to this many ranks NCCL rings, even where the switch could reduce: measured, docs/kernels.md."""


@dataclass(frozen=True)
class GroupLink:
    """Where a group of ranks sits and what connects it; arrays that broadcast against the sizes."""

    n_ranks: Numeric
    ranks_per_node: Numeric
    """Members of the group inside one node; equal to ``n_ranks`` when the group does not leave it."""
    node_bytes_per_s: Numeric
    """Of one device's links to the other members inside the node."""
    fabric_bytes_per_s: Numeric
    """Of all NICs that this group's members on one node may use."""
    fabric_latency_s: Numeric
    """Of the wire and switches between two nodes, on top of the step latency of ``CollectiveRates``."""
    device_bytes_per_s: float | None = None
    """Of all links of a device, in parts of which a copy is measured; None: of those to the other members."""
    steps_in_node: Numeric | None = None
    """Of a ring over the members inside a node, in one pass; None: to each of the others in turn."""
    hops_factor: Numeric = 1.0
    """What an all-to-all inside a node takes over what it would if every pair had the rate: in a torus bytes pass
    through other devices."""

    @property
    def copied_bytes_per_s(self) -> Numeric:
        return self.node_bytes_per_s if self.device_bytes_per_s is None else self.device_bytes_per_s

    @property
    def n_nodes(self) -> Numeric:
        return np.maximum(self.n_ranks / self.ranks_per_node, 1.0)

    @property
    def node_steps(self) -> Numeric:
        """Of a ring over all ranks in one pass, those inside nodes."""
        if self.steps_in_node is None:
            return self.n_ranks - self.n_nodes
        return self.n_nodes * self.steps_in_node


def ring_all_gather_time_s(
    size_bytes: Numeric, *, n_ranks: Numeric, link_bytes_per_s: Numeric, link_latency_s: Numeric
) -> Numeric:
    """Time of a ring all-gather (equally, of a reduce-scatter).

    ``(n - 1) * (latency + size / n / rate)``: n - 1 steps, each passing one n-th of the tensor on.

    Zero for a group of one. ``size_bytes`` is the gathered tensor, not one rank's shard.

    Ignores: protocol choice, and other groups sharing the link; ``all_gather_time_s`` knows both.
    Source: [thakur2005] section 4.1.
    """
    step_time_s = link_latency_s + size_bytes / n_ranks / link_bytes_per_s
    return (n_ranks - 1) * step_time_s


def all_gather_time_s(
    size_bytes: Numeric, link: GroupLink, *, node: CollectiveRates, fabric: CollectiveRates
) -> Numeric:
    """Time of an all-gather of ``size_bytes`` in total: a ring over all ranks that enters and leaves each node once.

    Zero for a group of one.

    Source: [thakur2005] section 4.1; [nccl_docs] protocols.
    """
    return _ring_time_s(size_bytes, link, node=node, fabric=fabric, passes=1.0)


def reduce_scatter_time_s(
    size_bytes: Numeric, link: GroupLink, *, node: CollectiveRates, fabric: CollectiveRates
) -> Numeric:
    """Time of a reduce-scatter of ``size_bytes`` in total: the all-gather's ring, run backwards.

    Source: [thakur2005] section 4.2; [nccl_docs] protocols.
    """
    return _ring_time_s(size_bytes, link, node=node, fabric=fabric, passes=1.0)


def all_reduce_time_s(
    size_bytes: Numeric, link: GroupLink, *, node: CollectiveRates, fabric: CollectiveRates
) -> Numeric:
    """Time of an all-reduce, by the quickest of a ring (twice round), a tree over the nodes, and the switch.

    Assumes: the switch reduces for groups of more than four ranks, where ``in_network_fraction`` says that it can.
    Source: [thakur2005] section 4.5; [nccl_docs] trees and in-switch reduction.
    """
    quickest = _ring_time_s(size_bytes, link, node=node, fabric=fabric, passes=2.0)
    crosses = link.n_nodes > 1.0
    by_tree_s = _tree_time_s(size_bytes, link, node=node, fabric=fabric)
    quickest = np.where(crosses, np.minimum(quickest, by_tree_s), quickest)
    if node.in_network_fraction is None:
        return quickest
    switch_bytes_per_s = link.node_bytes_per_s * node.in_network_fraction
    in_switch_s = size_bytes / switch_bytes_per_s + (node.launch_s + node.in_network_start_s)
    can_reduce = np.logical_and(np.logical_not(crosses), np.asarray(link.n_ranks) > IN_NETWORK_RANKS)
    return np.where(can_reduce, np.minimum(quickest, in_switch_s), quickest)


def _ring_time_s(
    size_bytes: Numeric, link: GroupLink, *, node: CollectiveRates, fabric: CollectiveRates, passes: float
) -> Numeric:
    """A ring over all ranks: n - 1 steps a pass, of which ``n_nodes - 1`` cross the fabric.

    A node's members enter it on as many NICs as they have, so the fabric's rate is the whole node's; the slower link
    sets the pace of all. Each device also copies its own shard, once.

    A step at full bandwidth has a shortest time, which a long transfer hides: the two join like the sides of a right
    angle, as measured on Blackwell, where adding them errs by up to 20 % between 8 and 256 MiB. On Ampere and Hopper
    it is not seen, and ``bandwidth_step_us`` is zero.
    """
    crosses = link.n_nodes > 1.0
    fabric_steps = link.n_nodes - 1.0
    node_steps = passes * link.node_steps
    floor_s = passes * fabric_steps * (fabric.latency_s + link.fabric_latency_s) + node.launch_s
    sent_bytes = size_bytes * (passes * (link.n_ranks - 1.0) / link.n_ranks)
    full_s = sent_bytes / _pace(link, node.bus_fraction, fabric.bus_fraction)
    if node.bandwidth_step_us:
        full_s = np.hypot(full_s, node_steps * node.bandwidth_step_s)
    if node.copy_fraction is not None:
        full_s = full_s + size_bytes * (1.0 / (link.n_ranks * link.copied_bytes_per_s * node.copy_fraction))
    if node.low_latency_fraction is None:
        moved_s = full_s + node_steps * node.latency_s
    else:
        low = fabric.bus_fraction if fabric.low_latency_fraction is None else fabric.low_latency_fraction
        quick_s = sent_bytes / _pace(link, node.low_latency_fraction, low) + node_steps * node.latency_s
        start_s = node.bandwidth_start_s + np.where(crosses, fabric.bandwidth_start_s, 0.0)
        moved_s = np.minimum(full_s + (start_s + node_steps * node.bandwidth_latency_s), quick_s)
    return np.where(np.asarray(link.n_ranks) > 1.0, moved_s + floor_s, 0.0)


def _pace(link: GroupLink, node_fraction: float, fabric_fraction: float) -> Numeric:
    """Bytes per second of a ring: the node's link, or the fabric where that is slower."""
    inside = link.node_bytes_per_s * node_fraction
    return np.where(link.n_nodes > 1.0, np.minimum(inside, link.fabric_bytes_per_s * fabric_fraction), inside)


def _tree_time_s(size_bytes: Numeric, link: GroupLink, *, node: CollectiveRates, fabric: CollectiveRates) -> Numeric:
    """Two trees over the nodes, each with half of the data: up and down, a chain inside each node.

    Every node sends the tensor once upwards and once downwards, so it moves n / (n - 1) of what a ring moves, in
    ``log2(n_nodes)`` steps instead of ``n - 1``.
    """
    depth = np.log2(link.n_nodes)
    one_way_s = depth * (fabric.latency_s + link.fabric_latency_s) + (link.ranks_per_node - 1.0) * node.latency_s
    moved_s = 2.0 * size_bytes / _pace(link, node.bus_fraction, fabric.bus_fraction)
    return 2.0 * one_way_s + moved_s + node.launch_s + node.bandwidth_start_s + fabric.bandwidth_start_s


def all_to_all_time_s(
    size_bytes: Numeric, link: GroupLink, *, node: CollectiveRates, fabric: CollectiveRates
) -> Numeric:
    """Time of an all-to-all; ``size_bytes`` is what one rank holds before it, its own share included.

    Every rank sends an n-th to each other rank: to those in its node over the node's link, to the rest over the fabric,
    at the same time.

    Assumes: equal shares. Ignores: a fabric that is slower when all nodes talk at once (oversubscription).
    Source: [thakur2005] section 4.4, pairwise exchange.
    """
    crosses = link.n_nodes > 1.0
    per_rank_bytes = size_bytes / link.n_ranks
    off_node_bytes = per_rank_bytes * (link.n_ranks - link.ranks_per_node) * link.ranks_per_node
    off_node_s = np.where(crosses, off_node_bytes / (link.fabric_bytes_per_s * fabric.bus_fraction), 0.0)
    floor_s = node.launch_s + (link.node_steps + link.n_nodes - 1.0) * node.latency_s
    floor_s = floor_s + np.where(crosses, fabric.latency_s + link.fabric_latency_s, 0.0)
    in_node_bytes = per_rank_bytes * (link.ranks_per_node - 1.0) * link.hops_factor
    full_s = np.maximum(in_node_bytes / (link.node_bytes_per_s * node.bus_fraction), off_node_s)
    if node.copy_fraction is not None:
        full_s = full_s + per_rank_bytes / (link.copied_bytes_per_s * node.copy_fraction)
    if node.low_latency_fraction is not None:
        quick_s = np.maximum(in_node_bytes / (link.node_bytes_per_s * node.low_latency_fraction), off_node_s)
        full_s = np.minimum(full_s + node.bandwidth_start_s, quick_s)
    return np.where(np.asarray(link.n_ranks) > 1.0, full_s + floor_s, 0.0)


def distinct_places_count(n_places: Numeric, *, n_experts: int, top_k: int) -> Numeric:
    """Nodes (or ranks) on which a token's ``top_k`` different experts of ``n_experts`` sit, on average; at least 1.

    Assumes: experts drawn evenly. Ignores: that one of them may be the token's own, which ``all_to_all_time_s`` counts;
    for ranks, that a router may draw from a few groups alone (5% fewer for DeepSeek-V3 on 64 ranks).
    Source: [derived] the chance that none of a place's experts is among k drawn without putting back.
    """
    elsewhere = n_experts * (1.0 - 1.0 / n_places)
    missed = prod(np.maximum(elsewhere - drawn, 0.0) / (n_experts - drawn) for drawn in range(top_k))
    return np.maximum(n_places * (1.0 - missed), 1.0)


def send_time_s(
    size_bytes: Numeric, *, link_bytes_per_s: Numeric, link_latency_s: Numeric, rates: CollectiveRates
) -> Numeric:
    """Time of one point-to-point transfer.

    Source: [derived] a latency and the bytes over the achieved rate.
    """
    return size_bytes / (link_bytes_per_s * rates.bus_fraction) + (link_latency_s + rates.latency_s + rates.launch_s)
