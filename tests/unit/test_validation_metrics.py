"""Metrics of a validation against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlcalc.validation.metrics import (
    coverage,
    error_stats,
    memory_verdicts,
    ranks,
    regret,
    relative_errors,
    spearman,
)

NAN = math.nan


def test_errors_are_relative_to_what_was_measured():
    assert relative_errors([1.1, 0.5, 4.0], [1.0, 1.0, 2.0]) == pytest.approx([0.1, -0.5, 1.0])


def test_error_stats_of_five_runs():
    stats = error_stats([0.1, -0.2, 0.3, -0.4, 0.0])
    # sizes 0, .1, .2, .3, .4; the 90th percentile lies at position 0.9 x 4 = 3.6, so 0.3 + 0.6 x 0.1
    assert stats.n == 5
    assert stats.median == pytest.approx(0.2)
    assert stats.mean == pytest.approx(0.2)
    assert stats.p90 == pytest.approx(0.36)
    assert stats.worst == pytest.approx(0.4)
    assert stats.bias == pytest.approx(0.0)  # of -.4, -.2, 0, .1, .3


def test_without_runs_there_are_no_errors():
    stats = error_stats([])
    assert stats.n == 0
    assert math.isnan(stats.median)
    assert math.isnan(stats.worst)


def test_memory_verdicts_are_counted_by_what_happened():
    verdicts = memory_verdicts(ran_out=[True, True, True, False, False], fits=[False, False, True, True, False])
    assert (verdicts.out_and_refused, verdicts.out_but_fits) == (2, 1)
    assert (verdicts.ran_and_fits, verdicts.ran_but_refused) == (1, 1)
    assert verdicts.n == 5
    assert verdicts.accuracy == pytest.approx(3 / 5)
    assert math.isnan(memory_verdicts([], []).accuracy)


def test_equal_values_share_their_rank():
    assert ranks([10, 20, 20, 5]) == pytest.approx([2, 3.5, 3.5, 1])


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # ranks 1 2 3 4 5 against 2 1 4 3 5: sum of squared differences 4, so 1 - 6 x 4 / (5 x 24)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)


def test_spearman_with_ties_by_hand():
    # ranks 1 2.5 2.5 4 against 1 2 3 4: covariance 4.5, variances 4.5 and 5
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_where_there_is_no_order_there_is_no_correlation():
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    assert math.isnan(spearman([1], [2]))


@given(st.lists(st.floats(0.1, 1e3), min_size=3, max_size=30))
def test_spearman_sees_order_alone(values):
    array = np.array(values)
    if np.ptp(ranks(array)) > 0:
        assert spearman(array, np.array(array) ** 3) == pytest.approx(1.0)
        assert spearman(array, -array) == pytest.approx(-1.0)


def test_regret_is_what_the_first_choices_cost():
    found = regret(estimated_s=[3.0, 1.0, 2.0, 4.0], fits=[True] * 4, measured_s=[10.0, 12.0, 11.0, 8.0])
    assert found.at_1 == pytest.approx(12 / 8 - 1)  # ranked first: 12 s; the best took 8 s
    assert found.at_3 == pytest.approx(10 / 8 - 1)  # ranked first to third: 12, 11 and 10 s
    assert found.choices_out_of_memory == 0


def test_a_choice_that_runs_out_of_memory_gives_way_to_the_next_and_is_counted():
    found = regret(estimated_s=[1.0, 2.0, 3.0], fits=[True] * 3, measured_s=[NAN, 5.0, 4.0])
    assert found.at_1 == pytest.approx(5 / 4 - 1)
    assert found.at_3 == 0
    assert found.choices_out_of_memory == 1


def test_plans_said_not_to_fit_are_not_tried():
    found = regret(estimated_s=[1.0, 2.0, 3.0], fits=[False, True, True], measured_s=[4.0, 6.0, 5.0])
    assert found.at_1 == pytest.approx(6 / 4 - 1)  # the best ran, though it was said not to fit: that is regretted
    assert found.at_3 == pytest.approx(5 / 4 - 1)


def test_if_nothing_that_ran_is_said_to_fit_all_are_tried():
    found = regret(estimated_s=[1.0, 2.0, 0.5], fits=[False, False, True], measured_s=[4.0, 3.0, NAN])
    assert found.at_1 == pytest.approx(4 / 3 - 1)
    assert found.choices_out_of_memory == 1


def test_a_sweep_without_times_has_no_regret():
    with pytest.raises(ValueError, match="no plan"):
        regret([1.0], [True], [NAN])


@given(
    st.lists(
        st.tuples(st.floats(0.1, 10), st.booleans(), st.one_of(st.just(NAN), st.floats(0.1, 10))), min_size=1
    ).filter(lambda plans: any(math.isfinite(measured) for _, _, measured in plans))
)
def test_more_choices_are_never_regretted_more(plans):
    found = regret(*(list(column) for column in zip(*plans, strict=True)))
    assert 0 <= found.at_3 <= found.at_1
    assert 0 <= found.choices_out_of_memory <= len(plans)


def test_coverage_counts_both_ends_in():
    assert coverage([1, 1, 1, 1], [2, 2, 2, 2], [1, 2, 1.5, 2.5]) == pytest.approx(0.75)
    assert math.isnan(coverage([], [], []))
