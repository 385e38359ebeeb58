"""Scenarios that differ in what no grid of plans can hold: the machine, and the model's shape.

A design is a point of a few variables, continuous ones among them; it makes another scenario of a given one. Of that
scenario every plan is estimated, so what is said of a design is true of its best plan, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlcalc.errors import DlcalcError
from dlcalc.search.constraints import number
from dlcalc.search.shapes import Shapes
from dlcalc.search.shapes import described as described_shape
from dlcalc.search.space import Scenario, axes_of
from dlcalc.search.variables import Choice, Interval, Point, Variable
from dlcalc.specs.base import Quoted
from dlcalc.specs.design import WHOLE_VARIABLES, DesignSpec, Range, Span
from dlcalc.specs.hardware import HardwareSpec, Price
from dlcalc.specs.space import KnobRanges

SOURCE = "a design that was sampled, not a machine"


Described = Mapping[str, float | str]


@dataclass(frozen=True)
class Designs:
    """A family of scenarios around ``base``."""

    kind: str
    """As people call them, such as ``machines``."""
    base: Scenario
    variables: tuple[Variable, ...]
    made: Callable[[Point, str], Scenario]
    """The scenario at a point, with what its name is to end in."""
    described: Callable[[Scenario, Point], Described]
    """What tells a design from others: of one at a point, or of ``base`` at none."""
    first: tuple[Point, ...] = ()
    """Points to begin with."""


# ---- machines and shapes


def designs_of(base: Scenario, spec: DesignSpec, ranges: KnobRanges) -> Designs:
    """Machines, and shapes of the model, that differ from those of ``base`` as ``spec`` lets them.

    Every design has the plans of ``ranges`` that are possible for it: another node may hold more tensor-parallel ranks,
    another depth has other pipelines.
    """
    own = design_values(base.hardware)
    machine = tuple(_variable(name, span) for name, span in spec.variables.items())
    shapes = Shapes(base.model, spec.model) if spec.model is not None else None
    if shapes is not None and base.custom_split is not None:
        raise DlcalcError("search: design: model: has other layers than recipe: custom_split; leave one of them out")
    usd_per_device_hour(spec, base.hardware, own)  # a mistake in it is found before any work is done

    def made(point: Point, ending: str) -> Scenario:
        numbers = {variable.name: float(point[variable.name]) for variable in machine}
        hardware = designed_hardware(base.hardware, numbers, ending) if numbers else base.hardware
        model = shapes.at(point, f"{base.model.name}_{ending.replace(' ', '_')}") if shapes else base.model
        price = usd_per_device_hour(spec, base.hardware, {**own, **numbers})
        if price is not None and spec.usd_per_device_hour is not None:
            quoted = Price(usd_per_device_hour=price, date="given", source="search: design: usd_per_device_hour")
            hardware = hardware.model_copy(update={"price": quoted})
        axes = axes_of(model, hardware, base.devices, base.recipe, ranges)
        if not all(len(next(iter(axis.values()))) for axis in axes):
            raise DlcalcError("no plan of the space is possible for it")
        return replace(base, name=f"{base.name}, {ending}", model=model, hardware=hardware, axes=axes)

    def described(scenario: Scenario, point: Point) -> Described:
        numbers = {variable.name: float(point.get(variable.name, own[variable.name])) for variable in machine}
        return {**numbers, **(described_shape(scenario.model) if shapes else {})}

    variables = machine + (shapes.variables if shapes else ())
    kind = " and ".join(["machines"] * bool(machine) + ["shapes"] * bool(shapes))
    return Designs(kind, base, variables, made, described)


def _variable(name: str, span: Span) -> Variable:
    whole = name in WHOLE_VARIABLES
    if isinstance(span, Range):
        if whole and not (span.low.is_integer() and span.high.is_integer()):
            raise DlcalcError(f"search: design: {name}: low and high must be whole numbers")
        return Interval(name, span.low, span.high, log=span.log, whole=whole)
    if whole and not all(value.is_integer() for value in span):
        raise DlcalcError(f"search: design: {name}: its values must be whole numbers")
    return Choice(name, tuple(sorted(set(span))))


def design_values(hardware: HardwareSpec) -> dict[str, float]:
    """The variables of a design, as a machine has them."""
    return {
        "hbm_gib": hardware.device.hbm_gib.value,
        "hbm_tb_per_s": hardware.device.hbm_tb_per_s.value,
        "n_sms": hardware.device.n_sms.value,
        "peak_factor": 1.0,
        "node_devices": float(hardware.node.n_devices),
        "link_gb_per_s": hardware.node.link_gb_per_s.value,
        "nic_gbit_per_s_per_device": hardware.fabric.nic_gbit_per_s_per_device.value,
    }


def usd_per_device_hour(spec: DesignSpec, hardware: HardwareSpec, numbers: Mapping[str, float]) -> float | None:
    """The price of a design: as the user says, else that of the named hardware only where it has one."""
    said = spec.usd_per_device_hour
    if said is None:
        return hardware.price.usd_per_device_hour if hardware.price else None
    try:
        price = float(said) if isinstance(said, float) else float(number(said, numbers))
    except (ValueError, ZeroDivisionError) as error:
        raise DlcalcError(f"search: design: usd_per_device_hour: {error}") from error
    if not (math.isfinite(price) and price > 0):
        shown = ", ".join(f"{name} = {value:g}" for name, value in numbers.items())
        raise DlcalcError(f"search: design: usd_per_device_hour: {said} is {price:g} at {shown}; a price is above 0")
    return price


def designed_hardware(hardware: HardwareSpec, numbers: Mapping[str, float], ending: str) -> HardwareSpec:
    """``hardware`` with some of its numbers changed. Its kernels are then nobody's, so intervals are wider."""

    def quoted(value: float) -> Quoted:
        return Quoted(value=value, source=SOURCE)

    device, node, fabric = hardware.device, hardware.node, hardware.fabric
    changes: dict[str, Any] = {}
    if "hbm_gib" in numbers:
        changes["hbm_gib"] = quoted(numbers["hbm_gib"])
        if device.usable_hbm_gib is not None:
            usable = device.usable_hbm_gib.value * numbers["hbm_gib"] / device.hbm_gib.value
            changes["usable_hbm_gib"] = quoted(usable)
    if "hbm_tb_per_s" in numbers:
        changes["hbm_tb_per_s"] = quoted(numbers["hbm_tb_per_s"])
    sms = numbers.get("n_sms", device.n_sms.value)
    factor = sms / device.n_sms.value * numbers.get("peak_factor", 1.0)
    if "n_sms" in numbers:
        changes["n_sms"] = quoted(sms)
    if factor != 1.0:
        changes["peak_tflops"] = {name: quoted(peak.value * factor) for name, peak in device.peak_tflops.items()}
    node_changes: dict[str, Any] = {}
    if "node_devices" in numbers:
        node_changes = {"n_devices": int(numbers["node_devices"]), "n_host_devices": None, "groups": ()}
    if "link_gb_per_s" in numbers:
        node_changes |= {"link_gb_per_s": quoted(numbers["link_gb_per_s"]), "groups": ()}
    if "nic_gbit_per_s_per_device" in numbers:
        fabric = fabric.model_copy(update={"nic_gbit_per_s_per_device": quoted(numbers["nic_gbit_per_s_per_device"])})
    described = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    return hardware.model_copy(
        update={
            "name": f"{hardware.name}_{ending.replace(' ', '_')}",
            "aliases": (),
            "description": f"{hardware.name} with {described}",
            "device": device.model_copy(update=changes),
            "node": node.model_copy(update=node_changes),
            "fabric": fabric,
            "calibration": hardware.calibration.model_copy(update={"measured": False}),
        }
    )
