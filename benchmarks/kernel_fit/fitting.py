"""Few constants to many latencies: half of the squared log error by a simplex, and the errors that remain."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from kernel_fit.sources import SEED, Array


@dataclass(frozen=True)
class Constant:
    """One constant of an equation: where the search starts, and where it must stay."""

    name: str
    start: float
    low: float
    high: float


def fit(
    constants: Iterable[Constant], estimate_s: Callable[[dict[str, float]], Array], measured_s: Array, weights: Array
) -> dict[str, float]:
    """The constants that minimize the mean absolute log ratio; three starts, three digits."""
    constants = tuple(constants)
    start = np.array([c.start for c in constants])
    low, high = np.array([c.low for c in constants]), np.array([c.high for c in constants])
    scale = np.where(start == 0, 1.0, start)
    weights = weights / weights.sum()

    def named(x: Array) -> dict[str, float]:
        return {c.name: float(v) for c, v in zip(constants, np.clip(x * scale, low, high), strict=True)}

    def loss(x: Array) -> float:
        outside = np.maximum(low - x * scale, x * scale - high).clip(min=0) / np.abs(scale)
        with np.errstate(all="ignore"):
            errors = np.abs(np.log(estimate_s(named(x)) / measured_s))
        return float(np.nan_to_num(weights @ errors, nan=10.0, posinf=10.0) + outside.sum())

    rng = np.random.default_rng(SEED)
    options = {"maxiter": 1200, "xatol": 1e-4, "fatol": 1e-6, "adaptive": True}
    best = None
    for attempt in range(3):
        first = start / scale * (1.0 if attempt == 0 else rng.uniform(0.6, 1.5, len(start)))
        found = minimize(loss, first, method="Nelder-Mead", options=options)
        found = minimize(loss, found.x, method="Nelder-Mead", options=options)
        best = found if best is None or found.fun < best.fun else best
    return {name: rounded(value) for name, value in named(best.x).items()}


def rounded(value: float) -> float:
    return float(f"{value:.3g}") if abs(value) > 1e-3 else 0.0


@dataclass(frozen=True)
class Score:
    """Errors of one fit, on the third it saw and on the rest."""

    what: str
    n_fitted: int
    n_left_out: int
    fitted: tuple[float, float]
    left_out: tuple[float, float]
    """Median and 90th percentile of the absolute relative error, in percent."""
    constants: dict[str, float]
    harness: dict[str, float]

    @staticmethod
    def of(
        what: str, estimated_s: Array, measured_s: Array, fitted: NDArray[np.bool_], scored: NDArray[np.bool_],
        constants: dict[str, float], harness: dict[str, float] | None = None,
    ) -> Score:  # fmt: skip
        error = 100.0 * np.abs(estimated_s / measured_s - 1.0)
        seen, unseen = error[fitted & scored], error[~fitted & scored]
        return Score(
            what, len(seen), len(unseen), spread(seen), spread(unseen), constants, {} if harness is None else harness
        )


def spread(errors: Array) -> tuple[float, float]:
    return float(np.median(errors)), float(np.quantile(errors, 0.9))


def third(n: int) -> NDArray[np.bool_]:
    return np.random.default_rng(SEED).random(n) < 1.0 / 3.0


def one_of_each_pair(n: int) -> NDArray[np.bool_]:
    first = np.random.default_rng(SEED).random((n + 1) // 2) < 0.5
    return np.stack([first, ~first], axis=1).reshape(-1)[:n]
