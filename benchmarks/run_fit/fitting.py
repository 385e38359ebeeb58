"""The fit itself: errors of all runs under some constants, and the constants that make them least."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import least_squares

from dlcalc.costmodel.estimate import estimate
from run_fit.constants import Constant, changed, profiles_of
from run_fit.runs import Array, Group

INDEPENDENT_RUNS = 25
"""As how many runs of an error of 5 % a source counts beside the priors, whatever it has: they share a machine, a
release and settings. Of 9, 16, 25, 36 and 100, 25 leaves the newest trainers out with the least error."""


def errors(groups: Sequence[Group], constants: Sequence[Constant], values: Array) -> list[Array]:
    """Log of estimated over measured, group by group."""
    table = {(c.kind, c.owner, c.path): float(v) for c, v in zip(constants, values, strict=True)}
    found = []
    for group in groups:
        hardware, recipe = changed(group.setting, table)
        estimated = estimate(
            group.setting.model, hardware, recipe, group.plans, custom_split=group.setting.custom_split
        )
        found.append(np.log(np.broadcast_to(estimated.step_time_s, group.measured_s.shape) / group.measured_s))
    return found


def touched_by(group: Group, constant: Constant) -> bool:
    if constant.kind == "device":
        precision = constant.path.partition(".")[2]
        own = "bf16" if group.setting.recipe.precision == "fp16" else group.setting.recipe.precision
        return group.setting.hardware.name == constant.owner and precision in (own, "bf16", "attention")
    if constant.kind == "host":
        return group.setting.hardware.name == constant.owner
    if constant.kind == "attention":
        return (
            group.setting.hardware.name == constant.owner and group.setting.recipe.framework.attention == constant.path
        )
    return group.setting.recipe.framework.name in profiles_of(constant.owner)


def fit(
    groups: Sequence[Group], constants: Sequence[Constant], *, start: Array | None = None, steps: int = 12
) -> Array:
    """Damped Gauss-Newton in logarithms; the Jacobian re-estimates only the groups that a constant touches."""
    lows, highs = (np.log([getattr(c, side) for c in constants]) for side in ("low", "high"))
    priors = np.log([c.prior for c in constants])
    spreads = np.array([c.spread for c in constants])
    touched = [[i for i, g in enumerate(groups) if touched_by(g, c)] for c in constants]
    weights = np.concatenate([g.weight for g in groups]) * INDEPENDENT_RUNS**0.5
    offsets = np.cumsum([0, *(len(g.measured_s) for g in groups)])

    def residuals(x: Array) -> Array:
        return np.concatenate([*errors(groups, constants, np.exp(x)), (x - priors)])

    def scaled(x: Array) -> Array:
        r = residuals(x)
        n = len(weights)
        return np.concatenate([weights * r[:n] / 0.05, r[n:] / spreads])

    def jacobian(x: Array) -> Array:
        base = errors(groups, constants, np.exp(x))
        columns = np.zeros((len(weights) + len(x), len(x)))
        for j in range(len(x)):
            h = 1e-3
            moved = np.array(x)
            moved[j] += h
            part = errors([groups[i] for i in touched[j]], constants, np.exp(moved))
            for i, after in zip(touched[j], part, strict=True):
                columns[offsets[i] : offsets[i + 1], j] = (
                    weights[offsets[i] : offsets[i + 1]] * (after - base[i]) / h / 0.05
                )
            columns[len(weights) + j, j] = 1.0 / spreads[j]
        return columns

    x0 = np.clip(priors if start is None else np.log(start), lows + 1e-6, highs - 1e-6)
    answer = least_squares(
        scaled, x0, jac=jacobian, bounds=(lows, highs), loss=loss_of((weights * FAR_OFF / 0.05) ** 2), max_nfev=steps
    )
    return np.exp(answer.x)


FAR_OFF = 0.15
"""An error (in logarithms) from which on a run says ever less: a recipe of another release, a fault of the machine."""


def loss_of(squares_far_off: Array) -> Callable[[Array], Array]:
    """Cauchy's for runs, which goes over at their weighted error squared that is far off; squares for the priors after.

    As scipy wants it: the loss of squared residuals, and its first and second derivative.
    """
    n_runs = len(squares_far_off)
    squares_far_off = np.maximum(squares_far_off, 1e-12)  # a run that is not fitted has an error of nothing

    def loss(squared: Array) -> Array:
        priors = squared[n_runs:]
        runs = 1.0 + squared[:n_runs] / squares_far_off
        return np.stack([
            np.concatenate([squares_far_off * np.log(runs), priors]),
            np.concatenate([1.0 / runs, np.ones_like(priors)]),
            np.concatenate([-1.0 / (squares_far_off * runs**2), np.zeros_like(priors)]),
        ])  # fmt: skip

    return loss
