"""A row of a result, with everything that made it, as the source of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlcalc.costmodel.placement import PlacedRates
from dlcalc.costmodel.plans import KNOBS, LAYER_WORDS, Plans
from dlcalc.errors import DlcalcError, UnknownNameError
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.run import Knob, Run
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.plan import PlanSection
from dlcalc.specs.recipe import Recipe

SITS_BY = ("tp", "cp", "pp", "dp", "ep", "etp", "dp_replicate", "vpp")
"""Knobs that decide who talks to whom."""


@dataclass(frozen=True)
class ResultRow:
    """A row of a result, with everything that made it."""

    name: str
    scenario: str
    devices: int
    knobs: Mapping[str, Knob]
    model: ModelSpec
    hardware: HardwareSpec
    recipe: Recipe
    registry: HardwareRegistry
    custom_split: tuple[int, ...] | None = None
    memory_headroom: float = 0.0
    notes: Sequence[str] = field(default_factory=tuple)
    placed: PlacedRates | None = None
    placed_note: str = ""
    """What is to be known of a plan that is placed."""

    def resolve(self, changes: Mapping[str, Any]) -> Run:
        """The plan of the row; changed degrees leave the number of devices as it is, unless dp is among the changes."""
        model, hardware, recipe = self.model, self.hardware, self.recipe
        knobs: dict[str, Knob] = dict(self.knobs)
        recipe_changes: dict[str, Any] = {}
        for key, value in changes.items():
            match key.removeprefix("plan.").removeprefix("recipe."):
                case "model":
                    model = load_model(str(value))
                case "hardware":
                    hardware = self.registry.load(str(value))
                case "framework":
                    recipe_changes["framework"] = load_framework(str(value))
                case name if name in KNOBS:
                    knobs[name] = _checked_knob(name, value)
                case name if name in Recipe.model_fields:
                    recipe_changes[name] = value
                case name:
                    raise UnknownNameError(
                        "--what-if key", name, {*KNOBS, *Recipe.model_fields, "model", "hardware", "framework"}
                    )
        if recipe_changes:
            recipe = _changed_recipe(recipe, recipe_changes)
        if recipe.precision not in hardware.precisions:
            raise DlcalcError(f"--what-if: {hardware.name} has no {recipe.precision}")
        if "dp" not in changes and changes.keys() & {"tp", "cp", "pp", "plan.tp", "plan.cp", "plan.pp"}:
            apart = int(float(knobs["tp"]) * float(knobs["cp"]) * float(knobs["pp"]))
            if self.devices % apart:
                raise DlcalcError(f"--what-if: tp x cp x pp = {apart} does not divide the {self.devices} devices")
            knobs["dp"] = self.devices // apart
        written = {
            "result": self.name,
            "scenario": self.scenario,
            "plan": {knob: knobs[knob] for knob in KNOBS},
            **({"what_if": dict(changes)} if changes else {}),
        }
        placed, placed_note = self.placed, self.placed_note
        if placed is not None and (hardware is not self.hardware or any(knobs[k] != self.knobs[k] for k in SITS_BY)):
            placed, placed_note = None, "its groups would sit elsewhere; estimated without placement"
        return Run(
            name=self.name,
            written=written,
            model=model,
            hardware=hardware,
            recipe=recipe,
            plan=Plans.point(**knobs),
            custom_split=self.custom_split,
            memory_headroom=self.memory_headroom,
            notes=(*self.notes, *([placed_note] if placed_note else [])),
            placed=placed,
        )


def _checked_knob(knob: str, value: object) -> Knob:
    """``value`` where a plan section would take it."""
    try:
        checked = PlanSection.model_validate({knob: value})
    except ValueError as error:
        raise DlcalcError(f"--what-if: {knob}: {value!r} is not possible") from error
    found = getattr(checked, knob)
    if found is None:
        raise DlcalcError(f"--what-if: {knob}: give a value")
    return float(found) if isinstance(found, bool) else LAYER_WORDS.get(found, found)


def _changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.model_validate({**{name: getattr(recipe, name) for name in Recipe.model_fields}, **changes})
    except ValueError as error:
        told = ", ".join(f"{key} = {value!r}" for key, value in changes.items())
        raise DlcalcError(f"--what-if: {told} is not possible") from error
