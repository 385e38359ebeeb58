"""What a placed plan's groups get between nodes: the rate and the latency of the switches that they really cross.

The share of an uplink is a node's by right: traffic that meets at tier ``t`` has ``rate(t)`` per node under the switch,
when every node there talks at once, whoever it works for. A group lends the shares of all its members to those that
talk:

    ring         of ``m`` members under a switch, in ring order one talks to the outside, at ``m`` times the rate; where
                 the order leaves the switch ``c`` times, each gets ``m / c``
    all-to-all   every member sends ``(n - m) / (n - 1)`` of what leaves its node beyond the switch, at the rate
    neighbours   of consecutive stages talk all at once: each has the rate of its own

So a ring that fills racks runs at the speed of the NIC on an uplink that is oversubscribed as many times as the ring
has nodes in a rack, and a ring with one node in each rack does not. Never more than the NIC; a rate that nobody knows
is the NIC's. Of all groups of a kind the slowest sets the pace.

Assumes: rings in rank order, as trainers build them; other jobs use their share of every uplink. Ignores: collisions of
flows on parallel links, trees, and two kinds of group that talk at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.placement import Crossing, PlacedRates
from dlcalc.costmodel.plans import Array, number
from dlcalc.errors import TopologyError
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.job import JobShape, Placement

Index = NDArray[np.int64]

TIER_LATENCY_S = 1e-6
"""Of each tier beyond the closest: one switch more on the way up and one on the way down. An assumption: makers of
data-centre switches quote 0.1 to 0.9 us for a passage, and 20 m of fibre take 0.1 us."""


@dataclass(frozen=True)
class Reach:
    """The slowest group of one kind: what it gets, and how far it goes."""

    bytes_per_s_per_node: float
    """Infinite where nothing slower than the NIC is known to be in the way."""
    latency_s: float
    tier: int
    """Of the highest switch that any group of the kind crosses; -1 where none leaves its node."""


WITHIN_A_NODE = Reach(np.inf, 0.0, -1)


@dataclass(frozen=True)
class Ways:
    """The nodes of a placement as rows: what each is under, root first, and what leads there."""

    unit: Index
    """Node x level: the switch at that distance from the root, then the node itself."""
    tier: Index
    """Of the switch above that unit; -1 where there is none, or none more."""
    bytes_per_s_per_node: Array
    """Of traffic that leaves the unit upwards; infinite where nothing is known."""
    n_tiers: int


def ways_of(fabric: Fabric, order: Sequence[str]) -> Ways:
    """What the nodes in ``order`` are under."""
    chains = [tuple(reversed(fabric.chains[name])) for name in order]
    number = {switch: position for position, switch in enumerate(dict.fromkeys(s for chain in chains for s in chain))}
    depth = max((len(chain) for chain in chains), default=0)
    unit = np.empty((len(order), depth + 1), np.int64)
    tier = np.full((len(order), depth + 1), -1, np.int64)
    for node, chain in enumerate(chains):
        unit[node, : len(chain)] = [number[switch] for switch in chain]
        unit[node, len(chain) :] = len(number) + node
        tier[node, 1 : len(chain) + 1] = [fabric.tier[switch] for switch in chain]
    known = [fabric.rate_bytes_per_s_per_node(position) for position in range(fabric.n_tiers)]
    rates = np.array([np.inf if rate is None else rate for rate in known] + [np.inf])  # the last one is that of -1
    return Ways(unit=unit, tier=tier, bytes_per_s_per_node=rates[tier], n_tiers=fabric.n_tiers)


def groups_of(n_ranks: int, stride: int, job: JobShape) -> Index:
    """Node ranks of the members of every group of ``n_ranks`` devices that are ``stride`` apart.

    Of neighbours that sit on the same nodes only the first one's.
    """
    node = job.node_devices
    alike = node if stride % node == 0 else stride if node % stride == 0 else 1  # neighbours whose groups share nodes
    devices = np.arange(job.n_devices).reshape(-1, n_ranks, stride)[:, :, ::alike]
    return devices.swapaxes(1, 2).reshape(-1, n_ranks) // node


def ring_reach(ways: Ways, groups: Index) -> Reach:
    """Of rings in rank order; their latency is that of a step on average."""
    if _stay_at_home(groups):
        return WITHIN_A_NODE
    following = np.roll(groups, -1, axis=1)
    return _reach(ways, groups, _ring_factor, _mean_latency_s(ways, groups, following))


def all_to_all_reach(ways: Ways, groups: Index) -> Reach:
    """Of groups of which every member talks to every other."""
    if _stay_at_home(groups):
        return WITHIN_A_NODE
    farthest = _meeting_tier(ways, groups, np.roll(groups, -1, axis=1)).max(initial=0)
    return _reach(ways, groups, _all_to_all_factor, farthest * TIER_LATENCY_S)


def _stay_at_home(groups: Index) -> bool:
    """Whether no group leaves its node."""
    return bool(np.all(groups[:, :1] == groups))


def neighbour_reach(ways: Ways, a: Index, b: Index) -> Reach:
    """Of pairs that talk all at once."""
    apart = a != b
    a, b = a[apart], b[apart]
    if not len(a):
        return WITHIN_A_NODE
    leaves = ways.unit[a] != ways.unit[b]
    slowest = np.min(np.where(leaves, ways.bytes_per_s_per_node[a], np.inf))
    tier = int(_meeting_tier(ways, a, b).max())
    return Reach(float(slowest), tier * TIER_LATENCY_S, tier)


@dataclass(frozen=True)
class PlacedGroups:
    """The groups of a placed mesh on its nodes; what they reach is worked out once, when it is asked for."""

    job: JobShape
    ways: Ways
    known: dict[tuple[str, int], tuple[Reach, ...]] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, fabric: Fabric, placement: Placement) -> Self:
        return cls(placement.job, ways_of(fabric, placement.node_order))

    @cached_property
    def mesh(self) -> dict[str, Reach]:
        """Of the kinds that the mesh alone decides."""
        return mesh_reaches(self.ways, self.job)

    def states(self, copies: int) -> tuple[Reach, ...]:
        """As :func:`state_reaches` has them."""
        return self._once(("states", copies), lambda: state_reaches(self.ways, self.job, copies))

    def stages(self, *, wraps: bool) -> Reach:
        """Of neighbouring stages."""
        return self._once(("stages", wraps), lambda: (stage_reach(self.ways, self.job, wraps=wraps),))[0]

    def _once(self, key: tuple[str, int], of: Callable[[], tuple[Reach, ...]]) -> tuple[Reach, ...]:
        if key not in self.known:
            self.known[key] = of()
        return self.known[key]

    def rates(self, hardware: HardwareSpec, *, dp_replicate: Array, vpp: Array) -> PlacedRates:
        """Rates and latencies of plans of this mesh, for every ``dp_replicate`` and ``vpp`` among them.

        Both are arrays of any shape, as a batch of plans has them. What shares or copies states depends on the one,
        and whether the last stage talks to the first on the other.
        """
        job, node = self.job, hardware.node
        if job.node_devices != node.devices_of_job(job.n_devices):
            raise TopologyError(
                f"placed on nodes of {job.node_devices} devices, but {hardware.name} has {node.n_devices}"
            )
        copies, wraps = np.asarray(dp_replicate), (np.asarray(vpp) > 1).astype(np.float64)
        states = {float(n): self.states(int(n)) for n in np.unique(copies)}
        sends = {float(wrap): self.stages(wraps=bool(wrap)) for wrap in np.unique(wraps)}

        def crossing(values: Array, found: Mapping[float, Reach]) -> Crossing:
            """Of the slowest group, at each of ``values``."""
            nic = hardware.fabric.nic_bytes_per_s_per_device
            known = np.array(sorted(found))
            place = np.searchsorted(known, values)
            reaches = [found[value] for value in known]
            rate = np.array([min(nic, reach.bytes_per_s_per_node / job.node_devices) for reach in reaches])
            return Crossing(rate[place], np.array([reach.latency_s for reach in reaches])[place])

        return PlacedRates(
            **{kind: crossing(number(0.0), {0.0: reach}) for kind, reach in self.mesh.items()},
            shard=crossing(copies, {n: shard for n, (shard, _, _) in states.items()}),
            replicate=crossing(copies, {n: copy for n, (_, copy, _) in states.items()}),
            expert_shard=crossing(copies, {n: experts for n, (_, _, experts) in states.items()}),
            pp=crossing(wraps, sends),
        )


def placed_rates(
    fabric: Fabric, placement: Placement, hardware: HardwareSpec, *, dp_replicate: Array, vpp: Array
) -> PlacedRates:
    """Rates and latencies of plans of a placed mesh, as :meth:`PlacedGroups.rates` gives them."""
    return PlacedGroups.of(fabric, placement).rates(hardware, dp_replicate=dp_replicate, vpp=vpp)


def mesh_reaches(ways: Ways, job: JobShape) -> dict[str, Reach]:
    """Of the kinds of group that the mesh alone decides."""
    return {
        "tp": ring_reach(ways, groups_of(job.tp, 1, job)),
        "cp": ring_reach(ways, groups_of(job.cp, job.tp, job)),
        "etp": ring_reach(ways, groups_of(job.etp, 1, job)),
        "ep": all_to_all_reach(ways, groups_of(job.ep, job.etp, job)),
    }


def stage_reach(ways: Ways, job: JobShape, *, wraps: bool) -> Reach:
    """Of neighbouring stages; with several chunks per device the last stage is the first one's neighbour."""
    device = np.arange(job.n_devices if wraps else job.n_devices - job.stage_devices)
    following = (device + job.stage_devices) % job.n_devices
    return neighbour_reach(ways, device // job.node_devices, following // job.node_devices)


def state_reaches(ways: Ways, job: JobShape, copies: int) -> tuple[Reach, Reach, Reach]:
    """Of ranks that share the dense states, of those that hold copies of them, and of those that share experts'."""
    ranks, experts = job.dp * job.cp, job.ep * job.etp
    if ranks % copies or job.stage_devices % (experts * copies):  # no plan that can run
        return WITHIN_A_NODE, WITHIN_A_NODE, WITHIN_A_NODE
    shard = ranks // copies
    return (
        ring_reach(ways, groups_of(shard, job.tp, job)),
        ring_reach(ways, groups_of(copies, job.tp * shard, job)),
        ring_reach(ways, groups_of(job.stage_devices // (experts * copies), experts, job)),
    )


Factor = Callable[[Index, Index, Index], Array]
"""From members of a group under a unit, members in all, and how often the ring leaves the unit: times the rate."""


def _ring_factor(under: Index, members: Index, left: Index) -> Array:
    return np.where(left > 0, under / np.maximum(left, 1), np.inf)


def _all_to_all_factor(under: Index, members: Index, left: Index) -> Array:
    return np.where(under < members, (members - 1) / np.maximum(members - under, 1), np.inf)


def _reach(ways: Ways, groups: Index, factor: Factor, latency_s: float) -> Reach:
    """The slowest passage out of any unit that some but not all of a group are under."""
    following = np.roll(groups, -1, axis=1)
    first = groups != np.roll(groups, 1, axis=1)  # members of one node are neighbours in rank order
    first[:, 0] |= ~first.any(axis=1)  # of a group that stays on its node
    members = first.sum(axis=1, keepdims=True)
    row = np.arange(len(groups))[:, None] * (int(ways.unit.max()) + 1)
    slowest = np.inf
    for level in range(1, ways.unit.shape[1]):
        unit = ways.unit[groups, level]
        _, place = np.unique(row + unit, return_inverse=True)
        place = place.reshape(groups.shape)
        under = np.bincount(place.ravel(), weights=first.ravel()).astype(np.int64)[place]
        left = np.bincount(place.ravel(), weights=(unit != ways.unit[following, level]).ravel()).astype(np.int64)[place]
        rates = ways.bytes_per_s_per_node[groups, level] * factor(under, members, left)
        slowest = min(slowest, float(rates.min()))
    tier = int(_meeting_tier(ways, groups, following).max())
    return Reach(slowest, latency_s, tier)


def _mean_latency_s(ways: Ways, groups: Index, following: Index) -> float:
    """Of the steps of a ring that leave a node, on average; of the slowest ring."""
    leaves = groups != following
    tiers = np.where(leaves, _meeting_tier(ways, groups, following), 0)
    return float(np.max(tiers.sum(axis=1) / np.maximum(leaves.sum(axis=1), 1), initial=0.0)) * TIER_LATENCY_S


def _meeting_tier(ways: Ways, a: Index, b: Index) -> Index:
    """Tier of the closest switch above both; one more than there is for nodes of different roots."""
    differs = ways.unit[a] != ways.unit[b]
    level = np.argmax(differs, axis=-1)  # the first, from the root, at which they part
    tier = np.take_along_axis(ways.tier[a], level[..., None], axis=-1)[..., 0]
    return np.where(differs.any(axis=-1), np.where(level == 0, ways.n_tiers, tier), -1).astype(np.int64)
