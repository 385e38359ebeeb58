"""Placement by time: what a step spends on links, from the plan's traffic and the bandwidth of each tier.

A group moves at the rate of the slowest link it crosses, which is the tier of the switch where all its nodes meet, and
a step waits for the slowest group of each kind. So the time of a placement is, for each kind, its bytes over the rate
of the highest tier at which any of its groups meets, and these are added: kinds are not taken to hide each other.
Only tiers count, so the best possible time is found by trying every choice of tiers, cheapest first: whether rings fit
below one tier, context- and expert-parallel groups inside them below others, is exact arithmetic on counts.
Ignores: latency, several groups on one link beyond the oversubscription that the rates already hold, and overlap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from dlcalc.errors import TopologyError
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.forest import Forest, Scope, Together, forest_of
from dlcalc.topology.job import JobShape


@dataclass(frozen=True)
class Traffic:
    """Bytes that a node sends per step over the fabric, by kind of group."""

    dp_bytes: float = 0.0
    """Gradients and parameters, around the ring of a stage (data-parallel ranks times context-parallel ones)."""
    cp_bytes: float = 0.0
    """Keys and values, around a context-parallel group."""
    ep_bytes: float = 0.0
    """Tokens, all to all in an expert-parallel group."""
    pp_bytes: float = 0.0
    """Activations and their gradients, to the neighbouring stages."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise TopologyError(f"{name} = {getattr(self, name)} must be at least 0 and finite")


@dataclass(frozen=True)
class Tiers:
    """The highest tier at which groups of each kind may meet; -1: inside a node."""

    dp: int = -1
    cp: int = -1
    ep: int = -1
    pp: int = -1


def whole_nodes(group_devices: int, job: JobShape) -> int:
    """Fewest consecutive nodes that hold only whole groups of ``group_devices``; 1 where stages share a node."""
    if job.stage_devices <= job.node_devices:
        return 1
    return math.lcm(group_devices, job.node_devices) // job.node_devices


def unit_nodes(job: JobShape) -> int:
    """Consecutive nodes that hold only whole groups of every kind but the data-parallel ones."""
    sizes = (job.tp, job.tp * job.cp, job.ep * job.etp)
    return math.lcm(*(whole_nodes(size, job) for size in sizes))


def tier_rates(fabric: Fabric) -> tuple[float, ...]:
    """Bytes/s per node of traffic that meets at each tier; what goes higher passes lower tiers too, so none is faster.

    One more for nodes that meet at no known switch, as fast as the highest tier.
    """
    rates: list[float] = []
    for tier in range(fabric.n_tiers):
        rate = fabric.rate_bytes_per_s_per_node(tier)
        if rate is None or rate <= 0:
            raise TopologyError(
                f"the bandwidth of tier {tier} is not known, so seconds cannot be told; say bytes/s per node of all "
                f"{fabric.n_tiers} tiers, or place by hops"
            )
        rates.append(min([rate, *rates[-1:]]))
    return (*rates, *rates[-1:])


def tiers_of(fabric: Fabric, job: JobShape, rings: Sequence[Sequence[str]]) -> Tiers:
    """The highest tier at which a group of each kind meets, as placed."""
    cp_nodes, ep_nodes = whole_nodes(job.tp * job.cp, job), whole_nodes(job.ep * job.etp, job)
    return Tiers(
        dp=max(_meet(fabric, ring) for ring in rings),
        cp=max(_meet(fabric, block) for ring in rings for block in _blocks(ring, cp_nodes)),
        ep=max(_meet(fabric, block) for ring in rings for block in _blocks(ring, ep_nodes)),
        pp=max(
            (
                _meet(fabric, pair)
                for ring, ahead in itertools.pairwise(rings)
                for pair in zip(ring, ahead, strict=True)
            ),
            default=-1,
        ),
    )


def time_s(tiers: Tiers, traffic: Traffic, rates: Sequence[float]) -> float:
    """Time of a step's traffic whose slowest groups meet at ``tiers``."""
    return sum(
        size_bytes / rates[tier] if tier >= 0 else 0.0
        for size_bytes, tier in (
            (traffic.dp_bytes, tiers.dp),
            (traffic.cp_bytes, tiers.cp),
            (traffic.ep_bytes, tiers.ep),
            (traffic.pp_bytes, tiers.pp),
        )
    )


def fastest_tiers(
    fabric: Fabric,
    nodes: Sequence[FabricNode],
    job: JobShape,
    traffic: Traffic,
    rules: Sequence[Together],
) -> Iterator[tuple[float, Tiers, Forest]]:
    """Tiers of rings and of the groups in them that the nodes allow, fastest first, with the forest that keeps to them.

    Pipeline neighbours are left aside (``pp`` is -1): see ``least_s``.
    """
    rates = tier_rates(fabric)
    cp_nodes, ep_nodes = whole_nodes(job.tp * job.cp, job), whole_nodes(job.ep * job.etp, job)
    levels = _levels(rates[:-1])
    choices = [
        Tiers(dp=dp, cp=cp, ep=ep)
        for dp in (levels if job.ring_nodes > 1 else [-1])
        for cp in (levels if cp_nodes > 1 else [-1])
        for ep in (levels if ep_nodes > 1 else [-1])
        if max(cp, ep) <= dp
    ]
    for tiers in sorted(choices, key=lambda tiers: (time_s(tiers, traffic, rates), -tiers.dp, -tiers.ep, -tiers.cp)):
        scopes: list[tuple[int, Scope]] = [(cp_nodes, tiers.cp), (ep_nodes, tiers.ep)]
        inside = [Together(size, scope) for size, scope in scopes if size > 1]
        forest = forest_of(fabric, nodes, [*rules, *inside], ring_tier=tiers.dp if tiers.dp >= 0 else None)
        if forest.n_rings(job.ring_nodes) >= job.n_rings:
            yield time_s(tiers, traffic, rates), tiers, forest


