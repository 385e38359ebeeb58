"""Laws of checkpoints and failures: the interval is the best one, and what never fails loses nothing."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dlcalc.calculators import goodput

writes_s = st.floats(1.0, 1800.0)
restarts_s = st.floats(0.0, 3600.0)


def factor(interval_s, write_s, restart_s, failures_s):
    return goodput.failure_time_factor(
        interval_s=interval_s, checkpoint_write_s=write_s, restart_s=restart_s, failure_interval_s=failures_s
    )


@given(write_s=writes_s, restart_s=restarts_s, per_write=st.floats(2.0, 1e5))
def test_no_other_interval_is_faster(write_s, restart_s, per_write):
    """Against a fine sweep of intervals, by the expected time: within 0.1 % of the best one wherever it may lie."""
    failures_s = per_write * write_s
    assume(restart_s < 600.0 * failures_s)  # the expected time of a longer one is beyond the largest number
    chosen = goodput.checkpoint_interval_s(checkpoint_write_s=write_s, failure_interval_s=failures_s)
    others = float(chosen) * np.geomspace(0.05, 20.0, 4001)
    best = np.min(factor(others, write_s, restart_s, failures_s))
    assert factor(chosen, write_s, restart_s, failures_s) <= best * 1.001


@given(write_s=writes_s, per_write=st.floats(2.0, 1e4))
def test_higher_order_is_no_worse_than_first_order(write_s, per_write):
    failures_s = per_write * write_s
    given_ = {"checkpoint_write_s": write_s, "failure_interval_s": failures_s}
    young, daly = goodput.first_order_checkpoint_interval_s(**given_), goodput.checkpoint_interval_s(**given_)
    assert factor(daly, write_s, 0.0, failures_s) <= factor(young, write_s, 0.0, failures_s) * (1 + 1e-9)


@given(write_s=writes_s, restart_s=restarts_s)
def test_rare_failures_cost_nothing_and_need_few_checkpoints(write_s, restart_s):
    """To first order the loss is sqrt(2 d / M), so it vanishes as the root of the failure rate."""
    intervals_s = np.geomspace(1e6, 1e14, 5)
    chosen = goodput.checkpoint_interval_s(checkpoint_write_s=write_s, failure_interval_s=intervals_s)
    lost = factor(chosen, write_s, restart_s, intervals_s) - 1.0
    assert np.all(np.diff(chosen) > 0)
    assert np.all(np.diff(lost) < 0)
    assert lost[-1] == pytest.approx(np.sqrt(2.0 * write_s / intervals_s[-1]), rel=0.05)
    young = goodput.first_order_checkpoint_interval_s(checkpoint_write_s=write_s, failure_interval_s=intervals_s)
    assert chosen[-1] / young[-1] == pytest.approx(1.0, rel=1e-3)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_expected_time_is_what_a_simulation_takes(seed):
    """Failures drawn one by one, at any moment of work, checkpoint or restart; 40,000 intervals, 3 % of spread."""
    rng = np.random.default_rng(seed)
    interval_s, write_s, restart_s, failures_s = 900.0, 120.0, 300.0, 1800.0
    n, passed, clock = 40_000, 0, 0.0
    while passed < n:
        until = rng.exponential(failures_s, size=n)
        whole = until >= interval_s + write_s
        passed += int(np.count_nonzero(whole))
        clock += float(np.sum(np.where(whole, interval_s + write_s, until)))
        failed = n - int(np.count_nonzero(whole))
        while failed:
            until = rng.exponential(failures_s, size=failed)
            clock += float(np.sum(np.minimum(until, restart_s)))
            failed = int(np.count_nonzero(until < restart_s))
    assert clock / (passed * interval_s) == pytest.approx(
        float(factor(interval_s, write_s, restart_s, failures_s)), rel=0.03
    )


def test_a_job_that_never_finishes_an_interval_takes_forever():
    assert factor(10.0, 1e5, 0.0, 1.0) == np.inf


@given(write_s=writes_s, restart_s=restarts_s, fewer=st.floats(1.0, 20.0))
def test_a_job_that_fails_as_often_as_it_restarts_and_writes_has_no_time_to_go_by(write_s, restart_s, fewer):
    """At least e times its work, whatever the interval, and more the more often it fails."""
    least_s = goodput.least_failure_interval_s(checkpoint_write_s=write_s, restart_s=restart_s)
    intervals_s = float(least_s) * np.geomspace(0.01, 100.0, 1001)
    at_least = np.min(factor(intervals_s, write_s, restart_s, least_s))
    assert at_least > np.e * (1 - 1e-9)
    assert np.min(factor(intervals_s, write_s, restart_s, least_s / fewer)) >= at_least * (1 - 1e-9)


def test_a_job_fails_as_often_as_all_its_devices():
    found = goodput.job_failure_interval_s(device_failure_interval_s=50_000 * 3600.0, n_devices=16_384)
    assert found / 3600 == pytest.approx(3.05, abs=0.01)
