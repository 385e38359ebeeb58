"""Column generation: what every placement costs at least, and better ones on the way.

All rings are alike, so a placement is ``n_rings`` *patterns* (nodes of each group) that together take no more of a
group than it has; and no more rings stay below a switch than its nodes make whole ones. The linear relaxation asks for
shares of patterns instead; its dual is a price per node of each group and per ring below each switch. For any prices at
all, no placement pays fewer edges than ``n_rings`` times the cheapest priced ring, less what all that is there is worth
(weak duality). The cheapest priced ring is the exact knapsack, so this bound holds whatever
the solver's rounding; the solver only makes it tight, and without one a subgradient walk makes it a little less so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlcalc.topology.budget import STEPS_PER_S, Budget
from dlcalc.topology.forest import Forest
from dlcalc.topology.greedy import cheapest_first
from dlcalc.topology.knapsack import Array, Ring, Tables, ring_below, tables

Say = Callable[[str, int, int], None]
"""Told the method, the edges reached, and the bound on them."""
SMOOTHING = 0.6
"""Weight of the prices with the best bound so far against the solver's: prices jump about less, and bounds rise."""
ROUNDING = 1e-6
MOST_PATTERNS = 24
"""Patterns taken of one knapsack."""
LAYING_SHARE = 0.7
"""Of the work so far, what whole placements at the prices of the moment may have taken."""
SUBGRADIENT_STEPS = 150
LP_SECONDS_PER_PIVOT = 1.2e-7
"""Per row of the relaxation."""


@dataclass(frozen=True)
class Bounded:
    """Rings, and the edges that no choice of rings is below."""

    rings: tuple[Ring, ...]
    least_edges: int
    method: str

    @property
    def edges(self) -> int:
        return edges_of(self.rings)

    @property
    def is_optimal(self) -> bool:
        return self.edges <= self.least_edges


def silent(method: str, edges: int, least_edges: int) -> None:
    """Tell nobody."""


def edges_of(rings: Sequence[Ring]) -> int:
    """Edges that rings pay besides one per node."""
    return sum(ring.edges for ring in rings)


def bounded(
    forest: Forest,
    n_rings: int,
    ring_nodes: int,
    budget: Budget,
    *,
    start: Tables,
    rings: Sequence[Ring],
    say: Say = silent,
) -> Bounded:
    """The best rings and the highest bound that ``budget`` allows, beginning with greedy ``rings``."""
    walk = _Walk(forest, n_rings, ring_nodes, budget, tuple(rings))
    walk.learn(np.zeros((2, len(forest))), start)
    if walk.is_closed or budget.is_spent:
        return walk.found("greedy")
    program = _program(forest, walk.limits, n_rings)
    if program is None:
        _subgradient(walk)
        return walk.found("greedy and prices")
    _columns(walk, program, start, say)
    return walk.found("column generation")


