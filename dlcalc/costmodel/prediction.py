"""What is said of one plan wherever one plan is spoken of: its step time with the interval, and what follows from it.

The names are those of a result's columns and of every ``--json``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from dlcalc.costmodel.estimate import Estimate
from dlcalc.costmodel.uncertainty import step_time_interval_factors
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.uncertainty import load_uncertainty
from dlcalc.utils.units import SECONDS_PER_DAY, SECONDS_PER_HOUR


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


def budget_days(recipe: Recipe, step_time_s: float) -> float | None:
    """Days that the recipe's token budget takes; None without one."""
    if not recipe.token_budget:
        return None
    return recipe.token_budget / recipe.tokens_per_step * step_time_s / SECONDS_PER_DAY


def budget_usd(recipe: Recipe, hardware: HardwareSpec, devices: int, step_time_s: float) -> float | None:
    """Price of the devices over those days; None without a budget or a price."""
    days = budget_days(recipe, step_time_s)
    if days is None or hardware.price is None:
        return None
    return days * (SECONDS_PER_DAY / SECONDS_PER_HOUR) * devices * hardware.price.usd_per_device_hour
