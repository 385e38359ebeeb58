"""Plain numbers out of a point's arrays."""

from __future__ import annotations

import numpy as np

from dlcalc.calculators.communication import Numeric


def plain(value: Numeric) -> float:
    """The value of a point as a number."""
    """A quantity of a point."""
    return float(np.asarray(value).reshape(()))