@dataclass
class _Walk:
    """The best rings, bound and prices met so far."""

    forest: Forest
    n_rings: int
    ring_nodes: int
    budget: Budget
    rings: tuple[Ring, ...]
    bound: float = 0.0
    prices: Array = field(default_factory=lambda: np.zeros(0))
    laying_s: float = 0.0

    def __post_init__(self) -> None:
        whole = [usable // self.ring_nodes for usable in self.forest.usable(self.forest.free)]
        self.limits = np.array([self.forest.free, whole], dtype=np.float64)

    @property
    def least_edges(self) -> int:
        return max(0, math.ceil(self.bound - ROUNDING))

    @property
    def is_closed(self) -> bool:
        return edges_of(self.rings) <= self.least_edges

    def found(self, method: str) -> Bounded:
        return Bounded(self.rings, min(self.least_edges, edges_of(self.rings)), method)

    def learn(self, prices: Array, priced: Tables) -> bool:
        """Take the bound that these prices prove; whether it is the highest so far."""
        bound = self.n_rings * priced.apexes()[0][0] - float((prices * self.limits).sum())
        if len(self.prices) and bound <= self.bound + 1e-9:
            return False
        self.bound, self.prices = bound, prices
        return True

    def priced(self, prices: Array) -> Tables:
        found = tables(self.forest, self.forest.free, self.ring_nodes, prices)
        self.budget.spend(found.work / STEPS_PER_S)
        return found

    def rings_at(self, prices: Array, priced: Tables) -> list[Ring]:
        """Disjoint rings, cheapest first at these prices; kept if they are the best so far."""
        rings = cheapest_first(
            self.forest, self.n_rings, self.ring_nodes, prices=prices, start=priced, stop=self._stops
        )
        if len(rings) == self.n_rings and edges_of(rings) < edges_of(self.rings):
            self.rings = tuple(rings)
        return rings

    def _stops(self, work: float) -> bool:
        self.budget.spend(work / STEPS_PER_S)
        self.laying_s += work / STEPS_PER_S
        return self.budget.is_spent

    @property
    def lays_often(self) -> bool:
        """Laying all rings costs as many knapsacks as there are rings; of large jobs that is not done every time."""
        return self.laying_s <= LAYING_SHARE * self.budget.spent_s


class _Program:
    """The relaxation over the patterns known so far, grown column by column."""

    def __init__(self, solver: Any, forest: Forest, limits: Array, n_rings: int) -> None:  # noqa: ANN401
        self.solver, self.forest = solver, forest
        self.known: set[tuple[tuple[int, int], ...]] = set()
        self.rows = {group: solver.Constraint(-solver.infinity(), forest.free[group]) for group in forest.groups}
        self.whole = {
            vertex: solver.Constraint(-solver.infinity(), limits[1][vertex])
            for vertex in range(len(forest))
            if forest.parent[vertex] >= 0 and 0 < limits[1][vertex] < n_rings
        }
        self.rings = solver.Constraint(n_rings, n_rings)
        self.cost = solver.Objective()
        self.cost.SetMinimization()

    def add(self, ring: Ring) -> bool:
        """Whether the pattern is new."""
        if ring.counts in self.known:
            return False
        self.known.add(ring.counts)
        share = self.solver.NumVar(0.0, self.solver.infinity(), "")
        self.cost.SetCoefficient(share, ring.edges)
        self.rings.SetCoefficient(share, 1.0)
        for group, count in ring.counts:
            self.rows[group].SetCoefficient(share, count)
        vertex = ring.apex
        while vertex >= 0:
            if vertex in self.whole:
                self.whole[vertex].SetCoefficient(share, 1.0)
            vertex = self.forest.parent[vertex]
        return True

    def prices(self) -> tuple[float, float, Array] | None:
        """Cost of the relaxation, price of a ring anywhere, and ``prices``; None where the solver gives up."""
        if self.solver.Solve() != 0:
            return None
        prices = np.zeros((2, len(self.forest)))
        for at, rows in enumerate((self.rows, self.whole)):
            for vertex, row in rows.items():
                prices[at, vertex] = max(0.0, -row.dual_value())
        return self.cost.Value(), self.rings.dual_value(), prices

    def work_s(self) -> float:
        return LP_SECONDS_PER_PIVOT * (int(self.solver.iterations()) + 10) * (len(self.rows) + len(self.known))


def _program(forest: Forest, limits: Array, n_rings: int) -> _Program | None:
    """An empty relaxation; None where no solver is installed."""
    try:
        from ortools.linear_solver import pywraplp
    except ImportError:
        return None
    solver = pywraplp.Solver.CreateSolver("CLP") or pywraplp.Solver.CreateSolver("GLOP")
    return None if solver is None else _Program(solver, forest, limits, n_rings)


def _columns(walk: _Walk, program: _Program, start: Tables, say: Say) -> None:
    for ring in walk.rings:
        program.add(ring)
    for _, apex in start.apexes()[:MOST_PATTERNS]:
        program.add(ring_below(walk.forest, start, apex))
    rounds = 0
    while not (walk.is_closed or walk.budget.is_spent):
        solved = program.prices()
        walk.budget.spend(program.work_s())
        if solved is None:
            return
        cost, ring_price, dual = solved
        if walk.least_edges >= cost - ROUNDING:
            return  # the bound cannot rise further
        rounds += 1
        if rounds % 20 == 0:
            say("column generation", edges_of(walk.rings), walk.least_edges)
        smoothed = SMOOTHING * walk.prices + (1.0 - SMOOTHING) * dual
        for prices in (smoothed, dual):
            priced = walk.priced(prices)
            walk.learn(prices, priced)
            rings = [ring_below(walk.forest, priced, apex) for _, apex in priced.apexes()[:MOST_PATTERNS]]
            if walk.lays_often:
                rings += walk.rings_at(prices, priced)
            gain = (ring for ring in rings if _reduced(walk.forest, ring, dual) < ring_price - 1e-7)
            if sum(program.add(ring) for ring in gain) or walk.budget.is_spent:
                break
        else:
            return  # no pattern improves the relaxation: it is solved


def _reduced(forest: Forest, ring: Ring, prices: Array) -> float:
    cost = ring.edges + sum(float(prices[0, group]) * count for group, count in ring.counts)
    vertex = ring.apex
    while vertex >= 0:
        cost += float(prices[1, vertex])
        vertex = forest.parent[vertex]
    return cost


def _subgradient(walk: _Walk) -> None:
    """Prices that rise where the cheapest rings take more than there is; steps after Polyak, directions averaged."""
    prices = np.zeros((2, len(walk.forest)))
    direction = np.zeros((2, len(walk.forest)))
    ambition = 1.0
    for step in range(SUBGRADIENT_STEPS):
        if walk.is_closed or walk.budget.is_spent:
            return
        priced = walk.priced(prices)
        cost, apex = priced.apexes()[0]
        bound = walk.n_rings * cost - float((prices * walk.limits).sum())
        if not walk.learn(prices, priced):
            ambition *= 0.97
        taken = -walk.limits
        for group, count in ring_below(walk.forest, priced, apex).counts:
            taken[0, group] += walk.n_rings * count
        while apex >= 0:
            taken[1, apex] += walk.n_rings
            apex = walk.forest.parent[apex]
        direction = taken if step == 0 else 0.3 * taken + 0.7 * direction
        reach = float((direction * direction).sum())
        if reach == 0.0:
            return
        aim = edges_of(walk.rings) - bound
        prices = np.maximum(0.0, prices + ambition * aim / reach * direction)
        prices[walk.limits == 0] = 0.0
        if step % 10 == 9:
            walk.rings_at(walk.prices, walk.priced(walk.prices))
