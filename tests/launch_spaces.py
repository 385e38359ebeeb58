"""The best plans of the shipped search spaces, as jobs of a trainer: what people will really launch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.launch.job import Job
from dlcalc.search.exhaustive import evaluate
from dlcalc.search.run import Run
from dlcalc.search.space import Scenario
from dlcalc.search.study import scenarios_of
from dlcalc.specs.load import load_spec
from dlcalc.specs.space import SpaceSpec
from dlcalc.workflows.launch import job_of

SPACES = sorted((Path(__file__).parents[1] / "search_spaces").glob("*.yaml"))
BLOCK_PLANS = 2**17


def best_jobs(target) -> Iterator[Job]:
    """The fastest plan of each space's first scenario that ``target`` can run; a space without one gives none."""
    for file in SPACES:
        space = load_spec(file, SpaceSpec)
        recipes = tuple(one.model_copy(update={"framework": None, "target": target}) for one in space.recipe)
        space = space.model_copy(update={"recipe": recipes, "target": target})
        scenario, *_ = scenarios_of(space, file.parent, HardwareRegistry())
        index = _fastest(scenario)
        if index is None:
            continue
        run = Run(
            name=file.stem,
            written={},
            model=scenario.model,
            hardware=scenario.hardware,
            recipe=scenario.recipe,
            plan=scenario.rows(np.array([index])).take(np.array(0)),
            custom_split=None,
        )
        yield job_of(run, target, name=file.stem)


def _fastest(scenario: Scenario) -> int | None:
    """Index of the fastest plan that fits; None: none does."""
    best, fastest = None, np.inf
    per_mesh = scenario.n_plans // scenario.shape[0]
    for start, stop in scenario.blocks(BLOCK_PLANS):
        found = evaluate(scenario, start, stop)
        shape = found.plans.shape
        times = np.where(np.broadcast_to(found.fits, shape), np.broadcast_to(found.step_time_s, shape), np.inf).ravel()
        position = int(np.argmin(times))
        if times[position] < fastest:
            best, fastest = start * per_mesh + position, float(times[position])
    return best
