"""Meshes of a scenario on their nodes: what is asked for, one mesh, and all that were placed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from dlcalc.costmodel.placement import PlacedRates
from dlcalc.costmodel.plans import Plans
from dlcalc.search.space import Scenario
from dlcalc.topology.crossing import PlacedGroups
from dlcalc.topology.domains import Machines
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.job import Placement

PLACED_PLANS = 1000
"""Kept of a scenario, of those that are fastest as placed; and of those that are fastest without."""


@dataclass(frozen=True)
class Placing:
    """What the best plans are placed on, and how many meshes of each scenario."""

    fabric: Fabric
    topology: str
    meshes: int
    time_limit_s: float


@dataclass(frozen=True)
class PlacedMesh:
    """A mesh on its nodes."""

    row: int
    """Of the scenario's mesh axis."""
    number: int
    """Of the placement, which meshes with the same rings share."""
    placement: Placement
    machines: Machines

    @property
    def rings(self) -> tuple[tuple[str, ...], ...]:
        """By the names of machines."""
        return self.machines.of(self.placement.rings)

    @cached_property
    def groups(self) -> PlacedGroups:
        return PlacedGroups.of(self.machines.fabric, self.placement)

    def rates(self, scenario: Scenario, plans: Plans) -> PlacedRates:
        """The links of plans of this mesh."""
        return self.groups.rates(scenario.hardware, dp_replicate=plans.dp_replicate, vpp=plans.vpp)


@dataclass(frozen=True)
class PlacedScenario:
    """A scenario's placed plans; or why there are none."""

    plans: tuple[Mapping[str, Any], ...] = ()
    """Rows of ``plans.parquet``, fastest as placed first."""
    meshes: Mapping[int, PlacedMesh] = field(default_factory=dict)
    """By row of the mesh axis."""
    n_placements: int = 0
    not_placed: Mapping[str, int] = field(default_factory=dict)
    """Meshes that were tried and cannot be placed, by reason."""
    n_faster_on_paper: int = 0
    """Meshes that were not tried and have a plan that is faster without placement than the best one is with it."""
    why_none: str = ""

    def mesh_of(self, scenario: Scenario, plan: int) -> PlacedMesh:
        return self.meshes[plan // plans_per_mesh(scenario)]

    @property
    def placements(self) -> dict[int, PlacedMesh]:
        """One mesh of each placement, by its number."""
        return {mesh.number: mesh for mesh in reversed(list(self.meshes.values()))}


def plans_per_mesh(scenario: Scenario) -> int:
    """Plans that share a mesh, which are neighbours in the space."""
    return scenario.n_plans // scenario.shape[0]
