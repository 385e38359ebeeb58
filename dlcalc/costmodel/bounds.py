"""What no plan of a point can beat, before any plan is worked out.

A point is a position on every axis but data: its plans differ in how states are sharded and exchanges overlapped, and
in nothing else. Step time is what the pipeline takes, which no data row changes, and what is exposed of exchanges: at
least what is sent less the most that can hide. Peak memory is what micro-batches leave behind, and the states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.footprint import fullest_stage_bytes
from dlcalc.costmodel.plans import Array
from dlcalc.costmodel.tiles import DATA, Part

ROUNDING = 1e-12
"""Far more than what the order of additions changes, relative to what is added."""


@dataclass(frozen=True)
class Fitting:
    """Which plans of a part fit in memory, counted plan by plan."""

    n_run: int
    """Refused by no constraint."""
    n_fit: int
    points: Mask
    """Points of which some plan fits, on :attr:`Part.point_shape`."""


def fitting(part: Part) -> Fitting:
    """Exact counts, from additions and comparisons on points alone: data rows with equal states count together."""
    shape = part.point_shape
    states, passing = part.memory
    points = np.zeros(shape, dtype=np.bool_)
    n_fit = 0
    peak, fits, fits_too = np.empty(shape), np.empty(shape, np.bool_), np.empty(shape, np.bool_)
    for row, n_alike in _distinct(states):
        fits[...] = True
        for on_stage, left in zip(states, passing, strict=True):
            np.add(on_stage[:, row : row + 1], left, out=peak)
            np.less_equal(peak, part.found.capacity_bytes, out=fits_too)
            np.logical_and(fits, fits_too, out=fits)
        n_fit += n_alike * int(np.count_nonzero(fits))
        np.logical_or(points, fits, out=points)
    if states.shape[1 + DATA] == 1:
        n_fit *= part.shape[DATA]
    return Fitting(n_run=_n_open(part), n_fit=n_fit, points=points)


def _distinct(states: Array) -> list[tuple[int, int]]:
    """Data rows whose states differ somewhere, each with how many are like it."""
    rows: dict[bytes, list[int]] = {}
    for row in range(states.shape[1 + DATA]):
        rows.setdefault(states[:, :, row].tobytes(), []).append(row)
    return [(alike[0], len(alike)) for alike in rows.values()]


def _n_open(part: Part) -> int:
    """Plans that neither of the two masks refuses."""
    open_rows = np.sum(~part.closed_by_data, axis=DATA, keepdims=True, dtype=np.int64)
    open_rows *= part.shape[DATA] // part.closed_by_data.shape[DATA]
    return int(np.sum(np.broadcast_to(~part.closed * open_rows, part.point_shape)))


def least_memory_bytes(part: Part) -> Array:
    """No plan of a point needs less; infinite where none runs."""
    states, passing = part.memory
    return np.broadcast_to(fullest_stage_bytes(states.min(axis=1 + DATA, keepdims=True), passing), part.point_shape)


def least_step_time_s(part: Part) -> Array:
    """No plan of a point that fits is faster; infinite where none runs."""
    step, kept = part.found.step, 1.0 - ROUNDING
    hidden = step.overlap.grad_limit_s + step.overlap.gather_limit_s
    exposed = np.where(_too_large(part), np.inf, kept * step.sent_s - hidden)
    least = kept * step.pipeline_s + exposed.min(axis=DATA, keepdims=True)
    return np.broadcast_to(np.where(part.closed, np.inf, least), part.point_shape)


def _too_large(part: Part) -> Mask:
    """Data rows that leave no room for what any micro-batch leaves behind; mesh x data x pipe."""
    states, passing = part.memory
    smallest = passing.min(axis=tuple(range(1 + DATA + 2, passing.ndim)), keepdims=True)
    return np.asarray(np.any(states + smallest > part.found.capacity_bytes, axis=0))
