"""How sure an estimate is: factors on the step time between which measured runs of the same regime fall.

A regime is what made residuals wide when runs were left out of the fit: communication between nodes, experts, low
precision, a device without measurements of its own. Each adds a spread of its own to that of every run; independent
spreads add in squares of logarithms.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from dlcalc.costmodel.plans import Array, Plans
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.uncertainty import Spread, Uncertainty

SIXTEEN_BITS_OR_MORE = frozenset({"fp32", "tf32", "fp16", "bf16"})


def step_time_interval_factors(
    model: ModelSpec, hardware: HardwareSpec, recipe: Recipe, plans: Plans, uncertainty: Uncertainty
) -> tuple[Array, Array]:
    """Lowest and highest step time over the estimate, at ``uncertainty.coverage``; on the axes of the mesh."""
    devices = plans.tp * plans.cp * plans.pp * plans.dp
    applies: list[tuple[Spread, ArrayLike]] = [
        (uncertainty.base, True),
        (uncertainty.across_nodes, devices > hardware.node.n_devices),
        (uncertainty.moe, model.is_moe),
        (uncertainty.low_precision, recipe.precision not in SIXTEEN_BITS_OR_MORE),
        (uncertainty.unmeasured_device, not hardware.calibration.measured),
    ]
    below = joint_spread((-np.log1p(-spread.shorter), where) for spread, where in applies)
    above = joint_spread((np.log1p(spread.longer), where) for spread, where in applies)
    return np.exp(-below), np.exp(above)


def joint_spread(spreads: Iterable[tuple[float, ArrayLike]]) -> Array:
    """Root of the sum of squares of those that apply."""
    squares = [np.asarray(where, dtype=float) * spread**2 for spread, where in spreads]
    total: Array = np.asarray(sum(squares))
    return np.sqrt(total)
