"""Damped Gauss-Newton with priors and a robust loss: a few constants from a few measurements.

Everything is in logarithms. A constant starts at its prior and is drawn back to it; each measurement pulls with the
log of estimated over measured time. What no measurement touches therefore stays exactly where it was, and what a few
touch moves as far as they outweigh the prior. A measurement far off counts less and less (soft L1 loss), so that one
wrong run does not drag the rest. How much a run weighs against the priors is decided by the runs themselves: as much as
makes those left out of the fit come out best, and nothing where the constants as they were do better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LogErrors = Callable[[Array], Array]
"""Log of estimated over measured, one per run, at the logs of the constants."""

NOISE = 0.05
"""Standard deviation of a run's log error that no constant explains: another plan, another kernel, another day."""
NOISES = (NOISE, 0.1, 0.2, 0.4)
"""Tried where there are enough runs to tell: the less the constants explain, the more is noise."""
LEAST_SUPPORT = 0.1
"""What the runs must say of a constant, as a share of what is known of it, before it is moved at all."""
MOST_STEPS = 30
MOST_DAMPING = 1e8
DIFFERENCE = 1e-3
"""Step of the derivatives, in logarithms: wide enough to cross the small kinks of an estimate."""


@dataclass(frozen=True)
class Prior:
    """Where the constants are taken to be before any run is seen; logarithms, one entry per constant."""

    center: Array
    spread: Array
    """Standard deviation."""
    low: Array
    high: Array

    @staticmethod
    def of(entries: Sequence[tuple[float, float, float, float]]) -> Prior:
        """From (value, spread as a standard deviation of the log, least, most) of each constant."""
        columns = np.array(entries, dtype=float).reshape(-1, 4)
        return Prior(np.log(columns[:, 0]), columns[:, 1], np.log(columns[:, 2]), np.log(columns[:, 3]))


@dataclass(frozen=True)
class Fitted:
    """Where the constants ended, and what the runs there say of them."""

    x: Array
    """Logarithms of the constants."""
    log_errors: Array
    slopes: Array
    """Of each run's log error, by constant."""
    support: Array
    """Share of what is known of each constant that comes from the runs: 0 for one that no run touches."""
    prior: Prior
    noise: float
    """What each run's log error was taken to be uncertain by; infinite: the runs give no reason to move anything."""


def fit_supported(log_errors: LogErrors, prior: Prior, folds: Sequence[NDArray[np.bool_]]) -> Fitted:
    """The constants with which runs left out of the fit, fold by fold, come out best; their priors if none are better.

    Without folds there are too few runs to tell, and each has the least noise.
    """
    fitted = _fit_of_supported(log_errors, prior, NOISE)
    if not folds:
        return fitted
    unmoved = _unmoved(log_errors, prior)
    best, least = unmoved, _typical(unmoved.log_errors)
    for noise in NOISES:
        fitted = _fit_of_supported(log_errors, prior, noise)
        errors = np.concatenate(
            [fitted.log_errors[fold] + fitted.slopes[fold] @ (fit_without(fitted, fold) - fitted.x) for fold in folds]
        )
        if (error := _typical(errors)) < least:
            best, least = fitted, error
    return best


def _fit_of_supported(log_errors: LogErrors, prior: Prior, noise: float) -> Fitted:
    """The fit with those constants held that the runs say next to nothing of, so that they do not drift along."""
    first = fit(log_errors, prior, noise=noise)
    held = first.support < LEAST_SUPPORT
    if not np.any(held):
        return first
    narrowed = replace(prior, spread=np.where(held, HELD_SPREAD, prior.spread))
    return fit(log_errors, narrowed, noise=noise, start=np.where(held, prior.center, first.x))


HELD_SPREAD = 1e-6


def _typical(log_errors: Array) -> float:
    """What both most runs and the worst of them count in: median plus mean of the absolute values."""
    size = np.abs(log_errors)
    return float(np.median(size) + np.mean(size))


