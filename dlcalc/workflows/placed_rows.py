"""Plans of placed meshes as rows: what they would take on paper beside what they take on their nodes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlcalc.costmodel.placement import Crossing, PlacedRates
from dlcalc.costmodel.plans import KNOBS, value_of
from dlcalc.results.placed import KINDS
from dlcalc.results.schema import COLUMNS
from dlcalc.search.found import Leaders
from dlcalc.search.space import Scenario
from dlcalc.workflows.placed_mesh import PLACED_PLANS, PlacedMesh, plans_per_mesh
from dlcalc.workflows.sweep import Index, rows_of

AS_PLACED = ("step_time_s", "step_time_low_s", "step_time_high_s", "mfu", "hfu", "tokens_per_s_per_device")
"""Quantities that placing changes."""


def ranks_of(scenario: Scenario, leaders: Leaders) -> dict[int, int]:
    """Rank without placement of the fastest plans, by plan index; estimated as the placed ones are, row by row."""
    index = leaders.best(PLACED_PLANS, "step_time").index
    if not len(index):
        return {}
    order = np.lexsort((index, rows_of(scenario, index)["step_time_s"]))
    return {int(plan): position + 1 for position, plan in enumerate(index[order])}


def placed_rates_of(scenario: Scenario, index: Index, meshes: Mapping[int, PlacedMesh]) -> PlacedRates:
    """The links of plans of several meshes, row by row."""
    plans, rows = scenario.rows(index), index // plans_per_mesh(scenario)
    columns = {kind: (np.empty(len(index)), np.empty(len(index))) for kind in KINDS}
    for row in np.unique(rows):
        here = np.flatnonzero(rows == row)
        rates = meshes[int(row)].rates(scenario, plans.take(here))
        for kind, (rate, latency) in columns.items():
            crossing: Crossing = getattr(rates, kind)
            rate[here], latency[here] = crossing.bytes_per_s_per_device, crossing.latency_s
    return PlacedRates(**{kind: Crossing(*arrays) for kind, arrays in columns.items()})


def placed_rows(
    scenario: Scenario, index: Index, meshes: Mapping[int, PlacedMesh], rank: Mapping[int, int]
) -> tuple[Mapping[str, Any], ...]:
    """Rows of ``plans.parquet``, fastest as placed first; ties in the order of the space."""
    rates = placed_rates_of(scenario, index, meshes)
    paper, placed = rows_of(scenario, index), rows_of(scenario, index, rates)
    order = np.lexsort((index, placed["step_time_s"]))
    links = {
        f"{kind}_{what}": getattr(getattr(rates, kind), what)
        for kind in KINDS
        for what in ("bytes_per_s_per_device", "latency_s")
    }
    numbers = {f"placed_{name}": placed[name] for name in AS_PLACED} | links
    fixed = constants_of(scenario)
    return tuple(
        {
            **fixed,
            **{column.name: float(paper[column.name][at]) for column in COLUMNS if column.kind == "quantity"},
            **{knob: value_of(knob, float(paper[knob][at])) for knob in KNOBS},
            **{name: float(values[at]) for name, values in numbers.items()},
            "plan_index": int(index[at]),
            "rank": rank.get(int(index[at])),
            "placed_rank": position + 1,
            "placement": meshes[int(index[at]) // plans_per_mesh(scenario)].number,
        }
        for position, at in enumerate(order)
    )


def constants_of(scenario: Scenario) -> dict[str, str | int]:
    """The columns that are the same in every row."""
    return {
        "scenario": scenario.name,
        "model": scenario.model.name,
        "hardware": scenario.hardware.name,
        "devices": scenario.devices,
        "precision": scenario.recipe.precision,
        "framework": scenario.recipe.framework.name,
        "seq_len": scenario.recipe.seq_len,
        "global_batch": scenario.recipe.global_batch,
    }
