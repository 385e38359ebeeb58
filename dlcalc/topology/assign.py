"""Which node each rank goes to: the placement of a job on a fabric, and how far from the best it can be.

The shortest tour of a ring is known once its nodes are (``rings``), and nodes under one switch are alike, so what is
left to choose is how many nodes of each switch each ring takes. A greedy answer comes first; column generation bounds
every answer from below and improves it; a constraint solver closes what gap remains while time lasts. Work is counted,
not timed, so the same input gives the same output; the clock only ends a search that a slow machine would not finish.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, TypedDict, Unpack

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
from dlcalc.topology.seconds import (
    Traffic,
    fastest_tiers,
    least_s,
    nearest_stages,
    parts_that_fit,
    tier_rates,
    tiers_of,
    time_s,
    unit_nodes,
    whole_nodes,
)
from dlcalc.topology.stages import Rings, ordered

KeepTogether = Literal["none", "domain", "switch"]
MOST_NAMES = 8
"""Nodes that an error names; of the rest only the number."""
MOST_REASONS = 3
"""Why nodes may not be used, most frequent first."""


class Wishes(TypedDict, total=False):
    """How to place, beyond the job itself."""

    objective: Objective
    """hops, if nothing is said."""
    keep_together: KeepTogether
    """What an expert-parallel group larger than a node must stay inside: nothing, if nothing is said."""
    traffic: Traffic | None
    """What the objective "seconds" weighs links by."""
    time_limit_s: float
    """10 s, if nothing is said."""
    say: Callable[[str], None]
    """Told how far the search is."""


def place(fabric: Fabric, job: JobShape, **wishes: Unpack[Wishes]) -> Placement:
    """The best placement found of ``job`` on the free nodes of ``fabric``, with a bound that holds for every placement.

    A tensor-parallel group larger than a node always stays inside one NVLink domain, and a ring below one root.
    """
    nodes = [node for node in fabric.candidates() if node.n_devices >= job.node_devices]
    return _placed(fabric, nodes, job, wishes)


def best_on(fabric: Fabric, names: Collection[str], job: JobShape, **wishes: Unpack[Wishes]) -> Placement:
    """The best placement found of ``job`` on these nodes, whatever their state."""
    wanted = set(names)
    unknown = sorted(wanted - fabric.by_name.keys())
    if unknown:
        raise TopologyError(f"not in the fabric: {_some(unknown)}")
    nodes = [node for node in fabric.nodes if node.name in wanted and node.switches]
    return _placed(fabric, nodes, job, wishes, named=wanted)


def _placed(
    fabric: Fabric,
    nodes: Sequence[FabricNode],
    job: JobShape,
    wishes: Wishes,
    named: Collection[str] | None = None,
) -> Placement:
    objective, say = wishes.get("objective", "hops"), wishes.get("say", lambda text: None)
    rules = together_of(job, wishes.get("keep_together", "none"))
    forest = forest_of(fabric, nodes, rules)
    if forest.n_rings(job.ring_nodes) < job.n_rings:
        raise NoPlacementError(_why_not(fabric, nodes, forest, job, named))
    budget = Budget(wishes.get("time_limit_s", 10.0))
    if objective == "seconds":
        traffic = wishes.get("traffic")
        if traffic is None:
            raise TopologyError("to place by seconds, say the traffic of a step")
        return _by_seconds(fabric, nodes, job, traffic, rules, budget, say)
    found = _by_hops(fabric, nodes, job, forest, budget, say, worst=objective == "worst_ring")
    return _connected(fabric, nodes, found, rules, budget, say)


def _connected(
    fabric: Fabric,
    nodes: Sequence[FabricNode],
    found: Placement,
    rules: Sequence[Together],
    budget: Budget,
    say: Callable[[str], None],
) -> Placement:
    """``found``, or the best below one root if stages sit below several and one has room for the whole job.

    Rings of several roots may be short, but their stages have no known way to each other. The bound stays that of all.
    """
    job = found.job
    if len(roots_of(fabric, found)) < 2:
        return found
    below: dict[str, list[FabricNode]] = {}
    for node in nodes:
        below.setdefault(fabric.chains[node.name][-1], []).append(node)
    forests = [(held, forest_of(fabric, held, rules)) for held in below.values()]
    roomy = [(held, forest) for held, forest in forests if forest.n_rings(job.ring_nodes) >= job.n_rings]
    worst = found.objective == "worst_ring"
    each_s = budget.limit_s / max(len(roomy), 1)
    near = [_by_hops(fabric, held, job, forest, Budget(each_s), say, worst=worst) for held, forest in roomy]
    if not near:
        return found
    best = min(near, key=lambda placement: placement.cost)
    return replace(
        best,
        lower_bound_hops=found.lower_bound_hops,
        lower_bound=found.lower_bound,
        proved_optimal=best.cost <= found.lower_bound,
    )


def roots_of(fabric: Fabric, placement: Placement) -> tuple[str, ...]:
    """Switches with none above them that the nodes of a placement are below."""
    return tuple(dict.fromkeys(fabric.chains[name][-1] for name in placement.node_order))


def _by_hops(
    fabric: Fabric,
    nodes: Sequence[FabricNode],
    job: JobShape,
    forest: Forest,
    budget: Budget,
    say: Callable[[str], None],
    *,
    worst: bool,
) -> Placement:
    least_edges, forests = 0, [forest]
    if not forest.exact:  # its edges are not the fabric's: the bound is that of a job that may tear domains apart
        torn = forest_of(fabric, nodes, [rule for rule in forest.rules if rule.scope != "domain"])
        forests += _under_switches(fabric, nodes, forest, job)
        budget = Budget(budget.limit_s / (1 + len(forests)))
        least_edges = solved(torn, job, Budget(budget.limit_s), worst=worst, say=say).least_edges
    answers = [(one, solved(one, job, Budget(budget.limit_s), worst=worst, say=say)) for one in forests]
    least_edges = answers[0][1].least_edges if forest.exact else least_edges
    tours = [
        (ordered(fabric, named_rings(fabric, one, found.rings), unit_nodes(job)), found.method)
        for one, found in answers
    ]
    placed, method = min(tours, key=lambda tour: _cost(fabric, tour[0], worst=worst))
    cost = float(_cost(fabric, placed, worst=worst))
    least = _hops(job, least_edges, n_rings=1 if worst else job.n_rings)
    return Placement(
        job=job,
        rings=placed,
        objective="worst_ring" if worst else "hops",
        cost_hops=float(_cost(fabric, placed, worst=False)),
        lower_bound_hops=None if worst else least,
        cost=cost,
        lower_bound=least,
        proved_optimal=cost <= least,
        method=method,
    )


def _under_switches(fabric: Fabric, nodes: Sequence[FabricNode], forest: Forest, job: JobShape) -> list[Forest]:
    """The forest whose groups that stay in a domain stay under one closest switch too, if the job fits so.

    Its edges are the fabric's, so where domains hang from several switches it knows which of their nodes are near.
    """
    sizes = [rule.nodes for rule in forest.rules if rule.scope == "domain"]
    found = forest_of(fabric, nodes, [*forest.rules, Together(math.lcm(*sizes), "switch")])
    return [found] if found.n_rings(job.ring_nodes) >= job.n_rings else []


def _cost(fabric: Fabric, rings: Rings, *, worst: bool) -> int:
    each = [tour_hops(fabric, ring) for ring in rings]
    return max(each) if worst else sum(each)


def _by_seconds(
    fabric: Fabric,
    nodes: Sequence[FabricNode],
    job: JobShape,
    traffic: Traffic,
    rules: Sequence[Together],
    budget: Budget,
    say: Callable[[str], None],
) -> Placement:
    """The fastest of several placements, of equally fast ones the one of fewest hops.

    Tried are rings kept as low as they fit on all nodes, and on the smallest part of the fabric that holds the job;
    and each node kept near its pipeline neighbours, with rings across.
    """
    rates = tier_rates(fabric)
    loose = [rule for rule in rules if rule.scope != "domain"] if not forest_of(fabric, nodes, rules).exact else rules
    least = least_s(fabric, nodes, job, traffic, loose)
    parts = [part for part in parts_that_fit(fabric, nodes, job.n_nodes) if len(part) < len(nodes)]
    attempts: list[Callable[[], Rings | None]] = [
        partial(_rings_low, fabric, part, job, traffic, rules, Budget(budget.limit_s / (len(parts) + 2)), say)
        for part in [*parts, nodes]
    ]
    if job.n_rings > 1 and job.ring_nodes > 1:
        share = Budget(budget.limit_s / (len(parts) + 2))
        attempts.append(partial(_stages_low, fabric, nodes, job, traffic, rules, share, say))
    best: tuple[float, float, Rings] | None = None
    for attempt in attempts:
        rings = attempt()
        if rings is None:
            continue
        hops = float(sum(tour_hops(fabric, ring) for ring in rings))
        seconds = time_s(tiers_of(fabric, job, rings), traffic, rates)
        best = min(best or (seconds, hops, rings), (seconds, hops, rings))
        if best[0] <= least or budget.clock_left_s == 0.0:
            break
    if best is None:
        forest = forest_of(fabric, nodes, rules)
        placed = _by_hops(fabric, nodes, job, forest, Budget(budget.clock_left_s), say, worst=False).rings
        hops = float(sum(tour_hops(fabric, ring) for ring in placed))
        best = (time_s(tiers_of(fabric, job, placed), traffic, rates), hops, placed)
    seconds, hops, rings = best
    return Placement(
        job=job,
        rings=rings,
        objective="seconds",
        cost_hops=hops,
        lower_bound_hops=None,
        cost=seconds,
        lower_bound=least,
        proved_optimal=seconds <= least,
        method="tiers",
    )


def _rings_low(
    fabric: Fabric,
    nodes: Sequence[FabricNode],
    job: JobShape,
    traffic: Traffic,
    rules: Sequence[Together],
    budget: Budget,
    say: Callable[[str], None],
) -> Rings | None:
    """Rings, and groups in them, below the lowest tiers they fit; few hops among such."""
    found = next(fastest_tiers(fabric, nodes, job, traffic, rules), None)
    if found is None:
        return None
    _, _, forest = found
    return ordered(fabric, named_rings(fabric, forest, solved(forest, job, budget, say=say).rings), unit_nodes(job))


def _stages_low(
    fabric: Fabric,
    nodes: Sequence[FabricNode],
    job: JobShape,
    traffic: Traffic,
    rules: Sequence[Together],
    budget: Budget,
    say: Callable[[str], None],
) -> Rings | None:
    """Pipeline neighbours, and groups in rings, below the lowest tiers they fit; rings across them."""
    found = nearest_stages(fabric, nodes, job, traffic, rules)
    if found is None:
        return None
    _, forest = found
    whole = replace(job, pp=1, dp=job.dp * job.pp)
    (walk,) = named_rings(fabric, forest, solved(forest, whole, budget, say=say).rings)
    unit = unit_nodes(job)
    blocks = [walk[at : at + unit] for at in range(0, len(walk), unit)]
    return tuple(
        tuple(node for block in blocks[stage :: job.n_rings] for node in block) for stage in range(job.n_rings)
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
    if job.ring_nodes == 1:
        return Bounded(_singles(forest, job.n_rings), 0, "near nodes")
    start = tables(forest, forest.free, job.ring_nodes)
    cheapest = int(start.apexes()[0][0])
    rings = cheapest_first(forest, job.n_rings, job.ring_nodes, start=start)

    def tell(method: str, edges: int, least_edges: int, n_rings: int = job.n_rings) -> None:
        hops, least = _hops(job, edges, n_rings), _hops(job, least_edges, n_rings)
        say(f"{method}: {hops:,.0f} hops, at least {least:,.0f}")

    found = bounded(forest, job.n_rings, job.ring_nodes, budget, start=start, rings=rings, say=tell)
    tell(found.method, found.edges, found.least_edges)
    if job.n_rings == 1 or (found.is_optimal and not worst):
        return found
    each = partial(tell, n_rings=1) if worst else tell
    return improved(forest, found, budget, worst=worst, cheapest_edges=cheapest, say=each)


def _singles(forest: Forest, n_rings: int) -> tuple[Ring, ...]:
    """Rings of one node each, which cost nothing: near each other if one tree has room, else the first."""
    walk = cheapest_first(forest, 1, n_rings)
    counts = walk[0].counts if walk else [(group, forest.free[group]) for group in forest.groups]
    singles = [Ring(((group, 1),), 0, group) for group, count in counts for _ in range(count)]
    return tuple(singles[:n_rings])


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


def named_rings(fabric: Fabric, forest: Forest, rings: Sequence[Ring]) -> Rings:
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


def _why_not(
    fabric: Fabric, nodes: Sequence[FabricNode], forest: Forest, job: JobShape, named: Collection[str] | None
) -> str:
    """Why ``job`` does not fit, with the numbers."""
    rings = "1 ring" if job.n_rings == 1 else f"{job.n_rings:,} rings"
    needs = f"the job needs {job.n_nodes:,} nodes ({rings} of {job.ring_nodes:,})"
    if named is not None:
        said = [f"{len(named):,} are given"]
        without = [node.name for node in fabric.nodes if node.name in named and not node.switches]
    else:
        free = [node for node in fabric.nodes if node.state == "free"]
        said = [f"{len(free):,} of {len(fabric.nodes):,} are free"]
        reasons = Counter(node.why_unusable or "unusable" for node in fabric.nodes if node.state == "unusable")
        said += [f"{count:,} may not be used ({reason})" for reason, count in reasons.most_common(MOST_REASONS)]
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
            unnamed = rule.scope == "domain" and not any(node.domain for node in nodes)
            said.append(
                f"every {rule.nodes} consecutive nodes must share one {rule.scope}"
                + (", and no NVLink domain larger than a node is named" if unnamed else "")
            )
        said.append(f"{forest.n_rings(job.ring_nodes):,} of the {job.n_rings:,} rings fit")
    return f"{needs}; " + ", ".join(said)


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")
