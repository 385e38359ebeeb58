"""What a study with a ``search`` section would do, from a few trials that are really made, in memory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from dlcalc.report.summary import DryRun, DryRunSampling, DryRunVariable
from dlcalc.search.coordinates import REDO
from dlcalc.search.sampled import open_sampled_study, shown_storage
from dlcalc.search.space import Scenario
from dlcalc.search.variables import Choice, Variable
from dlcalc.specs.sampling import DEFAULT_TIMEOUT_S, SearchSpec
from dlcalc.specs.space import SpaceSpec
from dlcalc.workflows import designs as designing
from dlcalc.workflows import sampled as sampling

TRIED_BATCHES = 4
"""The last is timed: by then samplers have left their random beginning."""


def with_sampling(counts: DryRun, space: SpaceSpec, scenarios: Sequence[Scenario], *, bytes_per_row: int) -> DryRun:
    """``counts`` of a grid, corrected for a study that is sampled."""
    spec = space.search
    assert spec is not None
    if spec.measured:
        said = _said(counts, spec, "runs", {}, most=0)
        return {
            **counts,
            "sampling": {**said, "command": spec.command, "timeout_s": spec.timeout_s or DEFAULT_TIMEOUT_S},
        }
    if spec.samples_plans:
        return _of_plans(counts, spec, scenarios, bytes_per_row)
    return _of_designs(counts, space, spec, scenarios)


def _of_plans(counts: DryRun, spec: SearchSpec, scenarios: Sequence[Scenario], bytes_per_row: int) -> DryRun:
    every = {scenario.name: sampling.coordinates_of(scenario, spec) for scenario in scenarios}
    folded = any(coordinates.folded for coordinates in every.values())
    most = max(scenario.shape[REDO] for scenario in scenarios) if folded else 1
    largest = max(scenarios, key=lambda scenario: scenario.n_plans)
    n_rows = min(spec.trials * most * len(scenarios), counts["n_plans"])
    return {
        **counts,
        "seconds": _trial_s(largest, spec) * spec.trials * len(scenarios),
        "result_bytes": float(n_rows * bytes_per_row),
        "sampling": _said(counts, spec, "plans", {name: one.all for name, one in every.items()}, most),
    }


def _trial_s(scenario: Scenario, spec: SearchSpec) -> float:
    """Time of one trial: asked for, estimated, told."""
    in_memory = spec.model_copy(update={"storage": None})
    coordinates = sampling.coordinates_of(scenario, spec)
    study = open_sampled_study(in_memory, "dry run", coordinates.all, {}, journal="")
    began = time.perf_counter()
    for _ in range(TRIED_BATCHES):
        began = time.perf_counter()
        sampling.one_batch(scenario, in_memory, study, coordinates, sampling.BATCH)
    return (time.perf_counter() - began) / sampling.BATCH


def _of_designs(counts: DryRun, space: SpaceSpec, spec: SearchSpec, scenarios: Sequence[Scenario]) -> DryRun:
    families = [designing.family_of(space, scenario) for scenario in scenarios]
    variables = {family.base.name: family.variables for family in families}
    seconds = 0.0
    for family in families:
        began = time.perf_counter()
        designing.best_of(family.base, spec)
        seconds += (time.perf_counter() - began) * spec.trials
    written = 1 + designing.MOST_DESIGNS
    return {
        **counts,
        "seconds": seconds + written * counts["seconds"],
        "result_bytes": written * counts["result_bytes"],
        "sampling": _said(counts, spec, families[0].kind, variables, max(scenario.n_plans for scenario in scenarios)),
    }


def _said(
    counts: DryRun, spec: SearchSpec, kind: str, variables: dict[str, tuple[Variable, ...]], most: int
) -> DryRunSampling:
    batch = {"plans": sampling.BATCH, "runs": 1}.get(kind, designing.BATCH)
    return {
        "kind": kind,
        "sampler": None if spec.measured else spec.sampler_name,
        "objectives": list(spec.goals),
        "n_trials": spec.trials,
        "batch": spec.batch or batch,
        "storage": shown_storage(spec.storage or ("journal" if spec.measured else None)),
        "variables": {name: [_variable(one) for one in several] for name, several in variables.items()},
        "n_points": {name: _n_points(several) for name, several in variables.items()},
        "most_plans_per_trial": most,
        "seconds_of_all_plans": counts["seconds"],
        "command": None,
        "timeout_s": None,
    }


def _variable(variable: Variable) -> DryRunVariable:
    if isinstance(variable, Choice):
        return {"name": variable.name, "values": list(variable.values), "low": None, "high": None}
    return {"name": variable.name, "values": None, "low": variable.low, "high": variable.high}


def _n_points(variables: Sequence[Variable]) -> int | None:
    """Combinations of values; None where a variable has any value between two."""
    sizes = []
    for variable in variables:
        if isinstance(variable, Choice):
            sizes.append(len(variable.values))
        elif variable.whole:
            sizes.append(int(variable.high - variable.low) + 1)
        else:
            return None
    return math.prod(sizes)
