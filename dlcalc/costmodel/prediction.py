"""What is said of one plan wherever one plan is spoken of: its step time with the interval, and what follows from it.

The names are those of a result's columns and of every ``--json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.specs.uncertainty import load_uncertainty


@dataclass(frozen=True)
class Prediction:
    """What the cost model says of a plan."""

    step_time_s: float
    step_time_low_s: float
    """Lower end of the 80 % interval."""
    step_time_high_s: float
    mfu: float
    tokens_per_s_per_device: float
    memory_bytes: float
    """Of the fullest device."""

    @classmethod
    def of(cls, found: Estimate) -> Self:
        """Of the plan of a point."""
        step_time_s = float(found.step_time_s)
        machine = found.machine
        low, high = step_time_interval_factors(
            found.model, machine.hardware, machine.recipe, found.plans, load_uncertainty()
        )
        return cls(
            step_time_s=step_time_s,
            step_time_low_s=step_time_s * float(low),
            step_time_high_s=step_time_s * float(high),
            mfu=float(found.mfu),
            tokens_per_s_per_device=float(found.tokens_per_s_per_device),
            memory_bytes=float(found.memory_bytes),
        )
