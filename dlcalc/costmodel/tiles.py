"""A grid of plans in pieces: only what can run is worked out, and totals stay in cache.

Most of a grid is refused by constraints that cost nothing to look at. A :class:`Part` is a few mesh rows with those
rows of the other axes on which some of their plans can run; terms are computed for parts. Terms live on their own axes;
only the two totals, step time and peak memory, are as large as the part, and a :class:`Tile` is a piece of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.data_parallel import Overlap
from dlcalc.costmodel.estimate import Estimate, any_of
from dlcalc.costmodel.footprint import fullest_stage_bytes
from dlcalc.costmodel.plans import Array, Index, T, take_rows
from dlcalc.costmodel.step_time import total_time_s

TILE_PLANS = 1 << 15
"""A full-size array of this many takes 256 KiB, so that a few of them share a 1 MiB cache."""
PART_POINTS = 1 << 16
"""Plans of a part, data axis apart: as many as its largest terms have values, per bounding stage."""
CALL_POINTS = 1 << 13
"""What a part costs however small it is: as much as so many values of its terms."""
MESH, DATA = 0, 1


@dataclass(frozen=True)
class Part:
    """Some positions of every axis of a grid."""

    found: Estimate
    rows: tuple[Index, ...]
    """Positions in the grid, ascending, one list per axis."""
    grid: tuple[int, ...]
    closed: Mask
    """Refused by what does not depend on the data axis, and"""
    closed_by_data: Mask
    """by what does."""
    known_memory: tuple[Array, Array] | None = None

    @cached_property
    def memory(self) -> tuple[Array, Array]:
        """States, and what micro-batches leave behind, on every bounding stage; infinite where refused."""
        if self.known_memory is not None:
            return self.known_memory
        held = self.found.footprint
        return (
            np.where(self.closed_by_data, np.inf, held.states_bytes),
            np.where(self.closed, np.inf, held.passing_bytes),
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(rows) for rows in self.rows)

    @property
    def point_shape(self) -> tuple[int, ...]:
        """Without the data axis: a point stands for the plans that differ in nothing else."""
        return tuple(1 if axis == DATA else length for axis, length in enumerate(self.shape))

    def take(self, rows: Sequence[Index], *, with_memory: bool = False) -> Part:
        """Positions of this part's axes; ``with_memory``: what is known of it is not worked out again."""
        return Part(
            found=self.found.part(rows),
            rows=tuple(had[chosen] for had, chosen in zip(self.rows, rows, strict=True)),
            grid=self.grid,
            closed=take_rows(self.closed, rows),
            closed_by_data=take_rows(self.closed_by_data, rows),
            known_memory=(take_rows(self.memory[0], rows), take_rows(self.memory[1], rows)) if with_memory else None,
        )

    def plan_index(self, where: Sequence[Index]) -> Index:
        """Flat positions in the grid of positions along the part's axes."""
        index = np.zeros(np.shape(where[0]), np.int64)
        for axis, (rows, position) in enumerate(zip(self.rows, where, strict=True)):
            index += np.take(rows * prod(self.grid[axis + 1 :]), position)
        return index


def parts(found: Estimate, shape: Sequence[int], *, in_order: bool = False) -> Iterator[Part]:
    """Every plan of the grid ``found`` that is not refused by a constraint, exactly once.

    ``in_order``: mesh rows in ascending order; otherwise rows with the same open plans are taken together.
    """
    masks = list(found.refused.values())
    whole = Part(
        found=found,
        rows=tuple(np.arange(length) for length in shape),
        grid=tuple(shape),
        closed=any_of([mask for mask in masks if mask.shape[DATA] == 1]),
        closed_by_data=any_of([mask for mask in masks if mask.shape[DATA] > 1 or shape[DATA] == 1]),
    )
    open_ = _open_rows(whole)
    meshes = np.flatnonzero(np.all([rows.any(axis=1) for rows in open_], axis=0))
    joined = np.concatenate(open_, axis=1)
    if not in_order:
        meshes = meshes[np.lexsort(joined[meshes].T)]
    for together in _groups(meshes, joined, [rows.shape[1] for rows in open_]):
        live = [np.flatnonzero(rows[together].any(axis=0)) for rows in open_]
        yield whole.take([np.sort(together), *live])


def _open_rows(part: Part) -> list[Mask]:
    """Per axis but the mesh's, at which positions some plan of a mesh row is refused by neither of the two masks."""
    found = []
    for axis in range(DATA, len(part.shape)):
        others = tuple(other for other in range(len(part.shape)) if other not in (MESH, axis))
        open_ = ~(np.all(part.closed, axis=others) | np.all(part.closed_by_data, axis=others))
        found.append(np.broadcast_to(open_, (part.shape[MESH], part.shape[axis])))
    return found


