"""One run: everything that an estimate of one plan needs, and what such a run is read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.placement import PlacedRates
from dlcalc.costmodel.plans import Plans
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.run import CrossDcSection

Knob = float | str
"""The value of a knob as a plan is made of it."""


@dataclass(frozen=True)
class Run:
    """Everything one estimate needs, and what was done to get there."""

    name: str
    written: Mapping[str, Any]
    """What the user wrote, or the row that was picked."""
    model: ModelSpec
    hardware: HardwareSpec
    recipe: Recipe
    plan: Plans
    custom_split: tuple[int, ...] | None = None
    memory_headroom: float = 0.0
    cross_dc: CrossDcSection | None = None
    notes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    """Options of a trainer's own configuration that no estimate reads."""
    placed: PlacedRates | None = None
    """The links of the nodes it is placed on."""

    def estimate(self) -> Estimate:
        """What the cost model says, as the search would: in one data centre."""
        return estimate(
            self.model,
            self.hardware,
            self.recipe,
            self.plan,
            custom_split=self.custom_split,
            memory_headroom=self.memory_headroom,
            placed=self.placed,
        )

    @property
    def devices(self) -> int:
        plan = self.plan
        return int(plan.tp * plan.cp * plan.pp * plan.dp)


class RunSource(Protocol):
    """Something a run can be read from."""

    def resolve(self, changes: Mapping[str, Any]) -> Run:
        """The run, with ``changes`` by key."""
