"""Which link each group of a plan crosses, from the rank order and the size of a node.

Ranks are laid out tp fastest, then cp, then dp, then pp; experts use the same devices as etp, then ep, then the rest. A
group of ``n`` ranks ``stride`` apart has ``min(n, node // stride)`` members on a node, and each member brings its own
NIC.

Between nodes every link is the NIC's, as on a fabric where any pair of nodes has the full rate. Of plans whose nodes
are known, :class:`PlacedRates` says what their groups really get; topology works that out, and it is only data here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike

from dlcalc.calculators import torus
from dlcalc.calculators.communication import GroupLink
from dlcalc.costmodel.plans import Array, Index, Plans, number, take_rows
from dlcalc.specs.hardware import HardwareSpec, Node, Torus


@dataclass(frozen=True)
class Crossing:
    """Between nodes, what the slowest of all groups of one kind gets; arrays broadcast against the plans."""

    bytes_per_s_per_device: Array
    """The NIC's where no switch is slower."""
    latency_s: Array
    """On top of the fabric's own: of the switches beyond the closest one."""


@dataclass(frozen=True)
class PlacedRates:
    """What plans that are placed get between nodes, by kind of group as in :class:`Links`."""

    tp: Crossing
    cp: Crossing
    shard: Crossing
    replicate: Crossing
    etp: Crossing
    ep: Crossing
    expert_shard: Crossing
    pp: Crossing

    def take_rows(self, rows: Sequence[Index]) -> PlacedRates:
        """What the plans of a grid get at positions ``rows`` of every axis."""
        kinds = {field.name: getattr(self, field.name) for field in fields(self)}
        return PlacedRates(
            **{
                kind: Crossing(take_rows(one.bytes_per_s_per_device, rows), take_rows(one.latency_s, rows))
                for kind, one in kinds.items()
            }
        )


@dataclass(frozen=True)
class Links:
    """The link of every kind of group of a batch of plans."""

    tp: GroupLink
    cp: GroupLink
    shard: GroupLink
    """Ranks that share the states of the dense parameters: dp x cp over the replicas."""
    replicate: GroupLink
    """Ranks that hold the same shard (HSDP); of one without replicas."""
    etp: GroupLink
    ep: GroupLink
    expert_shard: GroupLink
    """Ranks that share the states of the same experts."""
    pp_bytes_per_s: Array
    pp_latency_s: Array
    pp_crosses: Array
    """1 where neighbouring stages sit on different nodes."""


def links(plans: Plans, hardware: HardwareSpec, placed: PlacedRates | None = None) -> Links:
    """The links of ``plans`` on ``hardware``, in the default rank order tp-cp-ep-dp-pp."""
    node, fabric = hardware.node, hardware.fabric
    where = placed or unplaced(hardware)
    stage_devices = plans.tp * plans.cp * plans.dp
    n_devices = stage_devices * plans.pp
    shard = plans.dp * plans.cp / plans.dp_replicate
    crosses = (stage_devices * plans.pp > node.n_devices) & (plans.pp > 1)
    expert_ranks = plans.etp * plans.ep
    neighbours = np.minimum(plans.pp, 2.0)  # of a stage: the one that it sends to
    return Links(
        tp=group_link(plans.tp, number(1.0), n_devices, hardware, where.tp),
        cp=group_link(plans.cp, plans.tp, n_devices, hardware, where.cp),
        shard=group_link(shard, plans.tp, n_devices, hardware, where.shard),
        replicate=group_link(plans.dp_replicate, plans.tp * shard, n_devices, hardware, where.replicate),
        etp=group_link(plans.etp, number(1.0), n_devices, hardware, where.etp),
        ep=group_link(plans.ep, plans.etp, n_devices, hardware, where.ep),
        expert_shard=group_link(
            stage_devices / expert_ranks / plans.dp_replicate, expert_ranks, n_devices, hardware, where.expert_shard
        ),
        pp_bytes_per_s=np.where(
            crosses, where.pp.bytes_per_s_per_device, node_bytes_per_s(neighbours, stage_devices, node, n_devices)
        ),
        pp_latency_s=np.where(crosses, fabric.latency_s + where.pp.latency_s, node.link_latency_s),
        pp_crosses=crosses.astype(np.float64),
    )


def flat(hardware: HardwareSpec) -> Crossing:
    """A group that gets the rate and latency of the NIC, wherever its nodes are."""
    return Crossing(number(hardware.fabric.nic_bytes_per_s_per_device), number(0.0))


