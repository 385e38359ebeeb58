"""The fit of intervals finds the spreads that made-up runs were drawn with."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.fit_uncertainty import (
    COVERAGE,
    PARTS,
    LeftOut,
    as_yaml,
    covered_fraction,
    fit_spreads,
    quantile_loss,
    spreads_of,
)
from dlcalc.specs.load import load_spec
from dlcalc.specs.uncertainty import Spread, Uncertainty, load_uncertainty

START = Uncertainty(coverage=0.8, provenance="", **dict.fromkeys(PARTS, Spread(shorter=0.25, longer=0.25)))
TENTH = 1.2816
"""Standard deviations beyond which one value in ten of a normal distribution lies."""


def runs(n, sigma, **regime):
    """Runs of one source whose errors are spread evenly over a normal distribution."""
    quantiles = (np.arange(n) + 0.5) / n
    errors = sigma * np.interp(quantiles, *_normal())
    flags = dict.fromkeys(PARTS[1:], False) | regime
    return [LeftOut(source=str(regime), case=str(i), log_error=float(e), **flags) for i, e in enumerate(errors)]


def _normal():
    """Cumulative shares of a normal distribution and where they lie."""
    z = np.linspace(-4, 4, 4001)
    density = np.exp(-(z**2) / 2)
    return np.cumsum(density) / density.sum(), z


def test_one_regime_gets_the_spread_that_leaves_a_tenth_beyond():
    fitted = fit_spreads(runs(400, 0.05), START)
    assert spreads_of(fitted.base) == pytest.approx((0.05 * TENTH,) * 2, rel=0.06)


def test_what_a_regime_adds_is_found_in_squares():
    fitted = fit_spreads(runs(400, 0.05) + runs(400, 0.13, across_nodes=True), START)
    assert spreads_of(fitted.base) == pytest.approx((0.05 * TENTH,) * 2, rel=0.06)
    assert spreads_of(fitted.across_nodes) == pytest.approx((0.12 * TENTH,) * 2, rel=0.06)  # 0.05, 0.12, 0.13


def test_lent_constants_tell_of_their_own_part_alone():
    with_lent = fit_spreads(runs(400, 0.05) + runs(400, 0.13, unmeasured_device=True), START)
    without = fit_spreads(runs(400, 0.05), START)
    assert with_lent.base == without.base
    assert spreads_of(with_lent.unmeasured_device) == pytest.approx((0.12 * TENTH,) * 2, rel=0.06)
    assert without.unmeasured_device == START.unmeasured_device


def test_a_regime_that_too_few_runs_show_keeps_what_it_had():
    fitted = fit_spreads(runs(400, 0.05) + runs(3, 0.5, moe=True), START)
    assert fitted.moe.shorter == pytest.approx(START.moe.shorter, rel=0.1)


def test_a_large_source_does_not_drown_a_small_one():
    """Weights go with the square root: 900 precise runs weigh three times 100 imprecise ones."""
    fitted = fit_spreads(
        [*runs(900, 0.02), *(LeftOut(**{**vars(run), "source": "b"}) for run in runs(100, 0.2))], START
    )
    below, _ = spreads_of(fitted.base)
    assert below > 0.04 * TENTH


def test_the_loss_is_least_where_a_tenth_lies_beyond():
    errors = np.arange(1.0, 101.0)
    losses = [quantile_loss(errors - bound, np.ones(100)) for bound in errors]
    assert errors[int(np.argmin(losses))] == pytest.approx(90, abs=1)


def test_the_interval_covers_what_it_says():
    data = runs(300, 0.05) + runs(300, 0.1, low_precision=True)
    fitted = fit_spreads(data, START)
    errors = np.array([run.log_error for run in data])
    applies = np.array([[True, *(getattr(run, part) for part in PARTS[1:])] for run in data], dtype=float)
    sides = np.array([spreads_of(getattr(fitted, part)) for part in PARTS]).T
    share = covered_fraction(errors, applies, np.ones(len(data)), sides)
    assert share == pytest.approx(COVERAGE, abs=0.03)


def test_what_is_written_is_read_back(tmp_path):
    fitted = fit_spreads(runs(50, 0.05), START)
    file = tmp_path / "uncertainty.yaml"
    file.write_text(as_yaml(fitted))
    assert load_spec(file, Uncertainty) == fitted


def test_the_shipped_file_is_one_that_the_fit_writes():
    text = as_yaml(load_uncertainty())
    assert text.startswith("# Where a measured step time falls")
    assert all(f"\n{part}: " in text for part in PARTS)
