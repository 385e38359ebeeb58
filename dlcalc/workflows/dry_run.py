"""How many plans a space has, and what searching them would take. Writes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from dlcalc.hardware_registry import HardwareRegistry, hardware_search_path
from dlcalc.report.summary import DryRun
from dlcalc.search.exhaustive import BLOCK_PLANS, search_block
from dlcalc.search.study import scenarios_of
from dlcalc.specs.load import load_spec, told_by_line
from dlcalc.specs.space import SpaceSpec
from dlcalc.workflows.search import MOST_ROWS
from dlcalc.workflows.search_summary import LEADERS

BYTES_PER_ROW = 48
"""Of a compressed row, as measured by benchmarks/write_speed.py."""


def dry_run(space_file: Path, *, out: Path | str | None = None, hardware_dirs: Sequence[Path] = ()) -> DryRun:
    """Count the space and estimate time and size of the result, from one block actually evaluated."""
    space = load_spec(space_file, SpaceSpec)
    with told_by_line(space_file):
        scenarios = scenarios_of(
            space, space_file.parent, HardwareRegistry(folders=hardware_search_path(hardware_dirs))
        )
    n_plans = sum(scenario.n_plans for scenario in scenarios)
    largest = max(scenarios, key=lambda scenario: scenario.n_plans)
    start, stop = next(largest.blocks(BLOCK_PLANS))
    began = time.perf_counter()
    search_block(largest, start, stop, keep=LEADERS)
    per_plan = (time.perf_counter() - began) / (largest.n_plans / largest.shape[0] * (stop - start))
    axes = ("mesh", "data", "pipeline", "micro_batch", "recompute", "tensor")
    counts: DryRun = {
        "study": space.study,
        "n_plans": n_plans,
        "seconds": per_plan * n_plans,
        "result_bytes": float(min(n_plans, MOST_ROWS) * BYTES_PER_ROW),
        "result": str(out or Path("results") / space.study),
        "scenarios": [
            {
                "name": scenario.name,
                "model": scenario.model.name,
                "hardware": scenario.hardware.name,
                "devices": scenario.devices,
                "precision": scenario.recipe.precision,
                "n_plans": scenario.n_plans,
                "axes": dict(zip(axes, scenario.shape, strict=True)),
            }
            for scenario in scenarios
        ],
    }
    if space.search is None:
        return counts
    from dlcalc.workflows.sampled_dry_run import with_sampling

    return with_sampling(counts, space, scenarios, bytes_per_row=BYTES_PER_ROW)
