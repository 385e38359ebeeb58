"""How far estimates are from the shipped measured runs, source by source. All bounds are in one table."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from dlcalc.workflows.validation import run_validation


class Bounds(NamedTuple):
    """The most an error may be, and the least a score; fractions. None: the source does not say."""

    median: float
    """Absolute relative error of step time."""
    p90: float
    memory_median: float | None = None
    memory_worst: float | None = None
    memory_verdicts_right: float = 1.0
    """Share of runs whose out-of-memory is as measured; 1.0 where all of them ran: none may be refused."""
    spearman: float | None = None
    """Mean over the sweeps of the source."""
    regret_at_1: float | None = None


BOUNDS = {
    "hagemann2023": Bounds(0.036, 0.097, memory_verdicts_right=0.965, spearman=0.945, regret_at_1=0.01),
    "vtrain_single": Bounds(0.04, 0.12, spearman=0.95, regret_at_1=0.05),
    "llmfoundry": Bounds(0.027, 0.065),
    "nemo_bridge": Bounds(0.028, 0.12, memory_verdicts_right=0.97),
    "simumax_b200": Bounds(0.035, 0.09, memory_median=0.01, memory_worst=0.03, spearman=0.95, regret_at_1=0.01),
    "torchtitan": Bounds(0.031, 0.17, memory_median=0.04, memory_worst=0.07, spearman=0.80, regret_at_1=0.01),
    "korthikanti2022": Bounds(0.016, 0.039),
    "narayanan2021": Bounds(0.028, 0.042),
    "mt_nlg": Bounds(0.05, 0.05),
    "bloom": Bounds(0.024, 0.034),
    "megatron_lm_readme": Bounds(0.04, 0.045),
}


@pytest.fixture(scope="module")
def summary():
    return run_validation()


@pytest.fixture(scope="module")
def by_source(summary):
    return {row["source"]: row for row in summary["sources"]}


def test_every_source_has_bounds(by_source):
    assert set(by_source) == set(BOUNDS)


@pytest.mark.parametrize("source", BOUNDS)
def test_step_times_are_as_measured(by_source, source):
    errors = by_source[source]["step_time"]
    assert errors["median"] <= BOUNDS[source].median
    assert errors["p90"] <= BOUNDS[source].p90


@pytest.mark.parametrize("source", [source for source, bounds in BOUNDS.items() if bounds.memory_median])
def test_memory_is_as_measured(by_source, source):
    errors = by_source[source]["memory"]
    assert errors["median"] <= BOUNDS[source].memory_median
    assert errors["worst"] <= BOUNDS[source].memory_worst


@pytest.mark.parametrize("source", BOUNDS)
def test_what_ran_is_said_to_fit_and_what_ran_out_of_memory_is_refused(by_source, source):
    assert by_source[source]["out_of_memory"]["accuracy"] >= BOUNDS[source].memory_verdicts_right


@pytest.mark.parametrize("source", [source for source, bounds in BOUNDS.items() if bounds.spearman])
def test_plans_are_ranked_as_measured(by_source, source):
    ranking = by_source[source]["ranking"]
    assert ranking["spearman_mean"] >= BOUNDS[source].spearman
    assert ranking["regret_at_1_mean"] <= BOUNDS[source].regret_at_1


def test_no_rule_refuses_a_plan_that_ran(summary):
    assert summary["refused_though_they_ran"] == []


def test_intervals_cover_what_they_claim(summary):
    """Of runs that the constants were fitted to; those left out are in configs/uncertainty.yaml."""
    assert summary["overall"]["interval_coverage"] >= 0.75
