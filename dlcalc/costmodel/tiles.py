"""Totals of a grid in pieces that stay in cache.

An :class:`Estimate` of a grid holds its terms on their own axes; only the two totals, step time and peak memory, are as
large as the grid. Here they are computed piece by piece: one mesh row and a few data rows at a time, and within it only
the rows of the other axes on which some plan can run at all. Each piece costs about fifteen operations on arrays of
some ten thousand elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.estimate import Estimate, any_of
from dlcalc.costmodel.footprint import fullest_stage_bytes
from dlcalc.costmodel.plans import Array
from dlcalc.costmodel.step_time import Overlap, total_time_s

Index = NDArray[np.int64]
T = TypeVar("T")

TILE_PLANS = 1 << 15
"""A full-size array of this many takes 256 KiB, so that a few of them share a 1 MiB cache."""
MESH, DATA = 0, 1


@dataclass(frozen=True)
class Tile:
    """Totals of some plans of a grid: the product of ``rows``, one list of positions per axis."""

    rows: tuple[Index, ...]
    step_time_s: Array
    memory_bytes: Array
    runs: Mask

    def plan_index(self, local: Index, shape: Sequence[int]) -> Index:
        """Flat positions in the grid of ``shape`` of flat positions in the tile."""
        where = np.unravel_index(local, tuple(len(rows) for rows in self.rows))
        return np.ravel_multi_index(
            tuple(rows[position] for rows, position in zip(self.rows, where, strict=True)), tuple(shape)
        ).astype(np.int64)


@dataclass(frozen=True)
class _Totals:
    """The arrays that totals are made of."""

    pipeline_s: Array
    sent_s: Array
    overlap: Overlap
    states_bytes: Array
    passing_bytes: Array
    refused: Mask
    """By what does not depend on the data axis, and"""
    refused_by_data: Mask
    """by what does."""

    def take(self, axis: int, rows: Index | slice) -> _Totals:
        """The given positions of one axis of the grid."""
        return _Totals(
            pipeline_s=_take(self.pipeline_s, axis, rows),
            sent_s=_take(self.sent_s, axis, rows),
            overlap=Overlap(**{f.name: _take(getattr(self.overlap, f.name), axis, rows) for f in fields(Overlap)}),
            states_bytes=_take(self.states_bytes, axis + 1, rows),
            passing_bytes=_take(self.passing_bytes, axis + 1, rows),
            refused=_take(self.refused, axis, rows),
            refused_by_data=_take(self.refused_by_data, axis, rows),
        )


def tiles(found: Estimate, shape: Sequence[int]) -> Iterator[Tile]:
    """Every plan of the grid that is not refused by a constraint, exactly once."""
    masks = list(found.refused.values())
    whole = _Totals(
        pipeline_s=found.step.pipeline_s,
        sent_s=found.step.sent_s,
        overlap=found.step.overlap,
        states_bytes=found.footprint.states_bytes,
        passing_bytes=found.footprint.passing_bytes,
        refused=any_of([mask for mask in masks if mask.shape[DATA] == 1]),
        refused_by_data=any_of([mask for mask in masks if mask.shape[DATA] > 1 or shape[DATA] == 1]),
    )
    for mesh in range(shape[MESH]):
        part = whole.take(MESH, slice(mesh, mesh + 1))
        rows = _live_rows(part, shape)
        if any(len(live) == 0 for live in rows):
            continue
        rows[MESH] = np.array([mesh])
        for axis in range(DATA, len(shape)):
            if len(rows[axis]) < shape[axis]:
                part = part.take(axis, rows[axis])
        per_data_row = int(np.prod([len(live) for live in rows[DATA + 1 :]]))
        step = max(1, TILE_PLANS // per_data_row)
        for start in range(0, len(rows[DATA]), step):
            yield _tile(
                part.take(DATA, slice(start, start + step)),
                [rows[MESH], rows[DATA][start : start + step], *rows[DATA + 1 :]],
            )


def _tile(part: _Totals, rows: list[Index]) -> Tile:
    shape = tuple(len(live) for live in rows)
    return Tile(
        rows=tuple(rows),
        step_time_s=np.broadcast_to(total_time_s(part.pipeline_s, part.sent_s, part.overlap), shape),
        memory_bytes=np.broadcast_to(fullest_stage_bytes(part.states_bytes, part.passing_bytes), shape),
        runs=~(part.refused | part.refused_by_data),
    )


def _live_rows(part: _Totals, shape: Sequence[int]) -> list[Index]:
    """Per axis, the positions at which not every plan is refused by one of the two masks."""
    live = []
    for axis, length in enumerate(shape):
        refused = [
            np.all(mask, axis=tuple(other for other in range(mask.ndim) if other != axis))
            for mask in (part.refused, part.refused_by_data)
        ]
        open_ = ~(refused[0] | refused[1])
        live.append(np.flatnonzero(open_ if axis == MESH else np.broadcast_to(open_, (length,))))
    return live


def _take(array: NDArray[T], axis: int, rows: Index | slice) -> NDArray[T]:  # type: ignore[type-var]
    """Positions of one axis; an array that does not have the axis stays what it is."""
    if array.ndim <= axis or array.shape[axis] == 1:
        return array
    if isinstance(rows, slice):
        return array[(slice(None),) * axis + (rows,)]
    return np.take(array, rows, axis=axis)
