"""Machines, shapes and cuts of the model, sampled; of each, every plan is estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlcalc.errors import DlcalcError
from dlcalc.report.summary import DesignRow, DesignSummary
from dlcalc.search.designs import Designs, designs_of
from dlcalc.search.exhaustive import BLOCK_PLANS, search_block
from dlcalc.search.found import Found
from dlcalc.search.goals import best_compromises, check_goals, values_of
from dlcalc.search.sampled import Finished, Said, SampledStudy, Told, open_sampled_study, shown_storage
from dlcalc.search.space import Scenario
from dlcalc.search.stage_designs import stage_designs
from dlcalc.search.variables import Interval, Point
from dlcalc.specs.sampling import SearchSpec
from dlcalc.specs.space import SpaceSpec
from dlcalc.workflows.sampled import identity_of, study_name
from dlcalc.workflows.sweep import Progress, estimate_rows

BATCH = 8
MOST_DESIGNS = 8
"""Of one front, whose plans are searched and written."""
TRYING = "trying designs"


@dataclass(frozen=True)
class _Best:
    """The best plan of a scenario, or the one that comes nearest to fitting."""

    values: tuple[float, ...]
    excess: float


def design_scenarios(
    space: SpaceSpec, scenarios: Sequence[Scenario], *, journal: Path, progress: Progress | None
) -> tuple[tuple[Scenario, ...], list[DesignSummary]]:
    """The scenarios as they are, each followed by its best designs; and how these were found."""
    spec = space.search
    assert spec is not None
    chosen: list[Scenario] = []
    said: list[DesignSummary] = []
    families = [family_of(space, base) for base in scenarios]  # a mistake is found before any work is done
    for designs in families:
        base = designs.base
        name = study_name(spec, space.study, base, len(scenarios))
        study = _study_of(designs, spec, name, journal)
        with closing(study):
            trials = _tried(designs, spec, study, progress)
        found, summary = _chosen(designs, spec, study, trials)
        chosen += [base, *found]
        said.append(summary)
    return tuple(chosen), said


def family_of(space: SpaceSpec, base: Scenario) -> Designs:
    """What is sampled around a scenario."""
    assert space.search is not None
    design = space.search.design
    if design is not None:
        return designs_of(base, design, space.ranges)
    return stage_designs(base, cuts=space.search.uneven_stages, recomputes=space.search.recompute_per_stage)


def _study_of(designs: Designs, spec: SearchSpec, name: str, journal: Path) -> SampledStudy:
    """The study of these designs, which begins with those that are known."""
    identity = {"kind": designs.kind, **identity_of(designs.base, spec)}
    if spec.design is not None:
        identity["price"] = spec.design.usd_per_device_hour
        identity["model_shapes"] = spec.design.model.model_dump(mode="json") if spec.design.model else None
    is_priced = spec.design is not None and spec.design.usd_per_device_hour is not None
    check_goals(designs.base, spec.goals, is_priced=is_priced)
    study = open_sampled_study(spec, name, designs.variables, identity, journal=str(journal))
    if study.is_new:
        study.suggest_first(designs.first)
    return study


def _tried(designs: Designs, spec: SearchSpec, study: SampledStudy, progress: Progress | None) -> Sequence[Finished]:
    """Ask for designs until the study has its trials."""
    known: dict[tuple[object, ...], _Best | None] = {}
    while (done := len(study.finished())) < spec.trials:
        if progress:
            progress(done, spec.trials, TRYING)
        for asked in study.ask(min(spec.batch or BATCH, spec.trials - done)):
            try:
                scenario = designs.made(asked.point, f"design {asked.number}")
            except DlcalcError as error:
                study.tell(asked, Told(problem=str(error)))
                continue
            same = tuple(designs.described(scenario, asked.point).items())  # several points may stand for one shape
            best = known[same] if same in known else best_of(scenario, spec)
            known[same] = best
            if best is None:
                study.tell(asked, Told(problem="no plan can run"))
                continue
            study.tell(asked, Told(best.values, best.excess, _said(designs, spec, scenario, asked.point)))
    return study.finished()


def _said(designs: Designs, spec: SearchSpec, scenario: Scenario, point: Point) -> Said:
    """What is known of a design beside its parameters."""
    as_parameters = {variable.name for variable in designs.variables if isinstance(variable, Interval)}
    said = {name: value for name, value in designs.described(scenario, point).items() if name not in as_parameters}
    price = scenario.hardware.price
    return said | ({"usd_per_device_hour": f"{price.usd_per_device_hour:.4g}"} if price and spec.design else {})


def best_of(scenario: Scenario, spec: SearchSpec) -> _Best | None:
    """The objectives of the fastest plan that fits; of the nearest miss where none does; None where none can run."""
    found = Found()
    for start, stop in scenario.blocks(BLOCK_PLANS):
        part = search_block(scenario, start, stop, keep=1, bound=found.bound(1, "step_time"), fastest=found.fastest)
        found.add(part, keep=1, key="step_time")
    index = found.leaders.index if len(found.leaders.index) else found.misses.index[:1]
    if not len(index):
        return None
    one = estimate_rows(scenario, index)
    step, memory, mfu = (np.broadcast_to(v, 1) for v in (one.step_time_s, one.memory_bytes, one.mfu_seconds))
    values = values_of(scenario, spec.goals, step, mfu, memory)[0]
    if not all(map(math.isfinite, values)):
        return None
    return _Best(tuple(values.tolist()), float(memory[0] / one.capacity_bytes - 1.0))


def _chosen(
    designs: Designs, spec: SearchSpec, study: SampledStudy, trials: Sequence[Finished]
) -> tuple[list[Scenario], DesignSummary]:
    """The designs that no other one beats in every objective, spread over the front where they are many."""
    fitting = [trial for trial in trials if not trial.told.problem and trial.told.excess <= 0]
    if not fitting:
        problems = {trial.told.problem for trial in trials if trial.told.problem}
        why = f" ({'; '.join(sorted(problems)[:3])})" if problems else "; all need more memory than their devices have"
        raise DlcalcError(f"search: no design of {designs.base.name} has a plan that fits{why}")
    front = best_compromises(spec.goals, np.array([trial.told.values for trial in fitting]))
    n_front = len(front)
    spread = front[np.unique(np.linspace(0, n_front - 1, min(n_front, MOST_DESIGNS)).round().astype(int))]
    scenarios, rows = [], []
    for trial in (fitting[position] for position in spread):
        scenario = designs.made(trial.point, f"design {trial.number}")
        variables = dict(designs.described(scenario, trial.point))
        values = dict(zip(spec.goals, trial.told.values, strict=True))
        rows.append(DesignRow(scenario=scenario.name, trial=trial.number, variables=variables, values=values))
        scenarios.append(scenario)
    unchanged = best_of(designs.base, spec) if _has_goals(designs.base, spec) else None
    fits = unchanged is not None and unchanged.excess <= 0
    return scenarios, {
        "scenario": designs.base.name,
        "kind": designs.kind,
        "sampler": spec.sampler_name,
        "seed": spec.seed or 0,
        "objectives": list(spec.goals),
        "study_name": study.name,
        "storage": shown_storage(spec.storage),
        "n_trials": len(trials),
        "n_trials_before": study.n_before,
        "n_trials_failed": sum(bool(trial.told.problem) for trial in trials),
        "n_front": n_front,
        "front": rows,
        "variables_unchanged": dict(designs.described(designs.base, {})),
        "unchanged": dict(zip(spec.goals, unchanged.values, strict=True)) if unchanged and fits else None,
    }


def _has_goals(scenario: Scenario, spec: SearchSpec) -> bool:
    """Whether the machine as it is has all that the objectives need, such as a price."""
    try:
        check_goals(scenario, spec.goals)
    except DlcalcError:
        return False
    return True
