"""Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps", figures 3 to 5."""

import pytest

from dlcalc.calculators.goodput import checkpoint_interval_s

MINUTE, HOUR = 60.0, 3600.0


@pytest.mark.parametrize(
    ("failure_interval_s", "published_min", "printed"),
    [
        pytest.param(24 * HOUR, 117, 0.5, id="figure 3"),
        pytest.param(6 * HOUR, 57, 0.5, id="figure 4"),
        pytest.param(15 * MINUTE, 9.1, 0.05, id="figure 5"),
    ],
)
def test_optimum_interval_matches_daly2006(failure_interval_s, published_min, printed):
    """A dump takes 5 minutes; the captions give the optimum of the new model, rounded as printed."""
    found = checkpoint_interval_s(checkpoint_write_s=5 * MINUTE, failure_interval_s=failure_interval_s)
    assert float(found) / MINUTE == pytest.approx(published_min, abs=printed)
