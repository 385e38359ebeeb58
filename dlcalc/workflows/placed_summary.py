"""What is said of placed plans: the best of them, what their places add, and how the order changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.plans import KNOBS
from dlcalc.report.summary import PlacedRow, PlacedSummary
from dlcalc.results.placed import KINDS
from dlcalc.search.space import Scenario
from dlcalc.workflows.placed_mesh import PlacedScenario, Placing
from dlcalc.workflows.placed_rows import AS_PLACED, placed_rates_of
from dlcalc.workflows.search_summary import breakdown
from dlcalc.workflows.sweep import estimate_rows

OF_EXPERTS = ("etp", "ep", "expert_shard")
PLACED_NUMBERS = (
    *("plan_index", "rank", "placed_rank", "placement", "step_time_s", "mfu", "memory_bytes", "headroom_bytes"),
    *(f"placed_{name}" for name in AS_PLACED),
)


def placed_summary(scenario: Scenario, placing: Placing, found: PlacedScenario, top: int) -> PlacedSummary:
    """What the report says of placed plans."""
    usable = placing.fabric.candidates()
    rows = [_placed_row(scenario, found, row) for row in found.plans[:top]]
    first = next((row for row in found.plans if row["rank"] == 1), None)
    best = found.mesh_of(scenario, rows[0]["plan_index"]) if rows else None
    return {
        "topology": placing.topology,
        "n_nodes": len(placing.fabric.nodes),
        "n_free_nodes": len(usable),
        "without_data": [node.name for node in placing.fabric.without_data()],
        "why_none": found.why_none or None,
        "n_meshes": len(found.meshes),
        "n_placements": found.n_placements,
        "not_placed": dict(found.not_placed),
        "n_faster_on_paper": found.n_faster_on_paper,
        "order_changed": [row["plan_index"] for row in found.plans[:top]]
        != [row["plan_index"] for row in sorted(found.plans, key=_paper_order)[:top]],
        "best": rows,
        "first_on_paper": None if first is None else _placed_row(scenario, found, first),
        "breakdown": None if not rows else breakdown(_estimate(scenario, found, rows[0]["plan_index"])),
        "rings": [list(ring) for ring in best.rings] if best else [],
        "machines_per_node": len(best.rings[0]) // best.placement.job.ring_nodes if best else 1,
    }


def _paper_order(row: Mapping[str, Any]) -> float:
    return np.inf if row["rank"] is None else row["rank"]


def _estimate(scenario: Scenario, found: PlacedScenario, plan: int) -> Estimate:
    index = np.array([plan], dtype=np.int64)
    return estimate_rows(scenario, index, placed_rates_of(scenario, index, found.meshes))


def _placed_row(
    scenario: Scenario,
    found: PlacedScenario,
    row: Mapping[str, Any],
) -> PlacedRow:
    mesh = found.mesh_of(scenario, row["plan_index"])
    index = np.array([row["plan_index"]], dtype=np.int64)
    before = breakdown(estimate_rows(scenario, index))["time_s"]
    after = breakdown(_estimate(scenario, found, row["plan_index"]))["time_s"]
    grown = {term: after.get(term, 0.0) - before.get(term, 0.0) for term in {**after, **before}}
    nic = scenario.hardware.fabric.nic_bytes_per_s_per_device
    shown: dict[str, Any] = {
        **{name: row[name] for name in (*KNOBS, *PLACED_NUMBERS)},
        "hops": mesh.placement.cost_hops,
        "lower_bound_hops": mesh.placement.lower_bound_hops,
        "proved_optimal": mesh.placement.proved_optimal,
        "added_s": {term: seconds for term, seconds in grown.items() if seconds != 0.0},
        "slower_links": {
            kind: row[f"{kind}_bytes_per_s_per_device"] / nic
            for kind in KINDS
            if row[f"{kind}_bytes_per_s_per_device"] < nic and (scenario.model.is_moe or kind not in OF_EXPERTS)
        },
    }
    return cast("PlacedRow", shown)
