"""The best plans of a grid without working out those that cannot be among them.

Of each part, first memory: every plan that fits is counted, on axes that have few values. Then a lower bound of time
for all plans that differ in the data axis alone. Points that could still hold a wanted plan are worked out, the most
promising first, until none is left that could; so the answer is that of working out everything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.bounds import fitting, least_memory_bytes, least_step_time_s
from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.estimate import OUT_OF_MEMORY
from dlcalc.costmodel.plans import Array
from dlcalc.costmodel.tiles import TILE_PLANS, Part, Tile, tile_at
from dlcalc.search.found import N_MISSES, NEAR_BEST, Found, Leaders, SortKey
from dlcalc.search.pareto import ParetoFilter

NARROWER = 0.8
"""A part is cut down to where something fits, if that leaves at most this share of its points."""


@dataclass(frozen=True)
class Seek:
    """What is wanted of a block, and what was found of it."""

    found: Found
    offset: int
    """Index of the block's first plan."""
    keep: int
    key: SortKey
    bound: float
    """What a plan must not exceed to lead, and"""
    fastest: float
    """the best step time, both as known from other blocks."""
    pareto: ParetoFilter | None = None
    on_front: Callable[[Mapping[str, NDArray[np.generic]]], None] | None = None
    """Receives plans that nothing so far beats in both time and memory."""

    @property
    def lead_bound(self) -> float:
        return min(self.bound, self.found.bound(self.keep, self.key))

    @property
    def near_s(self) -> float:
        """What a plan must not exceed to be kept as near the best."""
        return min(NEAR_BEST * min(self.fastest, self.found.fastest), self.found.near_beyond_s)

    def wanted(self, step_time_s: Array, memory_bytes: Array) -> Mask:
        """Where a plan with these totals would be kept, or one that has no less of both might."""
        lead = (step_time_s if self.key == "step_time" else memory_bytes) <= self.lead_bound
        wanted = lead | (step_time_s <= self.near_s)
        if self.pareto is not None:
            wanted |= self.pareto.unbeaten(step_time_s, memory_bytes)
        return np.asarray(wanted)

    @property
    def miss_bound(self) -> float:
        """Memory that a plan must not exceed to be among those closest to fitting."""
        misses = self.found.misses.memory_bytes
        return float(misses.max()) if len(misses) >= N_MISSES else np.inf

    def lead(self, tile: Tile, fits: Mask) -> None:
        """Let the plans of a tile compete with those found so far."""
        bound, near_s = self.lead_bound, self.near_s
        ranked = tile.step_time_s if self.key == "step_time" else tile.memory_bytes
        open_ = fits & ((ranked <= bound) | (tile.step_time_s <= near_s))
        if not open_.any():
            return
        chosen = self.chosen(open_, tile)
        ranked = chosen.step_time_s if self.key == "step_time" else chosen.memory_bytes
        self.found.leaders = self.found.leaders.join(chosen.take(ranked <= bound)).best(self.keep, self.key)
        self.found.keep_near(chosen, self.fastest)

    def miss(self, tile: Tile) -> None:
        """Keep the plans of a tile, none of which fits, that are closest to fitting."""
        needs = np.where(tile.runs, tile.memory_bytes, np.inf)
        most = np.partition(needs, N_MISSES - 1, axis=None)[N_MISSES - 1] if needs.size > N_MISSES else np.inf
        closest = tile.runs & (tile.memory_bytes <= min(most, self.miss_bound))
        if closest.any():
            self.found.misses = self.found.misses.join(self.chosen(closest, tile)).best(N_MISSES, "memory")

    def chosen(self, mask: Mask, tile: Tile) -> Leaders:
        local = np.flatnonzero(np.broadcast_to(mask, tile.step_time_s.shape))
        return Leaders(
            tile.plan_index(local) + self.offset,
            tile.step_time_s.reshape(-1)[local],
            tile.memory_bytes.reshape(-1)[local],
        )


def seek_best(part: Part, seek: Seek) -> None:
    """Count the plans of a part, and find the wanted ones."""
    counted = fitting(part)
    found = seek.found
    if counted.n_run > counted.n_fit:
        found.refused[OUT_OF_MEMORY] += counted.n_run - counted.n_fit
    found.n_fit += counted.n_fit
    if not counted.n_fit:
        if not found.n_fit and seek.fastest == np.inf:
            _seek_misses(part, seek)
        return
    part, points = _narrowed(part, counted.points)
    least_s, least_bytes = least_step_time_s(part), least_memory_bytes(part)
    left = np.flatnonzero(points & seek.wanted(least_s, least_bytes))
    least_s, least_bytes = least_s.reshape(-1)[left], least_bytes.reshape(-1)[left]
    order = np.argsort(least_s if seek.key == "step_time" else least_bytes)
    n_at_once = max(1, TILE_PLANS // part.shape[1])
    while len(order):
        order = order[seek.wanted(least_s[order], least_bytes[order])]
        now, order = order[:n_at_once], order[n_at_once:]
        if len(now):
            _work_out(tile_at(part, left[now]), seek)


def _work_out(tile: Tile, seek: Seek) -> None:
    fits = tile.runs & (tile.memory_bytes <= tile.part.found.capacity_bytes)
    seek.found.n_estimated += fits.size
    seek.lead(tile, fits)
    if seek.pareto is not None and seek.on_front is not None:
        local = np.flatnonzero(fits)
        step, memory = tile.step_time_s.reshape(-1)[local], tile.memory_bytes.reshape(-1)[local]
        best = seek.pareto.candidates(step, memory)
        index = tile.plan_index(local[best]) + seek.offset
        seek.on_front({"plan_index": index, "step_time_s": step[best], "memory_bytes": memory[best]})


def n_within(part: Part, limit_s: float) -> int:
    """Plans of a part that fit and take no longer than ``limit_s``."""
    counted = fitting(part)
    if not counted.n_fit:
        return 0
    part, points = _narrowed(part, counted.points)
    left = np.flatnonzero(points & (least_step_time_s(part) <= limit_s))
    n_at_once = max(1, TILE_PLANS // part.shape[1])
    found = 0
    for start in range(0, len(left), n_at_once):
        tile = tile_at(part, left[start : start + n_at_once])
        fits = tile.runs & (tile.memory_bytes <= part.found.capacity_bytes)
        found += int(np.count_nonzero(fits & (tile.step_time_s <= limit_s)))
    return found


def _seek_misses(part: Part, seek: Seek) -> None:
    """The plans closest to fitting, of a part of which none fits."""
    least = least_memory_bytes(part).reshape(-1)
    left = np.flatnonzero(np.isfinite(least))
    left = left[np.argsort(least[left])]
    n_at_once = max(1, TILE_PLANS // 16 // part.shape[1])
    for start in range(0, len(left), n_at_once):
        now = left[start : start + n_at_once]
        if least[now[0]] > seek.miss_bound:
            return
        seek.miss(tile_at(part, now))


def _narrowed(part: Part, points: Mask) -> tuple[Part, Mask]:
    """The part without the rows of any axis on which no point is open."""
    axes = range(len(part.shape))
    rows = [np.flatnonzero(points.any(axis=tuple(other for other in axes if other != axis))) for axis in axes]
    if prod(len(chosen) for chosen in rows) > NARROWER * points.size:
        return part, points
    narrow = points[np.ix_(*rows)]
    rows[1] = np.arange(part.shape[1])
    return part.take(rows, with_memory=True), narrow
