"""Which plan to run next, when what is known are estimates with their intervals and a few measured runs.

The logarithm of measured over estimated time is a Gaussian process over the plans of a scenario. Part of it all plans
share (the device, the model, the trainer); of the rest, plans share the more the fewer choices they differ in. How wide
it is follows from the interval that every estimate carries. The plan to run next is the one with the largest expected
gain on the best time measured; a plan whose interval, after what was learned, ends above that time cannot win.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from dlcalc.costmodel.plans import Array

SHARED_VARIANCE = 0.75
"""Of the variance of an estimate's error, what two plans of one scenario have in common: they differ by half of its
spread (workflows.search_summary.RELATIVE_SPREAD)."""
CHOICES_APART = 3.0
"""Differing choices over which what plans share beyond that falls to 1 / e."""
REPEATABILITY = 0.01
"""Relative spread of one plan measured twice."""

Index = NDArray[np.int64]


@dataclass(frozen=True)
class Belief:
    """What is believed of every candidate's step time, after the runs so far."""

    log_time: Array
    """Mean of the logarithm of the step time."""
    spread: Array
    """Its standard deviation."""
    coverage: float

    @property
    def low_s(self) -> Array:
        """Lower end of the interval."""
        return np.asarray(np.exp(self.log_time - _quantile(self.coverage) * self.spread))

    def can_win(self, best_s: float) -> NDArray[np.bool_]:
        """Which candidates may be faster than ``best_s``."""
        return np.asarray(self.low_s < best_s)

    def gain(self, best_s: float) -> Array:
        """Expected improvement of the logarithm on ``best_s``; with nothing measured yet, minus the mean."""
        if not math.isfinite(best_s):
            return -self.log_time
        gap = math.log(best_s) - self.log_time
        z = gap / self.spread
        density = np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        below = 0.5 * (1.0 + np.vectorize(math.erf)(z / math.sqrt(2.0)))
        return np.asarray(gap * below + self.spread * density)


def _quantile(coverage: float) -> float:
    return NormalDist().inv_cdf((1.0 + coverage) / 2.0)


def belief(
    choices: Array,
    step_time_s: Array,
    interval: tuple[Array, Array],
    measured: Index,
    measured_s: Array,
    *,
    coverage: float,
) -> Belief:
    """What is believed after ``measured_s`` of the candidates at ``measured``.

    ``choices`` has one row of codes per candidate, one column per choice; ``interval`` the lower and upper end of each
    estimate.
    """
    low, high = interval
    wide = np.log(high / low) / (2.0 * _quantile(coverage))
    prior = np.log(step_time_s)
    if not len(measured):
        return Belief(prior, wide, coverage)
    differing = (choices[:, None, :] != choices[measured][None, :, :]).sum(axis=2)
    shared = SHARED_VARIANCE + (1.0 - SHARED_VARIANCE) * np.exp(-differing / CHOICES_APART)
    across = wide[:, None] * wide[measured][None, :] * shared  # candidate x measured
    within = across[measured] + REPEATABILITY**2 * np.eye(len(measured))
    weights = np.linalg.solve(within, across.T).T
    mean = prior + weights @ (np.log(measured_s) - prior[measured])
    variance = wide**2 - np.einsum("ij,ij->i", weights, across)
    return Belief(mean, np.sqrt(np.maximum(variance, 1e-12)), coverage)
