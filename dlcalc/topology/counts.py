"""Rings as counts per switch, in a constraint solver: some rings of a placement are taken up and laid again, better.

Whole placements of small jobs are proved optimal this way. Of large ones two, three or four rings at a time are laid
again on their own nodes and all free ones, nearest rings first, until nothing improves or the budget is spent.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcalc.topology.budget import Budget
from dlcalc.topology.columns import Bounded, Say, edges_of, silent
from dlcalc.topology.forest import Forest
from dlcalc.topology.knapsack import Array, Ring, ring_of

WHOLE_CELLS = 600
"""Rings times vertices up to which the whole placement is worth trying first."""
LAST_CELLS = 6000
"""The same, for trying it last, with what budget is left."""
WHOLE_SHARE = 0.4
NEIGHBOURHOOD_S = {2: 0.45, 3: 1.2, 4: 2.4}
"""Of work, by how many rings are laid again."""
NEAR_GROUPS = 60
"""In forests of more groups, rings are laid again only under switches next to their own."""
WORK_PER_COUNTED = 4.5
"""Seconds of work that one unit of the solver's deterministic time stands for."""
CELL_S = 2e-4
"""Of building the problem, per ring and vertex with nodes."""
SOLVE_S, VERTEX_S = 5e-3, 5e-6
"""Of any problem, and per ring and vertex, with nodes or without."""
APART_S = 4e-9
"""Of telling how far apart two rings are, per vertex."""
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
    least = largest_at_least(found, cheapest_edges) if worst else found.least_edges
    laying = _Laying(cp_model, forest, budget, worst, found.least_edges, found.rings, least, say)
    cells = len(found.rings) * len(forest)
    if cells <= WHOLE_CELLS:
        laying.lay_all(WHOLE_SHARE * budget.left_s)
    laying.lay_some()
    if cells <= LAST_CELLS:
        laying.lay_all(budget.left_s)
    least = min(laying.least, laying.cost(laying.rings))
    return Bounded(laying.rings, least, f"{found.method} and counts")


@dataclass
class _Laying:
    """The rings as they are being improved."""

    cp_model: Any
    forest: Forest
    budget: Budget
    worst: bool
    least_sum: int
    rings: tuple[Ring, ...]
    least: int
    say: Say

    def cost(self, rings: Sequence[Ring]) -> int:
        return max(ring.edges for ring in rings) if self.worst else edges_of(rings)

    @property
    def is_done(self) -> bool:
        return self.budget.is_spent or (self.cost(self.rings) <= self.least and edges_of(self.rings) <= self.least_sum)

    def solved(self, rings: Sequence[Ring], free: Sequence[int], floor: int, limit_s: float) -> Answer:
        clock_s = self.budget.clock_left_s
        answer = solve(self.cp_model, self.forest, free, rings, floor, limit_s, clock_s, worst=self.worst)
        self.budget.spend(answer.work_s)
        return answer

    def lay_all(self, limit_s: float) -> None:
        if self.is_done:
            return
        answer = self.solved(self.rings, self.forest.free, self.least, limit_s)
        self.rings = answer.rings or self.rings
        self.least = max(self.least, min(math.ceil(answer.least - 1e-6), self.cost(self.rings)))

    def lay_some(self) -> None:
        """A few rings at a time, until none get better."""
        if self.is_done:
            return
        held = _held(self.forest, self.rings)
        apart = np.array([_apart(held, at) for at in range(len(self.rings))])
        self.budget.spend(APART_S * apart.size * len(self.forest))
        failed: set[tuple[tuple[tuple[int, int], ...], ...]] = set()
        changed = False
        while not self.is_done:
            chosen, laid = self._next(apart, failed)
            if not laid and not changed:
                return
            changed = bool(laid)
            if not laid:
                failed.clear()  # other rings have moved since
                continue
            now = dict(zip(chosen, laid, strict=True))
            self.rings = tuple(now.get(at, ring) for at, ring in enumerate(self.rings))
            held[list(chosen)] = _held(self.forest, laid)
            for at in chosen:
                apart[at] = apart[:, at] = _apart(held, at)
            self.say("counts", self.cost(self.rings), self.least)

    def _next(
        self, apart: Array, failed: set[tuple[tuple[tuple[int, int], ...], ...]]
    ) -> tuple[tuple[int, ...], tuple[Ring, ...]]:
        """The next few rings that can be better, and better ones; none where there are no such.

        What ``failed`` is not tried again while something else gets better.
        """
        left = _left(self.forest, self.rings)
        total = edges_of(self.rings)
        worst = self.worst and self.cost(self.rings) > self.least
        for chosen in _neighbourhoods(apart, [ring.edges for ring in self.rings], worst=worst):
            again = tuple(self.rings[at] for at in chosen)
            problem = tuple(ring.counts for ring in again)
            if problem in failed:
                continue
            free = list(left)
            for ring in again:
                for group, count in ring.counts:
                    free[group] += count
            if len(self.forest.groups) > NEAR_GROUPS:
                free = _near(self.forest, free, again)
            floor = self.least if self.worst else max(0, self.least - (total - edges_of(again)))
            answer = self.solved(again, free, floor, min(NEIGHBOURHOOD_S[len(chosen)], self.budget.left_s))
            if answer.rings is not None:
                return chosen, answer.rings
            failed.add(problem)
            if self.budget.is_spent:
                break
        return (), ()


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


def _neighbourhoods(apart: Array, edges: Sequence[int], *, worst: bool) -> Iterator[tuple[int, ...]]:
    """Which rings to lay again: near pairs first, then each ring with its nearest two, and three.

    With ``worst``, one of them is a largest ring.
    """
    n_rings, most = len(edges), max(edges)
    first, second = np.triu_indices(n_rings, 1)
    if worst:
        largest = np.asarray(edges) == most
        some = largest[first] | largest[second]
        first, second = first[some], second[some]
    for at in np.argsort(apart[first, second], kind="stable"):
        yield int(first[at]), int(second[at])
    for size in (3, 4):
        if n_rings >= size:
            seen: set[tuple[int, ...]] = set()
            for at in range(n_rings):
                nearest = [int(other) for other in np.argsort(apart[at], kind="stable")[:size] if other != at]
                chosen = tuple(sorted([at, *nearest[: size - 1]]))
                if chosen not in seen and not (worst and all(edges[ring] < most for ring in chosen)):
                    seen.add(chosen)
                    yield chosen


def _held(forest: Forest, rings: Sequence[Ring]) -> Array:
    """Nodes of each ring under each vertex whose edge counts, one row a ring."""
    counted = [vertex for vertex, above in enumerate(forest.parent) if above >= 0]
    return np.array([forest.held(dict(ring.counts)) for ring in rings], dtype=np.float64)[:, counted]


def _apart(held: Array, at: int) -> Array:
    """Edges that the nodes of one ring must move over, at least, to become those of each other."""
    return np.asarray(np.abs(held - held[at]).sum(axis=1), dtype=np.float64)


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
    work_s = (
        WORK_PER_COUNTED * float(solver.ResponseProto().deterministic_time)
        + SOLVE_S
        + len(rings) * (CELL_S * sum(nodes > 0 for nodes in usable) + VERTEX_S * len(forest))
    )
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
