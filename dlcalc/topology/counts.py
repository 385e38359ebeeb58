"""Rings as counts per switch, in a constraint solver: some rings of a placement are taken up and laid again, better.

Whole placements of small jobs are proved optimal this way. Of large ones two, three or four rings at a time are laid
again on their own nodes and all free ones, nearest rings first, until nothing improves or the budget is spent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcalc.topology.budget import Budget
from dlcalc.topology.columns import Bounded, Say, edges_of, silent
from dlcalc.topology.forest import Forest
from dlcalc.topology.knapsack import Ring, ring_of

WHOLE_CELLS = 600
"""Rings times vertices up to which the whole placement is worth trying first."""
LAST_CELLS = 6000
"""The same, for trying it last, with what budget is left."""
WHOLE_SHARE = 0.4
NEIGHBOURHOOD_S = {2: 0.45, 3: 1.2, 4: 2.4}
"""Of work, by how many rings are laid again."""
NEAR_GROUPS = 256
"""In forests of more groups, rings are laid again only under switches next to their own."""
WORK_PER_COUNTED = 4.5
"""Seconds of work that one unit of the solver's deterministic time stands for."""
CELL_S = 1e-4
"""Of building the problem, per ring and vertex."""
CLOCK_PER_COUNTED = 3.0
"""How much longer than counted the clock lets one solve run."""


@dataclass(frozen=True)
class Answer:
    """What the solver says of one problem."""

    rings: tuple[Ring, ...] | None
    """Better ones; None where there are none, or none were found."""
    least: float
    """No rings are below."""
    work_s: float


def improved(
    forest: Forest,
    found: Bounded,
    budget: Budget,
    *,
    worst: bool = False,
    cheapest_edges: int = 0,
    say: Say = silent,
) -> Bounded:
    """``found`` made better; with ``worst`` by the edges of the largest ring first, and then by their sum.

    ``least_edges`` is then of the largest ring, and ``cheapest_edges`` of the cheapest single one is asked for.
    """
    try:
        from ortools.sat.python import cp_model
    except ImportError:
        return found
    rings = found.rings
    least = largest_at_least(found, cheapest_edges) if worst else found.least_edges
    cells = len(rings) * len(forest)

    def cost(some: Sequence[Ring]) -> int:
        return max(ring.edges for ring in some) if worst else edges_of(some)

    def is_done() -> bool:
        return budget.is_spent or (cost(rings) <= least and edges_of(rings) <= found.least_edges)

    def whole(limit_s: float) -> None:
        nonlocal rings, least
        answer = solve(cp_model, forest, forest.free, rings, least, limit_s, budget.clock_left_s, worst=worst)
        budget.spend(answer.work_s)
        rings = rings if answer.rings is None else answer.rings
        least = max(least, min(math.ceil(answer.least - 1e-6), cost(rings)))

    if cells <= WHOLE_CELLS and not is_done():
        whole(WHOLE_SHARE * budget.left_s)
    failed: set[tuple[tuple[tuple[int, int], ...], ...]] = set()
    better = True
    while better and not is_done():
        better = False
        for chosen in _neighbourhoods(forest, rings, worst=worst and cost(rings) > least):
            again = tuple(rings[at] for at in chosen)
            problem = tuple(ring.counts for ring in again)
            if problem in failed:
                continue
            kept = [ring for at, ring in enumerate(rings) if at not in chosen]
            free = _left(forest, kept)
            if len(forest.groups) > NEAR_GROUPS:
                free = _near(forest, free, again)
            floor = least if worst else max(0, least - edges_of(kept))
            limit_s = min(NEIGHBOURHOOD_S[len(chosen)], budget.left_s)
            answer = solve(cp_model, forest, free, again, floor, limit_s, budget.clock_left_s, worst=worst)
            budget.spend(answer.work_s)
            if answer.rings is not None:
                laid = dict(zip(chosen, answer.rings, strict=True))
                rings = tuple(laid.get(at, ring) for at, ring in enumerate(rings))
                better = True
                say("counts", cost(rings), least)
                break
            failed.add(problem)
            if budget.is_spent:
                break
        else:
            failed.clear()
    if cells <= LAST_CELLS and not is_done():
        whole(budget.left_s)
    return Bounded(rings, min(least, cost(rings)), f"{found.method} and counts")


