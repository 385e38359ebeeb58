"""How good estimates are: errors, ranking within a sweep, memory verdicts, coverage. Pure functions of numbers.

An error is relative and signed: estimated over measured, minus one. Rankings compare plans that were measured under
equal conditions; a plan that ran out of memory has no time, and is known to be no choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ErrorStats:
    """The distribution of relative errors. All but ``n`` and ``bias`` are of absolute values; NaN without any."""

    n: int
    median: float
    mean: float
    p90: float
    """90th percentile, interpolated between neighbours."""
    worst: float
    bias: float
    """Median of the signed errors: positive where estimates are too high."""


def relative_errors(estimated: ArrayLike, measured: ArrayLike) -> Array:
    """Estimated over measured, minus one."""
    errors: Array = np.asarray(estimated, dtype=float) / np.asarray(measured, dtype=float) - 1.0
    return errors


def error_stats(errors: ArrayLike) -> ErrorStats:
    """The distribution of signed relative ``errors``."""
    signed = np.asarray(errors, dtype=float)
    if not signed.size:
        return ErrorStats(0, *[float("nan")] * 5)
    size = np.abs(signed)
    return ErrorStats(
        n=int(signed.size),
        median=float(np.median(size)),
        mean=float(np.mean(size)),
        p90=float(np.quantile(size, 0.9)),
        worst=float(np.max(size)),
        bias=float(np.median(signed)),
    )


@dataclass(frozen=True)
class MemoryVerdicts:
    """Whether plans ran out of memory, against whether they were said to."""

    ran_and_fits: int
    ran_but_refused: int
    out_and_refused: int
    out_but_fits: int

    @property
    def n(self) -> int:
        return self.ran_and_fits + self.ran_but_refused + self.out_and_refused + self.out_but_fits

    @property
    def accuracy(self) -> float:
        """Share of right verdicts; NaN without any."""
        return (self.ran_and_fits + self.out_and_refused) / self.n if self.n else float("nan")


def memory_verdicts(ran_out: Sequence[bool], fits: Sequence[bool]) -> MemoryVerdicts:
    """The confusion matrix of ``fits`` (estimated) against ``ran_out`` (measured)."""
    out, said = np.asarray(ran_out, dtype=bool), np.asarray(fits, dtype=bool)
    return MemoryVerdicts(
        ran_and_fits=int(np.sum(~out & said)),
        ran_but_refused=int(np.sum(~out & ~said)),
        out_and_refused=int(np.sum(out & ~said)),
        out_but_fits=int(np.sum(out & said)),
    )


def ranks(values: ArrayLike) -> Array:
    """Rank of each value from 1; equal values share the mean of their ranks."""
    array = np.asarray(values, dtype=float)
    _, where, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[where.ravel()], dtype=float)


def spearman(estimated: ArrayLike, measured: ArrayLike) -> float:
    """Correlation of the ranks; NaN where one side has no order."""
    first, second = ranks(estimated), ranks(measured)
    if first.size < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    first, second = first - first.mean(), second - second.mean()
    return float(np.sum(first * second) / np.sqrt(np.sum(first**2) * np.sum(second**2)))


@dataclass(frozen=True)
class Regret:
    """What following the ranking costs: the best of the first choices over the best plan, minus one."""

    at_1: float
    at_3: float
    choices_out_of_memory: int
    """Plans that were ranked before the third that runs, and ran out of memory."""


def regret(estimated_s: Sequence[float], fits: Sequence[bool], measured_s: Sequence[float]) -> Regret:
    """Regret of trying plans in the order of their estimates; a plan that ran out of memory has NaN in ``measured_s``.

    Plans said not to fit are not tried, unless none of those that ran is said to fit. A choice that runs out of memory
    does so at once: the next one takes its place, and the failure is counted.
    """
    times, said = np.asarray(estimated_s, dtype=float), np.asarray(fits, dtype=bool)
    measured = np.asarray(measured_s, dtype=float)
    runs = np.isfinite(measured)
    if not runs.any():
        raise ValueError("no plan of the sweep was timed")
    tried = said if (said & runs).any() else np.ones_like(said)
    order = [int(index) for index in np.argsort(times, kind="stable") if tried[index]]
    first = [index for index in order if runs[index]][:3]
    last_place = order.index(first[-1])
    best = np.min(measured[runs])
    return Regret(
        at_1=float(measured[first[0]] / best - 1.0),
        at_3=float(np.min(measured[first]) / best - 1.0),
        choices_out_of_memory=sum(not runs[index] for index in order[:last_place]),
    )


def coverage(low: ArrayLike, high: ArrayLike, measured: ArrayLike) -> float:
    """Share of measured values within their intervals; NaN without any."""
    value = np.asarray(measured, dtype=float)
    if not value.size:
        return float("nan")
    return float(np.mean((np.asarray(low, dtype=float) <= value) & (value <= np.asarray(high, dtype=float))))