def unplaced(hardware: HardwareSpec) -> PlacedRates:
    """Plans of which no nodes are known, or whose nodes make no difference."""
    return PlacedRates(**{field.name: flat(hardware) for field in fields(PlacedRates)})


def job_node_devices_count(n_devices: ArrayLike, node: Node) -> Array:
    """Devices of each node that jobs of ``n_devices`` have: of racks not always all."""
    if node.n_host_devices is None:
        return number(float(node.n_devices))
    counts, where = np.unique(n_devices, return_inverse=True)  # one, in most batches
    shares = np.array([node.devices_of_job(int(count)) for count in counts], dtype=np.float64)
    return np.asarray(shares[where].reshape(np.shape(n_devices)))


def group_link(
    n_ranks: Array, stride: Array, n_devices: Array, hardware: HardwareSpec, where: Crossing | None = None
) -> GroupLink:
    """Where a group of ``n_ranks`` that are ``stride`` apart sits."""
    where = where or flat(hardware)
    node_devices = job_node_devices_count(n_devices, hardware.node)
    most = np.minimum(n_ranks, np.maximum(1.0, np.floor(node_devices / stride)))
    ranks_per_node = n_ranks / np.ceil(n_ranks / most)  # spread evenly over as few nodes as hold them
    span = n_ranks * stride
    straddles = (span <= node_devices) & (np.mod(node_devices, span) != 0) & (n_devices > node_devices) & (n_ranks > 1)
    ranks_per_node = np.where(straddles, n_ranks / 2.0, ranks_per_node)  # some of the groups sit on two nodes
    return GroupLink(
        n_ranks=n_ranks,
        ranks_per_node=ranks_per_node,
        node_bytes_per_s=node_bytes_per_s(ranks_per_node, stride, hardware.node, n_devices),
        device_bytes_per_s=hardware.node.device_bytes_per_s,
        fabric_bytes_per_s=ranks_per_node * where.bytes_per_s_per_device,
        fabric_latency_s=hardware.fabric.latency_s + where.latency_s,
        **_through_the_torus(ranks_per_node, stride, hardware.node, n_devices),
    )


def _through_the_torus(n_ranks: Array, stride: Array, node: Node, n_devices: Array) -> dict[str, Array]:
    """What a group's members on a node that is a torus cross on their way to each other; nothing of other nodes."""
    if node.torus is None:
        return {}
    job = _slice(node.torus, node, n_devices)
    return {
        "steps_in_node": torus.ring_steps_count(n_ranks, job),
        "hops_factor": torus.all_to_all_hops_factor(n_ranks, stride, job),
    }


def _slice(axes: Torus, node: Node, n_devices: Array) -> torus.Slice:
    """The part of a job that shares a torus."""
    inside = np.minimum(n_devices, float(node.n_devices))
    job = torus.Slice(axes.n_axes, inside, np.where(inside >= axes.closed_from, float(axes.n_axes), 0.0), axes.reshapes)
    if axes.closed_axis_from is None:
        return job
    shorter, n_longer = job.doublings
    longer_closes = 2.0 ** (shorter + 1.0) >= axes.closed_axis_from
    return job._replace(closed_axes=np.maximum(job.closed_axes, n_longer * longer_closes))


def node_bytes_per_s(n_ranks: Array, stride: Array, node: Node, n_devices: Array | None = None) -> Array:
    """What ``n_ranks`` on a node that are ``stride`` apart get of one device's links, in a job of ``n_devices``.

    Assumes: groups of neighbours start at multiples of their size, as ranks do; without ``n_devices``, a whole node.
    """
    rate = number(node.link_bytes_per_s)
    if node.topology == "mesh" and node.n_devices > 1:
        rate = rate * np.where(n_ranks > 1, np.maximum(n_ranks - 1.0, 1.0) / (node.n_devices - 1.0), 1.0)
    if node.torus is not None:
        job = number(float(node.n_devices)) if n_devices is None else n_devices
        part = torus.ring_links_fraction(n_ranks, stride, _slice(node.torus, node, job))
        rate = rate * np.where(n_ranks > 1, part, 1.0)
    for group in reversed(node.groups):
        rate = np.where((n_ranks > 1) & (n_ranks * stride <= group.n_devices), group.link_gb_per_s.value * 1e9, rate)
    return rate
