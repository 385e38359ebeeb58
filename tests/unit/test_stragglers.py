"""The slowest of many devices."""

from __future__ import annotations

import numpy as np
import pytest

from dlcalc.calculators.stragglers import slowest_device_factor


@pytest.mark.parametrize(
    ("n_devices", "expected_largest"),
    # of n standard normals: 1 / sqrt(pi) and 1.5 / sqrt(pi) for 2 and 3 exactly, the usual tables of order statistics
    [(1, 0.0), (2, np.pi**-0.5), (3, 1.5 * np.pi**-0.5), (8, 1.42360), (64, 2.34373), (1000, 3.24144)],
)
def test_the_largest_of_n_normals(n_devices, expected_largest):
    assert slowest_device_factor(float(n_devices), spread=1.0) - 1.0 == pytest.approx(expected_largest, abs=1e-4)


def test_it_is_what_draws_say():
    draws = np.random.default_rng(0).normal(1.0, 0.02, size=(4000, 512)).max(axis=1).mean()
    assert slowest_device_factor(512.0, spread=0.02) == pytest.approx(draws, abs=5e-4)


def test_more_devices_are_never_faster_and_equal_ones_wait_for_nobody():
    counts = 2.0 ** np.arange(0, 20)
    assert np.all(np.diff(slowest_device_factor(counts)) > 0)
    assert slowest_device_factor(counts, spread=0.0) == pytest.approx(np.ones(20))
