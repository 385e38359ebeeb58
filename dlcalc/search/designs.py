"""Scenarios that differ in what no grid of plans can hold: the machine, the model's shape, the cut into stages.

A design is a point of a few variables, continuous ones among them; it makes another scenario of a given one. Of that
scenario every plan is estimated, so what is said of a design is true of its best plan, exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlcalc.calculators.stages import CUSTOM
from dlcalc.costmodel.plans import Array
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

LEAST_END, MOST_END = 0.1, 1.3
"""Layers of the first and the last chunk over those of the others."""
MOST_SLOPE = 0.6
"""How many more layers the last stage may have than the first, over the mean."""
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
        return {**numbers, **(described_shape(scenario.model, shapes.count(scenario.model)) if shapes else {})}

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
        node_changes = {"n_devices": int(numbers["node_devices"]), "n_host_devices": None}
    if "link_gb_per_s" in numbers:
        node_changes["link_gb_per_s"] = quoted(numbers["link_gb_per_s"])
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


# ---- stages


def stage_designs(base: Scenario) -> Designs:
    """Cuts of the layers into chunks that need not be equal.

    Begins with those that trainers offer: equal chunks, and an embedding and a loss that count as a layer each. A cut
    is ``pp`` x ``vpp`` chunks and three numbers: the layers of the first and of the last chunk over those of the
    others (an embedding and a loss are work too), and a slope over the stages (earlier ones hold more micro-batches, so
    more memory).
    """
    if base.custom_split is not None:
        raise DlcalcError("search: uneven_stages samples what recipe: custom_split gives; leave one of them out")
    mesh, pipe = base.axes[0], base.axes[2]
    pps = [int(pp) for pp in np.unique(mesh["pp"]) if 1 < pp <= base.model.n_layers]
    vpps = [int(vpp) for vpp in np.unique(pipe["vpp"])]
    if not pps:
        raise DlcalcError(f"search: uneven_stages: {base.name} has no pipeline (pp > 1) in its space")
    ends = [Interval(name, LEAST_END, MOST_END) for name in ("first_chunk", "last_chunk")]
    varied = [Choice(name, tuple(values)) for name, values in (("pp", pps), ("vpp", vpps)) if len(values) > 1]
    variables: tuple[Variable, ...] = (*varied, *ends, Interval("slope", -MOST_SLOPE, MOST_SLOPE))

    def made(point: Point, ending: str) -> Scenario:
        pp, vpp = int(point.get("pp", pps[0])), int(point.get("vpp", vpps[0]))
        if pp * vpp > base.model.n_layers:
            raise DlcalcError(f"{pp} x {vpp} chunks are more than {base.model.n_layers} layers")
        cut = chunk_layers(
            base.model.n_layers,
            pp=pp,
            vpp=vpp,
            first=float(point["first_chunk"]),
            last=float(point["last_chunk"]),
            slope=float(point["slope"]),
        )
        return with_cut(base, cut, pp, vpp, ending)

    known: list[Point] = [
        {"pp": pp, "vpp": vpp, "first_chunk": end, "last_chunk": end, "slope": 0.0}
        for pp in pps
        for vpp in vpps
        if pp * vpp <= base.model.n_layers
        for end in (1.0, max(LEAST_END, 1.0 - pp * vpp / (base.model.n_layers + 2)))
    ]

    def described(scenario: Scenario, point: Point) -> Described:
        degrees = {name: float(point[name]) for name in ("pp", "vpp") if name in point}
        return {"stages": " ".join(map(str, scenario.custom_split or ()))} | degrees

    return Designs("cuts into stages", base, variables, made, described, tuple(known))


def chunk_layers(n_layers: int, *, pp: int, vpp: int, first: float, last: float, slope: float) -> tuple[int, ...]:
    """Whole layers per chunk in proportion to its weight, one at least."""
    n_chunks = pp * vpp
    stage = np.arange(n_chunks) % pp
    weight = 1.0 + slope * (stage / (pp - 1) - 0.5)
    weight[0] *= first
    weight[-1] *= last
    spare = n_layers - n_chunks
    share: Array = np.maximum(weight / weight.sum() * n_layers - 1.0, 0.0)
    cut = np.floor(np.cumsum(share) / share.sum() * spare + 0.5) if spare and share.sum() > 0 else np.zeros(n_chunks)
    cut[-1] = spare
    return tuple(int(count) + 1 for count in np.diff(cut, prepend=0.0))


def with_cut(base: Scenario, cut: Sequence[int], pp: int, vpp: int, ending: str) -> Scenario:
    """``base`` with its pipelines of ``pp`` x ``vpp`` chunks only, cut like that."""
    keep = base.axes[0]["pp"] == pp
    mesh = {knob: values[keep] for knob, values in base.axes[0].items()}
    pipe = base.axes[2]
    rows = np.flatnonzero(pipe["vpp"] == vpp)
    _, once = np.unique(pipe["schedule"][rows], return_index=True)
    rows = rows[np.sort(once)]
    chosen = {"schedule": pipe["schedule"][rows], "vpp": pipe["vpp"][rows], "split": np.full(len(rows), float(CUSTOM))}
    axes = (mesh, base.axes[1], chosen, *base.axes[3:])
    return replace(base, name=f"{base.name}, {ending}", axes=axes, custom_split=tuple(cut))
