"""The slowest of many devices: nominally equal ones differ, and a step waits for the last."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Numeric = float | NDArray[np.float64]

DEVICE_SPREAD = 0.02
"""Standard deviation of the time that devices of one kind need for the same work. [sinha2022] find 8 % from the slowest
to the fastest of a cluster, outliers apart; between the whiskers of a normal spread lie 5.4 deviations, hence 1.5 % for
one kernel on one cluster. Measured steps on 8 to 3,360 devices fit best with 2 to 3 %."""

_REACH, _STEP = 8.0, 0.02
_Z = np.arange(-_REACH, _REACH, _STEP) + _STEP / 2.0
_BELOW = np.array([0.5 * math.erfc(-z / math.sqrt(2.0)) for z in _Z])
"""Share of a normal spread below each z."""


def slowest_device_factor(n_devices: Numeric, *, spread: float = DEVICE_SPREAD) -> Numeric:
    """Time of the slowest of ``n_devices`` over that of an average one: 1 + spread x the expected largest of n normals.

    1 for one device, 1.03 for 8, 1.07 for 2,000 at a spread of 2 %. Pipelines wait for their slowest stage, and
    data-parallel ranks for the slowest pipeline, so the slowest device of the job paces all.

    Assumes: differences that last (silicon, cooling), the same for all arithmetic; jobs placed blindly on devices.
    Ignores: faulty devices (a health check removes them), and that memory and links differ less.
    Source: [sinha2022] sections 4 and 5; [derived] E max = int (1 - F^n) over z > 0, less int F^n over z < 0.
    """
    counts, where = np.unique(np.asarray(n_devices, dtype=np.float64), return_inverse=True)  # one, in most batches
    largest_below = _BELOW ** counts[:, None]
    expected = np.sum(np.where(_Z > 0.0, 1.0 - largest_below, -largest_below), axis=-1) * _STEP
    return np.asarray(1.0 + spread * expected[where].reshape(np.shape(n_devices)))
