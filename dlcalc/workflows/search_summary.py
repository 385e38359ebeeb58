"""What is said of what a search found: totals; of each scenario the best plans, their rivals and what nearly fits."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlcalc.costmodel.estimate import OUT_OF_MEMORY, Estimate
from dlcalc.costmodel.plans import KNOBS, Index, value_of
from dlcalc.costmodel.prediction import budget_days, budget_usd
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.report.summary import Breakdown, Miss, PlanRow, ScenarioSummary, SortName, Summary
from dlcalc.results.schema import COLUMNS
from dlcalc.results.storage import Location
from dlcalc.search.executors import shared_out
from dlcalc.search.found import Found, Leaders, SortKey
from dlcalc.search.space import DEGREES, Scenario
from dlcalc.specs.space import SpaceSpec
from dlcalc.workflows.sweep import columns_of_rows, estimate_rows

LEADERS = 1000
"""Plans followed of each scenario, unless told otherwise."""
NEAR_ROWS = 20


def study_summary(
    space: SpaceSpec,
    sort: SortName,
    found: Mapping[int, Found],
    said: list[ScenarioSummary],
    directory: Location,
    seconds: float,
) -> Summary:
    """What is said of the whole study; ``said``: of each scenario."""
    n_plans = sum(f.n_plans for f in found.values())
    return {
        "study": space.study,
        "sort": sort,
        "n_plans": n_plans,
        "n_refused": sum(f.n_refused for f in found.values()),
        "n_fit": sum(f.n_fit for f in found.values()),
        "seconds": seconds,
        "plans_per_s": n_plans / seconds,
        "peak_rss_bytes": peak_rss_bytes(),
        "result": str(directory),
        "scenarios": said,
    }


def peak_rss_bytes() -> int:
    """Largest resident memory of this process and its workers so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return max(own, children) * unit


WORTH_SHARING = 64
"""Fewer scenarios are summed up sooner than another pool has started."""


def scenario_summaries(
    scenarios: Sequence[Scenario], found: Mapping[int, Found], top: int, key: SortKey, jobs: int | None, forks: bool
) -> list[ScenarioSummary]:
    """One per scenario, in order; many are shared out like the shards were."""
    tasks = [(scenario, found[position], top, key) for position, scenario in enumerate(scenarios)]
    if len(tasks) < WORTH_SHARING:
        return [_scenario_summary(*task) for task in tasks]
    return shared_out(_scenario_summary, tasks, jobs=jobs, forks=forks)


def _scenario_summary(scenario: Scenario, found: Found, top: int, key: SortKey) -> ScenarioSummary:
    best = found.leaders.best(top, key).index
    followed = found.leaders.best(LEADERS, "step_time") if key == "step_time" else Leaders.none()
    rivals = _rivals(scenario, followed)
    worth, near, missed = _worth_measuring(scenario, rivals), found.near.index[:NEAR_ROWS], _missed(found)
    estimated, (best_rows, worth_rows, near_rows, missed_rows) = _plan_rows(scenario, [best, worth, near, missed])
    recipe = scenario.recipe
    said: ScenarioSummary = {
        "name": scenario.name,
        "model": scenario.model.name,
        "hardware": scenario.hardware.name,
        "devices": scenario.devices,
        "precision": recipe.precision,
        "framework": recipe.framework.name,
        "seq_len": recipe.seq_len,
        "global_batch": recipe.global_batch,
        "mfu_convention": recipe.mfu_convention,
        "n_plans": found.n_plans,
        "n_fit": found.n_fit,
        "refused": dict(found.refused.most_common()),
        "best": best_rows,
        "breakdown": breakdown(estimated) if estimated and len(best) else None,
        "memory_usable_bytes": scenario.hardware.device.hbm_bytes,
        "memory_limit_bytes": scenario.hardware.device.hbm_bytes * (1.0 - scenario.memory_headroom),
        "n_not_told_apart": len(rivals.index),
        "worth_measuring": worth_rows,
        "n_within_2_percent": found.n_near,
        "within_2_percent": near_rows,
        "nearest_misses": _misses(scenario, missed_rows),
    }
    if len(rivals.index) == len(followed.index) < found.n_fit:
        said["more_not_told_apart"] = True
    return said


RELATIVE_SPREAD = 0.5
"""Share of an estimate's error that two plans of one scenario do not share; device, model and trainer are the same."""


