"""Points of a sampler stand for plans: all that can run, each once, the nearest first."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.costmodel.plans import value_of
from dlcalc.search.coordinates import RECOMPUTATION, REDO, Coordinates, runs
from dlcalc.search.exhaustive import evaluate
from tests.scenarios import _scenario


def plan(scenario, index):
    plans = scenario.rows(np.array([index]))
    return {knob: value_of(knob, float(getattr(plans, knob)[0])) for knob in plans.__dataclass_fields__}


@pytest.mark.parametrize("study", ["dense", "moe"])
def test_what_runs_is_what_the_search_does_not_refuse(study):
    scenario = _scenario(study, "auto")
    for row in range(0, scenario.shape[0], 5):
        expected = np.broadcast_to(evaluate(scenario, row, row + 1).runs, (1, *scenario.shape[1:]))[0]
        assert np.array_equal(runs(scenario, row), expected)


@pytest.mark.parametrize("folded", [True, False])
def test_every_plan_that_runs_is_taken_once(folded):
    scenario = _scenario("dense", "auto")
    coordinates = Coordinates(scenario, folded=folded)
    random = np.random.default_rng(0)
    taken = []
    while True:
        point = {choice.name: choice.values[random.integers(len(choice.values))] for choice in coordinates.all}
        plans = coordinates.take(point)
        if not len(plans):
            break
        taken += plans.tolist()
    every = [np.flatnonzero(runs(scenario, row)) + row * runs(scenario, row).size for row in range(scenario.shape[0])]
    assert sorted(taken) == np.concatenate(every).tolist()


def test_a_point_that_is_a_plan_stands_for_it():
    scenario = _scenario("dense", "auto")
    random = np.random.default_rng(1)
    for row in random.integers(0, scenario.shape[0], 20).tolist():
        possible = np.flatnonzero(runs(scenario, row))
        if not len(possible):
            continue
        index = int(random.choice(possible)) + row * runs(scenario, row).size
        coordinates = Coordinates(scenario, folded=False)
        own = plan(scenario, index)
        redo = int(np.unravel_index(index, scenario.shape)[REDO])
        point = {choice.name: own.get(choice.name) for choice in coordinates.all}
        point[RECOMPUTATION] = int(coordinates.redo_rank[redo])
        assert coordinates.take(point).tolist() == [index]


def test_a_folded_point_stands_for_every_amount_of_recomputation():
    scenario = _scenario("dense", "auto")
    coordinates = Coordinates(scenario)
    plans = [plan(scenario, index) for index in coordinates.take({"tp": 2, "pp": 2}).tolist()]
    assert len({(one["recompute"], one["recompute_layers"]) for one in plans}) == len(plans) > 3
    assert len({(one["tp"], one["pp"], one["micro_batch"], one["split"]) for one in plans}) == 1
    assert (plans[0]["tp"], plans[0]["pp"]) == (2, 2)


def test_what_others_took_is_not_taken():
    scenario = _scenario("dense", "auto")
    first = Coordinates(scenario).take({"tp": 4})
    other = Coordinates(scenario)
    other.mark(first.tolist())
    assert not set(other.take({"tp": 4}).tolist()) & set(first.tolist())


def test_constraints_of_the_user_count():
    from dataclasses import replace

    scenario = replace(_scenario("dense", "auto"), constraints=("tp >= 4",))
    assert plan(scenario, Coordinates(scenario).take({"tp": 1})[0])["tp"] == 4