def _unmoved(log_errors: LogErrors, prior: Prior) -> Fitted:
    errors = log_errors(prior.center)
    n = len(prior.center)
    return Fitted(prior.center, errors, np.zeros((len(errors), n)), np.zeros(n), prior, np.inf)


def fit(log_errors: LogErrors, prior: Prior, *, noise: float = NOISE, start: Array | None = None) -> Fitted:
    """The constants that explain the runs best without leaving their priors for nothing."""
    x = np.clip(prior.center if start is None else start, prior.low, prior.high)
    errors = log_errors(x)
    slopes = _slopes(log_errors, x, errors, prior)
    loss = _loss(errors, x, prior, noise)
    damping = 1e-3
    for _ in range(MOST_STEPS):
        step = _step(errors, slopes, x, prior, noise, damping)
        if np.max(np.abs(step), initial=0.0) < 1e-4:
            break
        tried = np.clip(x + step, prior.low, prior.high)
        tried_errors = log_errors(tried)
        tried_loss = _loss(tried_errors, tried, prior, noise)
        if not tried_loss < loss:
            damping *= 10.0
            if damping > MOST_DAMPING:
                break
            continue
        is_settled = loss - tried_loss < 1e-4 * loss
        x, errors, loss, damping = tried, tried_errors, tried_loss, max(damping / 10.0, 1e-6)
        slopes = _slopes(log_errors, x, errors, prior)
        if is_settled:
            break
    return Fitted(
        x=x, log_errors=errors, slopes=slopes, support=_support(slopes, prior, noise), prior=prior, noise=noise
    )


def fit_without(fitted: Fitted, left_out: NDArray[np.bool_]) -> Array:
    """The constants had the runs in ``left_out`` not been there.

    Assumes: log errors are linear in the logs of the constants around the fit of all runs, as they nearly are.
    """
    if not np.isfinite(fitted.noise):
        return fitted.x
    kept = ~left_out
    errors, slopes = fitted.log_errors[kept], fitted.slopes[kept]
    return fit(lambda x: errors + slopes @ (x - fitted.x), fitted.prior, noise=fitted.noise, start=fitted.x).x


def _loss(errors: Array, x: Array, prior: Prior, noise: float) -> float:
    """Soft L1: squares near zero, absolute values far out."""
    squares = (errors / noise) ** 2
    return float(np.sum(2.0 * (np.sqrt(1.0 + squares) - 1.0)) + np.sum(((x - prior.center) / prior.spread) ** 2))


def _step(errors: Array, slopes: Array, x: Array, prior: Prior, noise: float, damping: float) -> Array:
    weights = 1.0 / np.sqrt(1.0 + (errors / noise) ** 2) / noise**2
    pull = 1.0 / prior.spread**2
    curvature = (slopes.T * weights) @ slopes + np.diag(pull)
    gradient = slopes.T @ (weights * errors) + pull * (x - prior.center)
    # a constant at its bound that would leave it is held there, so that the others take up its share
    held = ((x <= prior.low) & (gradient > 0)) | ((x >= prior.high) & (gradient < 0))
    free = np.flatnonzero(~held)
    step = np.zeros_like(x)
    if free.size:
        inner = curvature[np.ix_(free, free)]
        step[free] = -np.linalg.solve(inner + damping * np.diag(np.diag(inner)), gradient[free])
    return step


def _slopes(log_errors: LogErrors, x: Array, errors: Array, prior: Prior) -> Array:
    """One-sided differences, inwards at the upper bound."""
    slopes = np.zeros((len(errors), len(x)))
    for j in range(len(x)):
        moved = np.array(x)
        moved[j] += DIFFERENCE if x[j] + DIFFERENCE <= prior.high[j] else -DIFFERENCE
        slopes[:, j] = (log_errors(moved) - errors) / (moved[j] - x[j])
    return slopes


def _support(slopes: Array, prior: Prior, noise: float) -> Array:
    information = slopes.T @ slopes / noise**2 + np.diag(1.0 / prior.spread**2)
    left = np.diag(np.linalg.inv(information)) / prior.spread**2
    return np.clip(1.0 - left, 0.0, 1.0)
