"""Which node each rank goes to: the placement of a job on a fabric, and how far from the best it can be.

The shortest tour of a ring is known once its nodes are (``rings``), and nodes under one switch are alike, so what is
left to choose is how many nodes of each switch each ring takes. A greedy answer comes first; column generation bounds
every answer from below and improves it; a constraint solver closes what gap remains while time lasts. Work is counted,
not timed, so the same input gives the same output; the clock only ends a search that a slow machine would not finish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Literal

from dlcalc.errors import NoPlacementError, TopologyError
from dlcalc.topology.budget import Budget
from dlcalc.topology.columns import Bounded, bounded
from dlcalc.topology.counts import improved
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.forest import Forest, Together, forest_of
from dlcalc.topology.greedy import cheapest_first
from dlcalc.topology.job import JobShape, Objective, Placement
from dlcalc.topology.knapsack import Ring, tables
from dlcalc.topology.rings import depth_first_positions, tour_hops

KeepTogether = Literal["none", "domain", "switch"]
MOST_NAMES = 8
"""Nodes that an error names; of the rest only the number."""


def place(
    fabric: Fabric,
    job: JobShape,
    *,
    objective: Objective = "hops",
    keep_together: KeepTogether = "none",
    time_limit_s: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
) -> Placement:
    """The best placement found of ``job`` on the free nodes of ``fabric``, with a bound that holds for every placement.

    ``keep_together`` says what an expert-parallel group larger than a node must stay inside. A tensor-parallel group
    larger than a node always stays inside one NVLink domain, and a ring below one root.
    """
    nodes = [node for node in fabric.candidates() if node.n_devices >= job.node_devices]
    return _placed(fabric, nodes, job, objective, keep_together, time_limit_s, say)


def best_on(
    fabric: Fabric,
    names: Collection[str],
    job: JobShape,
    *,
    objective: Objective = "hops",
    keep_together: KeepTogether = "none",
    time_limit_s: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
) -> Placement:
    """The best placement found of ``job`` on these nodes, whatever their state."""
    wanted = set(names)
    unknown = sorted(wanted - fabric.by_name.keys())
    if unknown:
        raise TopologyError(f"not in the fabric: {_some(unknown)}")
    nodes = [node for node in fabric.nodes if node.name in wanted and node.switches]
    return _placed(fabric, nodes, job, objective, keep_together, time_limit_s, say, named=len(wanted))


def _placed(
    fabric: Fabric,
    nodes: Sequence[FabricNode],
    job: JobShape,
    objective: Objective,
    keep_together: KeepTogether,
    time_limit_s: float,
    say: Callable[[str], None],
    named: int | None = None,
) -> Placement:
    forest = forest_of(fabric, nodes, together_of(job, keep_together))
    if forest.n_rings(job.ring_nodes) < job.n_rings:
        raise NoPlacementError(_why_not(fabric, nodes, forest, job, named))
    worst = objective == "worst_ring"
    if forest.exact:
        found = solved(forest, job, Budget(time_limit_s), worst=worst, say=say)
    else:  # its edges are not the fabric's: the bound is that of a job that may tear domains apart
        rules = [rule for rule in forest.rules if rule.scope != "domain"]
        torn = solved(forest_of(fabric, nodes, rules), job, Budget(time_limit_s / 2), worst=worst, say=say)
        found = solved(forest, job, Budget(time_limit_s / 2), worst=worst, say=say)
        found = replace(found, least_edges=torn.least_edges)
    placed = named_rings(fabric, forest, found.rings)
    each = [tour_hops(fabric, ring) for ring in placed]
    cost = float(max(each) if worst else sum(each))
    least = _hops(job, found.least_edges, n_rings=1 if worst else job.n_rings)
    return Placement(
        job=job,
        rings=placed,
        objective=objective,
        cost_hops=float(sum(each)),
        lower_bound_hops=None if worst else least,
        cost=cost,
        lower_bound=least,
        proved_optimal=cost <= least,
        method=found.method,
    )


def solved(
    forest: Forest,
    job: JobShape,
    budget: Budget,
    *,
    worst: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Bounded:
    """The best rings that ``budget`` allows; ``least_edges`` is of their sum, or of the largest of them."""
    start = tables(forest, forest.free, job.ring_nodes)
    cheapest = int(start.apexes()[0][0])
    rings = cheapest_first(forest, job.n_rings, job.ring_nodes, start=start)
    if job.ring_nodes == 1:
        return Bounded(tuple(rings), 0, "any nodes")
    found = bounded(forest, job.n_rings, job.ring_nodes, budget, start=start, rings=rings, say=say)
    if job.n_rings == 1 or (found.is_optimal and not worst):
        return found
    return improved(forest, found, budget, worst=worst, cheapest_edges=cheapest, say=say)


def _hops(job: JobShape, edges: int, n_rings: int) -> float:
    """Of so many rings that pay ``edges`` besides one per node."""
    return 2.0 * (n_rings * job.ring_nodes + edges) if job.ring_nodes > 1 else 0.0


def together_of(job: JobShape, keep_together: KeepTogether) -> tuple[Together, ...]:
    """What of a job must stay together."""
    rules = []
    if job.tp_nodes > 1:
        rules.append(Together(whole_nodes(job.tp, job), "domain"))
    if keep_together != "none":
        rules.append(Together(whole_nodes(job.ep * job.etp, job), keep_together))
    return tuple(rules)


def whole_nodes(group_devices: int, job: JobShape) -> int:
    """Fewest consecutive nodes that hold only whole groups of ``group_devices``; 1 where stages share a node."""
    if job.stage_devices <= job.node_devices:
        return 1
    return math.lcm(group_devices, job.node_devices) // job.node_devices


def named_rings(fabric: Fabric, forest: Forest, rings: Sequence[Ring]) -> tuple[tuple[str, ...], ...]:
    """The nodes of each ring in ring order, rings in the order in which a walk through the fabric meets them."""
    positions = depth_first_positions(fabric)
    used = [0] * len(forest)
    found = []
    for ring in sorted(rings, key=lambda ring: ring.counts):
        nodes: list[str] = []
        for group, count in ring.counts:
            nodes += forest.members[group][used[group] : used[group] + count]
            used[group] += count
        found.append(tuple(nodes))
    return tuple(sorted(found, key=lambda nodes: positions[nodes[0]]))


def _why_not(fabric: Fabric, nodes: Sequence[FabricNode], forest: Forest, job: JobShape, named: int | None) -> str:
    """Why ``job`` does not fit, with the numbers."""
    rings = "1 ring" if job.n_rings == 1 else f"{job.n_rings:,} rings"
    needs = f"the job needs {job.n_nodes:,} nodes ({rings} of {job.ring_nodes:,})"
    if named is not None:
        said = [f"{named:,} are given"]
        without = [node.name for node in fabric.nodes if not node.switches]
    else:
        free = [node for node in fabric.nodes if node.state == "free"]
        said = [f"{len(free):,} of {len(fabric.nodes):,} are free"]
        without = [node.name for node in fabric.without_data()]
        small = [node.name for node in free if node.n_devices < job.node_devices]
        if small:
            said.append(f"{len(small):,} of them have fewer than {job.node_devices} devices ({_some(small)})")
        if without:
            said.append(f"{len(without):,} of them have no topology data ({_some(without)})")
    connected: dict[str, int] = {}
    for node in nodes:
        root = fabric.chains[node.name][-1]
        connected[root] = connected.get(root, 0) + 1
    if len(nodes) >= job.n_nodes or len(connected) > 1:
        said.append(f"the largest connected group has {max(connected.values(), default=0):,}")
    if len(nodes) >= job.n_nodes:
        for rule in (rule for rule in forest.rules if rule.nodes > 1):
            said.append(f"every {rule.nodes} consecutive nodes must share one {rule.scope}")
        said.append(f"{forest.n_rings(job.ring_nodes):,} of the {job.n_rings:,} rings fit")
    return f"{needs}; " + ", ".join(said)


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")