def _groups(meshes: Index, open_: Mask, lengths: Sequence[int]) -> Iterator[Index]:
    """Neighbours among ``meshes`` that cost less together than apart; ``open_`` has the axes side by side."""
    starts = np.cumsum([0, *lengths[:-1]])
    own_points = np.prod(np.add.reduceat(open_[meshes], starts[1:], axis=1, dtype=np.int64), axis=1).tolist()
    group: list[int] = []
    live, points, cost = open_[:0], 0, 0
    for mesh, own in zip(meshes.tolist(), own_points, strict=True):
        if not group or own != points or not np.array_equal(live, open_[mesh]):
            union = live | open_[mesh] if group else open_[mesh]
            wide = prod(np.add.reduceat(union, starts[1:], dtype=np.int64).tolist())
        else:
            union, wide = live, points
        together = wide * (len(group) + 1)
        if group and together > min(PART_POINTS, cost + own + CALL_POINTS):
            yield np.array(group)
            group, union, wide, together = [], open_[mesh], own, own
        group, live, points, cost = [*group, mesh], union, wide, together
    if group:
        yield np.array(group)


# ---- totals of every plan -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
    """Totals of some plans of a part."""

    part: Part
    where: tuple[Index, ...]
    """Positions along the part's axes, broadcastable to the shape of the totals."""
    step_time_s: Array
    memory_bytes: Array
    runs: Mask

    def at(self, local: Index) -> tuple[Index, ...]:
        """Positions along the axes of the part of flat positions in the tile."""
        shape = self.step_time_s.shape
        half = len(shape) // 2  # every axis of the part lies along one half of the tile's
        n_last = prod(shape[half:])
        first = local // n_last
        last = local - first * n_last
        found = []
        for where in self.where:
            along_last = where.shape[half:] != (1,) * (len(shape) - half)
            halves = shape[half:] if along_last else shape[:half]
            table = np.broadcast_to(where.reshape(where.shape[half:] if along_last else where.shape[:half]), halves)
            found.append(np.take(table, last if along_last else first))
        return tuple(found)

    def plan_index(self, local: Index) -> Index:
        """Flat positions in the grid of flat positions in the tile."""
        return self.part.plan_index(self.at(local))


def tiles(part: Part) -> Iterator[Tile]:
    """Totals of the part: a mesh row and some data rows at a time, of the other axes what is open there."""
    open_ = _open_rows(part)
    for mesh in range(part.shape[MESH]):
        live = [np.array([mesh]), *(np.flatnonzero(rows[mesh]) for rows in open_)]
        per_data_row = prod(len(rows) for rows in live[DATA + 1 :])
        step = max(1, TILE_PLANS // max(1, per_data_row))
        for start in range(0, len(live[DATA]), step):
            yield _tile(part, [live[MESH], live[DATA][start : start + step], *live[DATA + 1 :]])


def _tile(part: Part, rows: list[Index]) -> Tile:
    shape = tuple(len(live) for live in rows)
    step, memory = part.found.step, part.found.footprint
    overlap = Overlap(**{f.name: take_rows(getattr(step.overlap, f.name), rows) for f in fields(Overlap)})
    time = total_time_s(take_rows(step.pipeline_s, rows), take_rows(step.sent_s, rows), overlap)
    peak = fullest_stage_bytes(take_rows(memory.states_bytes, rows), take_rows(memory.passing_bytes, rows))
    return Tile(
        part=part,
        where=tuple(np.ix_(*rows)),
        step_time_s=np.broadcast_to(time, shape),
        memory_bytes=np.broadcast_to(peak, shape),
        runs=~(take_rows(part.closed, rows) | take_rows(part.closed_by_data, rows)),
    )


def tile_at(part: Part, points: Index) -> Tile:
    """Totals of all plans of some points (flat, of :attr:`Part.point_shape`): a row per point, its data rows across."""
    where = [position[:, None] for position in np.unravel_index(points, part.point_shape)]
    where[DATA] = np.arange(part.shape[DATA])[None, :]
    shape = (len(points), part.shape[DATA])

    def at(array: NDArray[T]) -> NDArray[T]:  # type: ignore[type-var]
        return np.asarray(array[tuple(w if n > 1 else 0 for w, n in zip(where, array.shape, strict=True))])

    step = part.found.step
    overlap = Overlap(**{f.name: at(getattr(step.overlap, f.name)) for f in fields(Overlap)})
    states, passing = ([at(on_stage) for on_stage in held] for held in part.memory)
    peak = fullest_stage_bytes(states, passing)
    return Tile(
        part=part,
        where=tuple(where),
        step_time_s=np.broadcast_to(total_time_s(at(step.pipeline_s), at(step.sent_s), overlap), shape),
        memory_bytes=np.broadcast_to(peak, shape),
        runs=np.broadcast_to(~(at(part.closed) | at(part.closed_by_data)), shape),
    )
