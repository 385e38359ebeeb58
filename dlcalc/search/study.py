"""From a space file to its scenarios: names resolved, defaults filled in, impossible requests refused by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from dlcalc.errors import FieldError, suggestion
from dlcalc.hardware_registry import HardwareRegistry
from dlcalc.search.constraints import holds
from dlcalc.search.space import Scenario, axes_of, constraint_names, divisors
from dlcalc.specs.base import Quoted
from dlcalc.specs.framework_registry import load_framework
from dlcalc.specs.hardware import HardwareSpec, Price
from dlcalc.specs.load import about
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.model_registry import load_model
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.space import Cluster, RecipeSpec, SpaceSpec
from dlcalc.specs.target import SETTINGS_OF_TARGET


def scenarios_of(space: SpaceSpec, folder: Path, registry: HardwareRegistry) -> tuple[Scenario, ...]:
    """Every combination of model, hardware, devices and recipe; paths in the file are relative to ``folder``."""
    with about("model"):
        models = [load_model(located(name, folder)) for name in space.model]
    with about("hardware"):
        machines = [adapted(registry.load(located(name, folder)), space.cluster) for name in space.hardware]
    recipes = []
    for position, spec in enumerate(space.recipe):
        with about(*_recipe_field(space, position)):
            wanted = spec.model_copy(update={"target": spec.target or space.target})
            recipes += [(position, wanted, recipe) for recipe in resolved_recipes(wanted, folder)]
    counts = [n for n in space.cluster.devices if space.max_devices is None or n <= space.max_devices]
    if not counts:
        text = f"all of {list(space.cluster.devices)} exceed max_devices = {space.max_devices}"
        raise FieldError(("cluster", "devices"), text)
    scenarios = [
        _scenario(space, model, hardware, devices, recipe)
        for model, hardware, recipe, devices in product(models, machines, recipes, counts)
    ]
    return _with_unique_names(scenarios)


def _recipe_field(space: SpaceSpec, position: int) -> tuple[str | int, ...]:
    """Where a recipe stands in a space file: alone, or in a list."""
    return ("recipe",) if len(space.recipe) == 1 else ("recipe", position)


def resolved_recipes(spec: RecipeSpec, folder: Path = Path()) -> list[Recipe]:
    """One recipe per precision; the path of a framework profile is relative to ``folder``."""
    name = located(spec.profile_name, folder)
    with about("framework"):
        load_framework(name)
    of_target = SETTINGS_OF_TARGET.get(spec.target, {}) if spec.target else {}
    profile = load_framework(name, {**of_target, **spec.profile})
    return [
        Recipe(
            seq_len=spec.seq_len,
            global_batch=spec.sequences,
            precision=precision,
            framework=profile,
            mfu_convention=spec.mfu_convention,
            token_budget=spec.token_budget,
            cuda_graphs=spec.cuda_graphs,
            scaling=spec.scaling_unit,
            target=spec.target,
            stage_recompute=spec.stage_recompute,
        )
        for precision in spec.precision
    ]


def _scenario(
    space: SpaceSpec, model: ModelSpec, hardware: HardwareSpec, devices: int, of: tuple[int, RecipeSpec, Recipe]
) -> Scenario:
    position, spec, recipe = of
    where = _recipe_field(space, position)
    with about(*where):
        recipe = recipe.on(hardware)
    if spec.custom_split and sum(spec.custom_split) != model.n_layers:
        text = f"its chunks hold {sum(spec.custom_split)} layers, but {model.name} has {model.n_layers}"
        raise FieldError((*where, "custom_split"), text)
    if ("custom" in space.ranges.split) != bool(spec.custom_split):
        text = "custom, and custom_split of the recipe, the layers of each pipeline chunk in order, need each other"
        raise FieldError(("space", "split"), text)
    if ("per_stage" in space.ranges.recompute_layers) != (spec.stage_recompute is not None):
        text = "per_stage, and stage_recompute of the recipe, the layers of each stage, need each other"
        raise FieldError(("space", "recompute_layers"), text)
    scenario = Scenario(
        name=f"{model.name} on {devices} {hardware.name}, {recipe.precision}",
        model=model,
        hardware=hardware,
        devices=devices,
        recipe=recipe,
        axes=axes_of(model, hardware, devices, recipe, space.ranges),
        constraints=space.constraints,
        memory_headroom=space.memory_headroom,
        custom_split=spec.custom_split,
    )
    for knob, values in zip(AXIS_NAMES, scenario.axes, strict=True):
        if not len(next(iter(values.values()))):
            raise FieldError(("space",), _no_axis(knob, space, scenario))
    _check_constraints(scenario)
    return scenario


def _no_axis(axis: str, space: SpaceSpec, scenario: Scenario) -> str:
    """Why an axis is empty: for a mesh, what the given degrees would have to divide."""
    line = f"no {axis} is possible for {scenario.name} within the given values"
    if axis != "mesh":
        return line
    ranges = space.ranges
    given = {knob: getattr(ranges, knob) for knob in ("tp", "cp", "pp", "dp", "ep", "etp")}
    listed = [f"{knob} = {list(values)}" for knob, values in given.items() if not isinstance(values, str)]
    most = ", ".join(str(d) for d in divisors(scenario.devices))
    return f"{line}: {', '.join(listed)}; tp x cp x pp x dp must be {scenario.devices}, whose divisors are {most}"


AXIS_NAMES = ("mesh", "sharding", "schedule", "micro_batch", "recomputation", "sequence parallelism")


def _check_constraints(scenario: Scenario) -> None:
    """A constraint that cannot be read is the user's mistake, found before any work is done."""
    names = constraint_names(scenario, scenario.plans(0, 1))
    for position, text in enumerate(scenario.constraints):
        try:
            holds(text, names)
        except ValueError as error:
            raise FieldError(("constraints", position), str(error)) from error


def _with_unique_names(scenarios: Sequence[Scenario]) -> tuple[Scenario, ...]:
    """Scenarios that differ only in recipe details get a number."""
    seen: dict[str, int] = {}
    named = []
    for scenario in scenarios:
        seen[scenario.name] = seen.get(scenario.name, 0) + 1
        number = seen[scenario.name]
        name = scenario.name if number == 1 else f"{scenario.name} (recipe {number})"
        named.append(Scenario(**{**{f: getattr(scenario, f) for f in scenario.__dataclass_fields__}, "name": name}))
    return tuple(named)


def adapted(hardware: HardwareSpec, cluster: Cluster) -> HardwareSpec:
    """The machine with what the cluster says of its node, fabric and price."""
    source = "the cluster section of the space file"
    node, fabric, price = hardware.node, hardware.fabric, hardware.price
    if cluster.node_devices is not None:
        node = node.with_devices(cluster.node_devices)
    if cluster.nic_gbit_per_s_per_device is not None:
        quoted = Quoted(value=cluster.nic_gbit_per_s_per_device, source=source)
        fabric = fabric.model_copy(update={"nic_gbit_per_s_per_device": quoted})
    if cluster.usd_per_device_hour is not None:
        price = Price(usd_per_device_hour=cluster.usd_per_device_hour, date="given", source=source)
    return hardware.model_copy(update={"node": node, "fabric": fabric, "price": price})


def located(name: str, folder: Path) -> str:
    """A path in a space file is relative to the file; a name stays a name."""
    if "/" not in name and not name.endswith((".yaml", ".yml", ".json")):
        return name
    path = Path(os.path.expanduser(name))
    return str(path if path.is_absolute() or not os.path.exists(folder / path) else folder / path)


__all__ = ["resolved_recipes", "scenarios_of", "suggestion"]