def nearest_stages(
    fabric: Fabric, nodes: Sequence[FabricNode], job: JobShape, traffic: Traffic, rules: Sequence[Together]
) -> tuple[Tiers, Forest] | None:
    """The fastest tiers of neighbouring stages and of groups inside rings, if rings themselves may go anywhere.

    In the forest the whole job is one ring, whose nodes come in the units that hold whole groups; of every
    ``n_rings`` units one is of each stage, and these share a switch.
    """
    rates = tier_rates(fabric)
    cp_nodes, ep_nodes = whole_nodes(job.tp * job.cp, job), whole_nodes(job.ep * job.etp, job)
    levels = _levels(rates[:-1])
    choices = [
        Tiers(cp=cp, ep=ep, pp=pp)
        for pp in levels
        for cp in (levels if cp_nodes > 1 else [-1])
        for ep in (levels if ep_nodes > 1 else [-1])
    ]
    for tiers in sorted(choices, key=lambda tiers: (time_s(tiers, traffic, rates), -tiers.pp, -tiers.ep, -tiers.cp)):
        scopes = [(cp_nodes, tiers.cp), (ep_nodes, tiers.ep), (job.n_rings * unit_nodes(job), tiers.pp)]
        inside = [Together(size, tier) for size, tier in scopes if size > 1]
        forest = forest_of(fabric, nodes, [*rules, *inside])
        if forest.n_rings(job.n_nodes) >= 1:
            return tiers, forest
    return None


def least_s(
    fabric: Fabric, nodes: Sequence[FabricNode], job: JobShape, traffic: Traffic, rules: Sequence[Together]
) -> float:
    """No placement's traffic takes less; infinite where rings do not fit at all.

    What neighbouring stages need: each node of a ring below one switch with its like in all other rings, and with the
    groups of these that stay as low. If both rings and neighbours stay below switches of some tier, so does the whole
    job, since sharing a switch of that tier carries over from node to node.
    """
    rates = tier_rates(fabric)
    job_tier = next(iter(_fitting(fabric, nodes, job.n_nodes)), fabric.n_tiers)
    levels = [-1] if job.n_rings == 1 else [*_levels(rates[:-1]), fabric.n_tiers]
    lowest = next(level for level in levels if _stages_fit(fabric, nodes, job, rules, Tiers(pp=level)))
    least = math.inf
    for seconds, tiers, _ in fastest_tiers(fabric, nodes, job, traffic, rules):
        if seconds + time_s(Tiers(pp=lowest), traffic, rates) >= least:
            break
        floor = max(lowest, -1 if tiers.dp >= job_tier or job.n_rings == 1 else job_tier)
        for level in levels:
            together = replace(tiers, pp=level)
            if level >= floor and _stages_fit(fabric, nodes, job, rules, together):
                least = min(least, time_s(together, traffic, rates))
                break
    return least


def _stages_fit(
    fabric: Fabric, nodes: Sequence[FabricNode], job: JobShape, rules: Sequence[Together], tiers: Tiers
) -> bool:
    """Whether there are nodes enough for all neighbours to meet at ``tiers.pp``, and groups as low as they are to."""
    if tiers.pp < 0 or tiers.pp >= fabric.n_tiers:
        return True
    groups = [(whole_nodes(job.tp * job.cp, job), tiers.cp), (whole_nodes(job.ep * job.etp, job), tiers.ep)]
    groups = [(size, tier) for size, tier in groups if tier >= 0]
    size = job.n_rings * math.lcm(*(size for size, tier in groups if tier <= tiers.pp))
    inside = [Together(size, tier) for size, tier in [*groups, (size, tiers.pp)]]
    forest = forest_of(fabric, nodes, [*rules, *inside])
    usable = forest.usable(forest.free)
    return sum(usable[root] for root, above in enumerate(forest.parent) if above < 0) >= job.n_nodes


def parts_that_fit(fabric: Fabric, nodes: Sequence[FabricNode], n_nodes: int) -> list[list[FabricNode]]:
    """Of each tier the fewest nodes below one of its switches that still are ``n_nodes``, lowest tiers first."""
    return list(_fitting(fabric, nodes, n_nodes).values())


def _fitting(fabric: Fabric, nodes: Sequence[FabricNode], n_nodes: int) -> dict[int, list[FabricNode]]:
    under: dict[str, list[FabricNode]] = {}
    for node in nodes:
        for switch in fabric.chains[node.name]:
            under.setdefault(switch, []).append(node)
    found: dict[int, list[FabricNode]] = {}
    for switch, held in under.items():
        tier = fabric.tier[switch]
        if len(held) >= n_nodes and (tier not in found or len(held) < len(found[tier])):
            found[tier] = held
    return dict(sorted(found.items()))


def _levels(rates: Sequence[float]) -> list[int]:
    """The highest tier of each rate: below it nothing is gained by keeping lower."""
    return [tier for tier, rate in enumerate(rates) if tier + 1 == len(rates) or rates[tier + 1] < rate]


def _blocks(ring: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (ring[at : at + size] for at in range(0, len(ring), size))


def _meet(fabric: Fabric, names: Sequence[str]) -> int:
    """Tier of the closest switch that all these nodes are under; one above all where there is none."""
    if len(names) < 2:
        return -1
    first = fabric.chains[names[0]]
    shared = len(first)
    for name in names[1:]:
        chain = fabric.chains[name]
        common = 0
        while common < min(shared, len(chain)) and first[-1 - common] == chain[-1 - common]:
            common += 1
        shared = common
    return fabric.tier[first[-shared]] if shared else fabric.n_tiers
