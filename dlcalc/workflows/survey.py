"""All rows of a scenario, batch by batch: the best, the front, every mesh, every cell. Memory is flat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dlcalc.costmodel.plans import KNOBS, Array
from dlcalc.errors import DlcalcError
from dlcalc.results.reader import Result, Row
from dlcalc.search.pareto import ParetoFilter, front

Index = NDArray[np.int64]

MESH = ("tp", "cp", "pp", "dp", "ep", "etp")
COLUMNS = 96
ROWS = 64
"""Cells of the density, by memory and by MFU."""
BEYOND_CAPACITY = 1.25
"""How far the cells go where rows that do not fit are kept."""
NEAR_BEST = 1.02


@dataclass(frozen=True)
class Leaders:
    """The best rows that fit, best first."""

    index: Index
    step_time_s: Array
    n_fit: int
    n_rows: int
    fastest_s: float
    best_mfu: float


@dataclass
class MeshBest:
    """The fastest row of one mesh, and how many rows it has."""

    index: int
    step_time_s: float
    n_rows: int


@dataclass
class Survey:
    """What is known after every row was seen."""

    meshes: dict[tuple[int, ...], MeshBest] = field(default_factory=dict)
    front: Index = field(default_factory=lambda: np.empty(0, np.int64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((ROWS, COLUMNS), np.int64))
    n_beyond: int = 0
    n_near: int = 0
    n_not_told_apart: int = 0

    def by_speed(self) -> list[tuple[tuple[int, ...], MeshBest]]:
        """Meshes, the one with the fastest plan first."""
        return sorted(self.meshes.items(), key=lambda item: (item[1].step_time_s, item[1].index))


def leaders(result: Result, scenario: str, n_rows: int, *, by: str, capacity_bytes: float) -> Leaders:
    """The ``n_rows`` rows that fit with the least ``by``; of equals the faster, then the first in the space."""
    best = np.empty((0, 3))  # key, plan index, step time
    n_fit = n_all = 0
    fastest_s, best_mfu = np.inf, 0.0
    for batch in result.batches(scenario, columns=["plan_index", "step_time_s", "memory_bytes", "mfu"]):
        fits = np.flatnonzero(_of(batch, "memory_bytes") <= capacity_bytes)
        n_fit += len(fits)
        n_all += batch.num_rows
        if not len(fits):
            continue
        key, step = _of(batch, by)[fits], _of(batch, "step_time_s")[fits]
        fastest_s = min(fastest_s, float(step.min()))
        best_mfu = max(best_mfu, float(_of(batch, "mfu")[fits].max()))
        near = np.flatnonzero(key <= best[-1, 0]) if len(best) == n_rows else np.arange(len(key))
        index = _of(batch, "plan_index")[fits][near].astype(np.float64)
        best = np.concatenate([best, np.column_stack([key[near], index, step[near]])])
        best = best[np.lexsort((best[:, 1], best[:, 2], best[:, 0]))[:n_rows]]
    return Leaders(best[:, 1].astype(np.int64), best[:, 2], n_fit, n_all, fastest_s, best_mfu)


def survey(
    result: Result,
    scenario: str,
    found: Leaders,
    *,
    capacity_bytes: float,
    memory_step_bytes: float,
    told_apart_s: float,
) -> Survey:
    """Every row in its mesh, its cell and against the front; those of ``told_apart_s`` or less are counted."""
    seen = Survey()
    filtered = ParetoFilter()
    candidates: list[Array] = []
    mfu_step = found.best_mfu * (1 + 1e-9) / ROWS
    for batch in result.batches(scenario, columns=["plan_index", *MESH, "step_time_s", "memory_bytes", "mfu"]):
        step, memory = _of(batch, "step_time_s"), _of(batch, "memory_bytes")
        _count_cells(seen, memory / memory_step_bytes, _of(batch, "mfu") / mfu_step)
        fits = np.flatnonzero(memory <= capacity_bytes)
        if not len(fits):
            continue
        step, memory, index = step[fits], memory[fits], _of(batch, "plan_index")[fits]
        seen.n_near += int(np.count_nonzero(step <= NEAR_BEST * found.fastest_s))
        seen.n_not_told_apart += int(np.count_nonzero(step <= told_apart_s))
        new = filtered.candidates(step, memory)
        candidates.append(np.column_stack([step[new], memory[new], index[new].astype(np.float64)]))
        _best_of_meshes(seen, batch, fits, step, index)
    if candidates:
        every = np.concatenate(candidates)
        on_front = every[front(every[:, 0], every[:, 1])]
        seen.front = on_front[np.argsort(on_front[:, 1], kind="stable"), 2].astype(np.int64)
    return seen


def _count_cells(seen: Survey, column: Array, row: Array) -> None:
    inside = (column < COLUMNS) & (row < ROWS)
    cell = row[inside].astype(np.int64) * COLUMNS + column[inside].astype(np.int64)
    seen.counts += np.bincount(cell, minlength=ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    seen.n_beyond += int(np.count_nonzero(~inside))


def _best_of_meshes(seen: Survey, batch: pa.RecordBatch, fits: Index, step: Array, index: Index) -> None:
    """Let the fastest row of each mesh in a batch compete; of equals the first in the space."""
    mesh = np.column_stack([_of(batch, knob)[fits] for knob in MESH])
    radix = np.concatenate([[1], np.cumprod(mesh.max(axis=0)[:0:-1].astype(np.float64) + 1)])[::-1]
    order = np.lexsort((index, step, mesh @ radix))
    code = (mesh @ radix)[order]
    first = np.flatnonzero(np.concatenate([[True], code[1:] != code[:-1]]))
    n_rows = np.diff(np.append(first, len(code)))
    for position, count in zip(order[first], n_rows, strict=True):
        key = tuple(int(degree) for degree in mesh[position])
        found = MeshBest(int(index[position]), float(step[position]), int(count))
        known = seen.meshes.get(key)
        if known is not None:
            best = min(known, found, key=lambda one: (one.step_time_s, one.index))
            found = MeshBest(best.index, best.step_time_s, known.n_rows + found.n_rows)
        seen.meshes[key] = found


def ranks_of(result: Result, scenario: str, rows: Iterable[Row], *, by: str, capacity_bytes: float) -> dict[int, int]:
    """The rank of each of ``rows`` among all that fit, by plan index; ``by`` is the step time or the memory."""
    places = [(row[by], row["step_time_s"], row["plan_index"]) for row in rows]
    ahead = np.zeros(len(places), np.int64)
    for batch in result.batches(scenario, columns=["plan_index", "step_time_s", "memory_bytes"]):
        fits = _of(batch, "memory_bytes") <= capacity_bytes
        key, step, index = (_of(batch, column)[fits] for column in (by, "step_time_s", "plan_index"))
        for position, (own_key, own_step, own_index) in enumerate(places):
            first_of_equals = (step < own_step) | ((step == own_step) & (index < own_index))
            ahead[position] += np.count_nonzero((key < own_key) | ((key == own_key) & first_of_equals))
    return {index: int(count) + 1 for (_, _, index), count in zip(places, ahead, strict=True)}


def rows_at(result: Result, scenario: str, wanted: Iterable[int]) -> dict[int, Row]:
    """The rows of the plans ``wanted``, by plan index."""
    numbers = np.unique(np.fromiter(wanted, np.int64))
    found: dict[int, Row] = {}
    for batch in result.batches(scenario):
        at = np.flatnonzero(np.isin(_of(batch, "plan_index"), numbers, assume_unique=True))
        if len(at):
            found |= {row["plan_index"]: row for row in batch.take(pa.array(at)).to_pylist()}
    if len(found) < len(numbers):
        raise DlcalcError(f"{result.directory}: plans of {scenario} are gone; was the result written anew meanwhile?")
    return found


def knobs_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs of a row, as people write them."""
    return {knob: row[knob] for knob in KNOBS}


def _of(batch: pa.RecordBatch, column: str) -> Any:  # noqa: ANN401 - pyarrow has no types
    return batch.column(column).to_numpy()
