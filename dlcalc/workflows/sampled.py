"""A study whose plans are sampled: asked for in batches, estimated together, told; then written like any other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.estimate import OUT_OF_MEMORY, Estimate
from dlcalc.costmodel.plans import KNOBS, Array, code_of, value_of
from dlcalc.errors import DlcalcError
from dlcalc.report.plan_words import plan_words
from dlcalc.report.summary import SampledSummary
from dlcalc.results.shard import ShardHeader, ShardWriter
from dlcalc.results.writer import StudyWriter
from dlcalc.search.coordinates import RECOMPUTATION, Coordinates
from dlcalc.search.exhaustive import Keep
from dlcalc.search.found import N_MISSES, NEAR_BEST, Found, Leaders, SortKey
from dlcalc.search.goals import best_compromises, check_goals, values_of
from dlcalc.search.pareto import front
from dlcalc.search.sampled import (
    Finished,
    SampledStudy,
    Told,
    open_sampled_study,
    shown_storage,
)
from dlcalc.search.space import Scenario
from dlcalc.search.variables import Point, Value
from dlcalc.specs.plan import PlanSection
from dlcalc.specs.sampling import SearchSpec
from dlcalc.utils.units import GIB
from dlcalc.workflows.search_summary import rows_of_plans
from dlcalc.workflows.sweep import Progress, estimate_rows, rows_of

Index = NDArray[np.int64]

BATCH = 16
SAMPLING = "sampling"
PLAN_INDICES = "plan_indices"
"""User attribute of a trial: the plans that were estimated for it."""
MOST_ON_FRONT = 50


@dataclass(frozen=True)
class Sampled:
    """What a sampler has seen of a scenario."""

    study: SampledStudy
    trials: Sequence[Finished]
    plans: Index
    """Estimated, each once, in the order of the space."""


def sample_scenario(
    scenario: Scenario, spec: SearchSpec, name: str, *, journal: Path, progress: Progress | None
) -> Sampled:
    """Ask, estimate and tell until the study has its trials."""
    check_goals(scenario, spec.goals)
    coordinates = coordinates_of(scenario, spec)
    known = [warm_point(plan, coordinates) for plan in spec.warm_start]
    study = open_sampled_study(spec, name, coordinates.all, identity_of(scenario, spec), journal=str(journal))
    with closing(study):
        if study.is_new:
            study.suggest_first(known)
        trials = _trials(scenario, spec, study, coordinates, progress)
    plans = np.unique(np.array([plan for trial in trials for plan in plans_of(trial)], dtype=np.int64))
    return Sampled(study, trials, plans)


def coordinates_of(scenario: Scenario, spec: SearchSpec) -> Coordinates:
    """What a sampler chooses; where the fastest plan is looked for alone, with every amount of recomputation."""
    coordinates = Coordinates(scenario, folded=len(spec.goals) == 1 and spec.goals[0] != "memory")
    if not coordinates.all:
        raise DlcalcError(f"{scenario.name}: leaves a sampler nothing to choose; leave out search")
    return coordinates


def _trials(
    scenario: Scenario, spec: SearchSpec, study: SampledStudy, coordinates: Coordinates, progress: Progress | None
) -> Sequence[Finished]:
    """Batch after batch until there are as many as wanted, or no plan is left."""
    seen = 0
    while True:
        trials = study.finished()
        coordinates.mark(plan for trial in trials[seen:] for plan in plans_of(trial))
        seen = len(trials)
        if progress:
            progress(min(seen, spec.trials), spec.trials, SAMPLING)
        missing = min(spec.batch or BATCH, spec.trials - seen)
        if missing <= 0 or not one_batch(scenario, spec, study, coordinates, missing):
            return study.finished()


def one_batch(scenario: Scenario, spec: SearchSpec, study: SampledStudy, coordinates: Coordinates, count: int) -> bool:
    """Ask for ``count`` points, estimate their plans together and tell; whether there was anything left to estimate."""
    asked = study.ask(count)
    taken = [(one, coordinates.take(one.point)) for one in asked]
    for one, plans in taken:
        if not len(plans):
            study.tell(one, Told(problem="every plan that can run was tried"))
    left = [(one, plans) for one, plans in taken if len(plans)]
    if not left:
        return False
    every = np.concatenate([plans for _, plans in left])
    found = estimate_rows(scenario, every)
    start = 0
    for one, plans in left:
        part = np.arange(start, start + len(plans))
        start += len(plans)
        study.tell(one, outcome(scenario, spec, found, plans, part))
    return len(left) == len(taken)


def outcome(scenario: Scenario, spec: SearchSpec, found: Estimate, plans: Index, part: Index) -> Told:
    """What a trial is told: its fastest plan that fits, or the one that needs the least memory where none does."""
    step, memory = (at(values, part, found) for values in (found.step_time_s, found.memory_bytes))
    excess = memory / found.capacity_bytes - 1.0
    fits = excess <= 0
    best = int(np.argmin(np.where(fits, step, np.inf)) if fits.any() else np.argmin(memory))
    values = values_of(scenario, spec.goals, step, at(found.mfu_seconds, part, found), memory)[best]
    knobs = {knob: value_of(knob, float(at(getattr(found.plans, knob), part, found)[best])) for knob in KNOBS}
    return Told(
        values=tuple(values.tolist()),
        excess=float(excess[best]),
        said={
            "plan": plan_words(knobs),
            "plan_index": int(plans[best]),
            PLAN_INDICES: plans.tolist(),
            "memory_gib": round(float(memory[best]) / GIB, 3),
        },
    )


def at(values: Array, part: Index, found: Estimate) -> Array:
    """``values`` of the rows ``part`` of an estimate."""
    return np.asarray(np.broadcast_to(values, found.plans.shape)[part])


def plans_of(trial: Finished) -> Iterable[int]:
    """The plans that were estimated for a trial."""
    plans = trial.told.said.get(PLAN_INDICES, [])
    return plans if isinstance(plans, list) else []


def identity_of(scenario: Scenario, spec: SearchSpec) -> dict[str, Any]:
    """What a study of Optuna is about, for telling whether it may be taken up."""
    return {
        "model": scenario.model.model_dump(mode="json"),
        "hardware": scenario.hardware.model_dump(mode="json"),
        "recipe": scenario.recipe.model_dump(mode="json"),
        "devices": scenario.devices,
        "axes": [{knob: values.tolist() for knob, values in axis.items()} for axis in scenario.axes],
        "constraints": list(scenario.constraints),
        "memory_headroom": scenario.memory_headroom,
        "custom_split": list(scenario.custom_split or ()),
        "goals": list(spec.goals),
        "objective": spec.objective,
    }


def warm_point(plan: PlanSection, coordinates: Coordinates) -> Point:
    """The knobs that a known plan names, each checked to be in the space."""
    point: dict[str, Value] = {}
    axes = {knob: codes for axis in coordinates.scenario.axes for knob, codes in axis.items()}
    sampled = {choice.name for choice in coordinates.all}
    for knob, value in plan.model_dump(exclude_none=True).items():
        possible = [value_of(knob, code) for code in np.unique(axes[knob]).tolist()]
        wanted = value_of(knob, code_of(knob, value))
        if wanted not in possible:
            listed = ", ".join(str(one) for one in possible)
            raise DlcalcError(f"search: warm_start: {knob} = {value} is not in the space, which has {listed}")
        if knob in sampled:
            point[knob] = wanted
    if RECOMPUTATION in sampled:
        point |= coordinates.amount_of_recomputation(plan.model_dump(exclude_none=True))
    return point


# ---- the result


def write_sampled(
    scenario: Scenario,
    sampled: Sampled,
    study: StudyWriter,
    header: ShardHeader,
    what: Keep,
    n_kept: int,
    key: SortKey,
) -> Found:
    """Write the plans that were estimated as the one file of their scenario."""
    found, fits = found_of(scenario, sampled.plans, n_kept, key)
    chosen = sampled.plans if what == "all" else fits
    if what == "top":
        chosen = np.sort(found.leaders.index)
    elif what == "pareto" and len(fits):
        rows = estimate_rows(scenario, fits)
        step, memory = (np.broadcast_to(v, len(fits)) for v in (rows.step_time_s, rows.memory_bytes))
        chosen = fits[front(step, memory)]
    with ShardWriter(study.directory, header, 0) as rows_file:
        if len(chosen):
            rows_file.write(rows_of(scenario, chosen))
        rows_file.describe(
            start=0, stop=scenario.n_plans, n_plans=found.n_plans, n_fit=found.n_fit, refused=found.refused
        )
    study.add(rows_file.record)
    return found


def found_of(scenario: Scenario, plans: Index, n_kept: int, key: SortKey) -> tuple[Found, Index]:
    """The plans ranked as an exhaustive search ranks all, and those of them that fit."""
    found = Found()
    if not len(plans):
        return found, plans
    rows = estimate_rows(scenario, plans)
    step, memory = (np.broadcast_to(v, len(plans)) for v in (rows.step_time_s, rows.memory_bytes))
    fits = memory <= rows.capacity_bytes
    every = Leaders(plans, step, memory)
    n_fit = int(np.count_nonzero(fits))
    found.n_plans = found.n_estimated = len(plans)
    found.n_fit, found.n_refused = n_fit, len(plans) - n_fit
    found.refused = Counter({OUT_OF_MEMORY: len(plans) - n_fit} if n_fit < len(plans) else {})
    found.leaders = every.take(fits).best(n_kept, key)
    found.keep_near(every.take(fits))
    found.n_near_counted = int(np.count_nonzero(step[fits] <= NEAR_BEST * found.fastest))
    if not n_fit:
        found.misses = every.best(N_MISSES, "memory")
    return found, plans[fits]


def sampled_summary(scenario: Scenario, spec: SearchSpec, sampled: Sampled) -> SampledSummary:
    """How the scenario was searched, and what no plan beats in every objective."""
    trials = sampled.trials
    return {
        "method": spec.method,
        "sampler": spec.sampler_name,
        "seed": spec.seed or 0,
        "objectives": list(spec.goals),
        "study_name": sampled.study.name,
        "storage": shown_storage(spec.storage),
        "n_trials": len(trials),
        "n_trials_before": sampled.study.n_before,
        "n_trials_failed": sum(bool(trial.told.problem) for trial in trials),
        "n_plans": len(sampled.plans),
        "n_plans_of_space": scenario.n_plans,
        "front": rows_of_plans(scenario, _front(scenario, spec, sampled)) if len(spec.goals) > 1 else [],
    }


def _front(scenario: Scenario, spec: SearchSpec, sampled: Sampled) -> Index:
    """The plans that fit and that no other one beats in every objective, the best in the first objective first."""
    _, fits = found_of(scenario, sampled.plans, 1, "step_time")
    if not len(fits):
        return fits
    rows = estimate_rows(scenario, fits)
    every = np.arange(len(fits))
    step, memory, mfu = (at(v, every, rows) for v in (rows.step_time_s, rows.memory_bytes, rows.mfu_seconds))
    return fits[best_compromises(spec.goals, values_of(scenario, spec.goals, step, mfu, memory))][:MOST_ON_FRONT]


def study_name(spec: SearchSpec, study: str, scenario: Scenario, n_scenarios: int) -> str:
    """One study of Optuna per scenario."""
    name = spec.study_name or study
    return name if n_scenarios == 1 else f"{name}: {scenario.name}"