def _rivals(scenario: Scenario, leaders: Leaders) -> Leaders:
    """The plans that cannot be told apart from the fastest: within what differs between plans of one scenario."""
    if not len(leaders.index):
        return leaders
    fastest = scenario.rows(leaders.index[:1])
    _, high = step_time_interval_factors(
        scenario.model, scenario.hardware, scenario.recipe, fastest, scenario.uncertainty
    )
    wide = float(np.broadcast_to(high, 1)[0]) - 1.0
    return leaders.take(leaders.step_time_s <= leaders.step_time_s[0] * (1.0 + RELATIVE_SPREAD * wide))


def _worth_measuring(scenario: Scenario, rivals: Leaders, most: int = 3) -> Index:
    """The fastest rival of each choice of degrees, the best first: what differs most is what a run decides."""
    row = rivals.index // (scenario.n_plans // scenario.shape[0])
    degrees = np.column_stack([scenario.axes[0][knob][row] for knob in DEGREES])
    _, first = np.unique(degrees, axis=0, return_index=True)
    return rivals.index[np.sort(first)[:most]]


def _plan_rows(scenario: Scenario, parts: Sequence[Index]) -> tuple[Estimate | None, list[list[PlanRow]]]:
    """The rows of each part, and the estimate of all of them in order: one call costs more than its rows."""
    index = np.concatenate(parts)
    if not len(index):
        return None, [[] for _ in parts]
    estimated = estimate_rows(scenario, index)
    columns = columns_of_rows(scenario, index, estimated)
    rows, start = [], 0
    for part in parts:
        rows.append(_ranked(scenario, columns, range(start, start + len(part))))
        start += len(part)
    return estimated, rows


def rows_of_plans(scenario: Scenario, index: Index) -> list[PlanRow]:
    """The plans of ``index`` as rows, ranked in the order given."""
    return _plan_rows(scenario, [index])[1][0]


def _ranked(scenario: Scenario, columns: Mapping[str, Any], positions: range) -> list[PlanRow]:
    recipe, hardware = scenario.recipe, scenario.hardware
    rows: list[PlanRow] = []
    for position in positions:
        row: dict[str, Any] = {"rank": position - positions.start + 1, **_knobs_at(columns, position)}
        for column in COLUMNS:
            if column.kind == "quantity":
                row[column.name] = float(columns[column.name][position])
        row["plan_index"] = int(columns["plan_index"][position])
        row["days"] = budget_days(recipe, row["step_time_s"])
        row["cost_usd"] = budget_usd(recipe, hardware, scenario.devices, row["step_time_s"])
        rows.append(row)  # type: ignore[arg-type]
    return rows


def _knobs_at(columns: Mapping[str, Any], position: int) -> dict[str, Any]:
    """The knobs of one row as people write them."""
    return {knob: value_of(knob, float(columns[knob][position])) for knob in KNOBS}


def breakdown(found: Estimate, position: int = 0) -> Breakdown:
    """Named terms of one plan: seconds of a step, bytes on its fullest stage."""
    shape = np.shape(found.step_time_s)

    def at(value: Any) -> float:  # noqa: ANN401 an array
        return float(np.broadcast_to(value, shape).reshape(-1)[position])

    time_s = {name.removesuffix("_s"): at(value) for name, value in found.step.terms().items()}
    memory = {name.removesuffix("_bytes"): at(value) for name, value in found.footprint.terms_of_peak().items()}
    return {
        "time_s": {name: value for name, value in time_s.items() if value > 0},
        "memory_bytes": {name: value for name, value in memory.items() if value > 0},
    }


def _missed(found: Found) -> Index:
    """Of a scenario in which nothing fits, what comes closest."""
    return found.misses.index[:0] if found.n_fit else found.misses.index


def _misses(scenario: Scenario, rows: Sequence[PlanRow]) -> list[Miss]:
    capacity = scenario.hardware.device.hbm_bytes * (1.0 - scenario.memory_headroom)
    misses: list[Any] = []
    for row in rows:
        knobs: dict[str, Any] = {knob: row[knob] for knob in KNOBS}  # type: ignore[literal-required]
        memory = row["memory_bytes"]
        over = {"memory_bytes": memory, "over_bytes": memory - capacity, "reasons": [OUT_OF_MEMORY]}
        misses.append(knobs | over)
    return misses
