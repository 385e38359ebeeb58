"""A row of a result, found by its rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlcalc.costmodel.placement import Crossing, PlacedRates
from dlcalc.costmodel.plans import KNOBS, number
from dlcalc.errors import DlcalcError, UnknownNameError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.results.manifest import ScenarioOrigin
from dlcalc.results.placed import KINDS
from dlcalc.results.reader import Result
from dlcalc.results.storage import Location
from dlcalc.search.result_row import ResultRow
from dlcalc.search.run import Knob
from dlcalc.utils import units


def row_of(
    result: Result,
    path: Location,
    rank: int,
    scenario: str | None,
    registry: HardwareRegistry,
    *,
    by: str | None = None,
) -> ResultRow:
    """The row of rank ``rank``, as placed where it was; else by column ``by``, or as it was searched."""
    notes: list[str] = []
    name = scenario_name(result, scenario, notes)
    origin = result.origin(name)
    placed = result.placed_plans(name)
    row: Mapping[str, Any]
    if placed:
        if rank > len(placed):
            raise DlcalcError(f"{path}: --rank {rank}: {name} has {len(placed):,} placed plans")
        row = placed[rank - 1]
    else:
        row = _unplaced_row(result, path, name, rank, origin, by)
        if result.placed is not None:
            notes.append("nothing of this scenario was placed; estimated without placement")
    if not result.is_complete:
        notes.append("the search was not finished; this is the rank among what it has found so far")
    split = tuple(origin.space.get("custom_split") or ()) or None
    return ResultRow(
        name=f"{path.name} rank {rank}",
        scenario=name,
        devices=origin.devices,
        knobs={knob: float(row[knob]) if isinstance(row[knob], bool) else row[knob] for knob in KNOBS},
        model=origin.model,
        hardware=origin.hardware,
        recipe=origin.recipe,
        registry=registry,
        custom_split=split,
        memory_headroom=float(origin.space.get("memory_headroom", 0.0)),
        notes=tuple(notes),
        placed=_rates_in(row) if placed else None,
        placed_note=_placed_note(row, result) if placed else "",
    )


def _placed_note(row: Mapping[str, Any], result: Result) -> str:
    """What is to be known of a row of a placed result."""
    assert result.placed is not None
    paper = "not among the thousand best" if row["rank"] is None else f"rank {row['rank']}"
    return (
        f"placed on {result.placed.topology}: every group has the link that it crosses there; without placement "
        f"{paper}, with {units.duration(row['step_time_s'], 4)} per step"
    )


def _rates_in(row: Mapping[str, Any]) -> PlacedRates:
    """The links that a placed row was estimated with."""
    return PlacedRates(
        **{
            kind: Crossing(number(row[f"{kind}_bytes_per_s_per_device"]), number(row[f"{kind}_latency_s"]))
            for kind in KINDS
        }
    )


def _unplaced_row(
    result: Result, path: Location, scenario: str, rank: int, origin: ScenarioOrigin, by: str | None
) -> Mapping[str, Any]:
    """The row of rank ``rank`` by column ``by``, else as the search ranked it."""
    by = by or ("memory_bytes" if result.settings().get("sort") == "memory" else "step_time_s")
    capacity = origin.hardware.device.hbm_bytes * (1.0 - float(origin.space.get("memory_headroom", 0.0)))
    index, n_rows = _index_of_rank(result, scenario, rank, by, capacity)
    if index is None:
        raise DlcalcError(f"{path}: --rank {rank}: {scenario} has {n_rows:,} rows that fit")
    return _knobs_at(result, scenario, index)


def scenario_name(result: Result, wanted: str | None, notes: list[str]) -> str:
    """The scenario called so, or the only one whose name it is a part of; unless told, the first one that has rows."""
    names = result.scenarios
    if wanted is not None:
        if wanted in names:
            return wanted
        parts = [name for name in names if wanted.casefold() in name.casefold()]
        if len(parts) == 1:
            return parts[0]
        if parts:
            raise DlcalcError(f"--scenario {wanted}: is part of {len(parts)} names: {'; '.join(parts)}")
        raise UnknownNameError("scenario", wanted, names)
    for name in names:
        if any(shard.n_rows for shard in result.shards(name)):
            if len(names) > 1:
                notes.append(f"scenario 1 of {len(names)} with rows; choose another with --scenario")
            return name
    raise DlcalcError(f"{result.directory}: no plan of any scenario fits; there is no row to look at")


def _index_of_rank(result: Result, scenario: str, rank: int, by: str, capacity_bytes: float) -> tuple[int | None, int]:
    """Plan index of the rank-th best row that fits, of equals the faster one first; and how many rows fit."""
    best = np.empty((0, 3))
    n_fit = 0
    for batch in result.batches(scenario, columns=["plan_index", "step_time_s", "memory_bytes"]):
        fits = batch.column("memory_bytes").to_numpy() <= capacity_bytes
        n_fit += int(np.count_nonzero(fits))
        found = [batch.column(name).to_numpy()[fits].astype(np.float64) for name in (by, "step_time_s", "plan_index")]
        best = np.concatenate([best, np.column_stack(found)])
        best = best[np.lexsort((best[:, 2], best[:, 1], best[:, 0]))[:rank]]
    return (int(best[rank - 1, 2]) if len(best) >= rank else None), n_fit


def _knobs_at(result: Result, scenario: str, index: int) -> dict[str, Knob]:
    """Knobs of the row of plan ``index``."""
    for batch in result.batches(scenario, columns=["plan_index", *KNOBS]):
        at = np.flatnonzero(batch.column("plan_index").to_numpy() == index)
        if len(at):
            row = batch.slice(int(at[0]), 1).to_pylist()[0]
            return {knob: float(row[knob]) if isinstance(row[knob], bool) else row[knob] for knob in KNOBS}
    raise DlcalcError(f"{result.directory}: plan {index} of {scenario} is gone; was the result written anew meanwhile?")