def largest_at_least(found: Bounded, cheapest_edges: int) -> int:
    """Edges of the largest ring of any placement: no fewer than the cheapest ring's, nor than the mean."""
    return max(cheapest_edges, -(-found.least_edges // len(found.rings)))


def _left(forest: Forest, rings: Sequence[Ring]) -> list[int]:
    """Free nodes of each group that these rings leave."""
    free = list(forest.free)
    for ring in rings:
        for group, count in ring.counts:
            free[group] -= count
    return free


def _near(forest: Forest, free: Sequence[int], rings: Sequence[Ring]) -> list[int]:
    """``free`` without groups that share no parent with a group of these rings."""
    parents = {forest.parent[group] for ring in rings for group, _ in ring.counts}
    return [nodes if forest.parent[vertex] in parents else 0 for vertex, nodes in enumerate(free)]


def _neighbourhoods(forest: Forest, rings: Sequence[Ring], *, worst: bool) -> Iterator[tuple[int, ...]]:
    """Which rings to lay again: near pairs first, then each ring with its nearest two, and three."""
    apart = ring_distances(forest, rings)
    n_rings = len(rings)
    pairs = sorted(itertools.combinations(range(n_rings), 2), key=lambda pair: (apart[pair], pair))
    most = max(ring.edges for ring in rings)
    if worst:
        pairs = [pair for pair in pairs if any(rings[at].edges == most for at in pair)]
    yield from pairs
    for size in (3, 4):
        if n_rings >= size:
            seen = set()
            for at in range(n_rings):
                near = sorted(range(n_rings), key=lambda other: (other != at, apart[at, other], other))
                chosen = tuple(sorted(near[:size]))
                if chosen not in seen and not (worst and all(rings[ring].edges < most for ring in chosen)):
                    seen.add(chosen)
                    yield chosen


def ring_distances(forest: Forest, rings: Sequence[Ring]) -> Any:  # noqa: ANN401
    """Edges that the nodes of one ring must move over, at least, to become those of another; one row a ring."""
    held = np.zeros((len(forest), len(rings)))
    for at, ring in enumerate(rings):
        for group, count in ring.counts:
            held[group, at] = count
    apart = np.zeros((len(rings), len(rings)))
    for vertex, above in enumerate(forest.parent):
        if above >= 0:
            held[above] += held[vertex]
        if held[vertex].any():
            apart += max(1, forest.edge[vertex]) * np.abs(held[vertex][:, None] - held[vertex][None, :])
    return apart


def solve(
    cp_model: Any,  # noqa: ANN401
    forest: Forest,
    free: Sequence[int],
    rings: Sequence[Ring],
    floor: int,
    limit_s: float,
    clock_s: float,
    *,
    worst: bool,
) -> Answer:
    """Rings on ``free`` nodes that are better than ``rings``, of which none are below ``floor``."""
    model = cp_model.CpModel()
    usable = forest.usable(free)
    ring_nodes = sum(count for _, count in rings[0].counts)
    laid_out = [_lay(model, forest, usable, ring, ring_nodes) for ring in rings]
    for group in forest.groups:
        taken = [count[group] for count, _ in laid_out if group in count]
        if taken:
            model.Add(sum(taken) <= free[group])
    total = sum(edges for _, edges in laid_out)
    now, most = edges_of(rings), max(ring.edges for ring in rings)
    if worst:
        largest = model.NewIntVar(floor, most, "")
        for _, edges in laid_out:
            model.Add(edges <= largest)
        weight = len(rings) * most + 1
        model.Add(weight * largest + total < weight * most + now)
        model.Minimize(weight * largest + total)
    else:
        weight = 1
        model.Add(total >= floor)
        model.Add(total < now)
        model.Minimize(total)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = max(limit_s / WORK_PER_COUNTED, 1e-3)
    solver.parameters.max_time_in_seconds = max(min(CLOCK_PER_COUNTED * limit_s, clock_s), 1e-3)
    status = solver.Solve(model)
    work_s = WORK_PER_COUNTED * float(solver.ResponseProto().deterministic_time) + CELL_S * len(rings) * len(forest)
    if status == cp_model.INFEASIBLE:
        return Answer(None, float(most if worst else now), work_s)
    least = math.floor(solver.BestObjectiveBound() / weight + 1e-9) if worst else solver.BestObjectiveBound()
    if status not in {cp_model.OPTIMAL, cp_model.FEASIBLE}:
        return Answer(None, least, work_s)
    laid = []
    for count, _ in laid_out:
        held = {group: solver.Value(count[group]) for group in forest.groups if group in count}
        held = {group: nodes for group, nodes in held.items() if nodes}
        laid.append(ring_of(forest, held))
    return Answer(tuple(laid), least, work_s)


def _lay(
    model: Any,  # noqa: ANN401
    forest: Forest,
    usable: Sequence[int],
    ring: Ring,
    ring_nodes: int,
) -> tuple[dict[int, Any], Any]:
    """Variables of one ring: its nodes under each vertex, and the edges it pays. Hints are where it lies now."""
    held = forest.held(dict(ring.counts))
    nodes_of: dict[int, Any] = {}
    edges: list[Any] = []
    whole: list[Any] = []
    for vertex, above in enumerate(forest.parent):
        together, most = forest.multiple[vertex], min(usable[vertex], ring_nodes)
        if usable[vertex] == 0:
            continue
        units = model.NewIntVar(0, most // together, "")
        model.AddHint(units, held[vertex] // together)
        nodes = nodes_of[vertex] = units * together if together > 1 else units
        if not forest.members[vertex]:
            model.Add(nodes == sum(nodes_of[child] for child in forest.children[vertex] if child in nodes_of))
        if above < 0:
            all_here = model.NewBoolVar("")
            model.AddHint(all_here, held[vertex] == ring_nodes)
            model.Add(nodes == ring_nodes * all_here)
            whole.append(all_here)
        elif forest.edge[vertex]:
            part = model.NewBoolVar("")
            model.AddHint(part, 0 < held[vertex] < ring_nodes)
            edges.append(forest.edge[vertex] * part)
            if usable[vertex] >= ring_nodes:
                all_here = model.NewBoolVar("")
                model.AddHint(all_here, held[vertex] == ring_nodes)
                model.AddAtMostOne(part, all_here)
                model.Add(nodes >= ring_nodes * all_here)
                model.Add(nodes <= (ring_nodes - 1) * part + ring_nodes * all_here)
            else:
                model.Add(nodes <= most * part)
            model.Add(nodes >= part)
    model.AddExactlyOne(whole)
    return nodes_of, sum(edges)
