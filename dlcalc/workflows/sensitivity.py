"""What a tenth more of one quantity of the hardware would give: the same plan estimated anew, and the space searched.

Memory matters through which plans fit, so estimating the plans that fit today again would not show it. A search of
the whole space does, and costs a second or so; where the space is so large that it would take minutes, only the plan
itself is estimated anew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlcalc.costmodel.estimate import estimate
from dlcalc.costmodel.plans import KNOBS, Plans, value_of
from dlcalc.report.study_facts import PlanPoint, Sensitivity, WhatIf
from dlcalc.results.manifest import ScenarioOrigin
from dlcalc.search.exhaustive import BLOCK_PLANS, search_block
from dlcalc.search.found import Found
from dlcalc.search.space import Scenario, axes_of
from dlcalc.specs.base import Quoted
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.space import KnobRanges
from dlcalc.workflows.survey import knobs_of
from dlcalc.workflows.sweep import rows_of

FACTOR = 1.1
MOST_PLANS = 400_000_000
"""Of a space that is searched again for each quantity: a minute or less together. A number of plans, not of seconds, so
that a report does not depend on what else the machine does."""


def scenario_of(origin: ScenarioOrigin) -> Scenario:
    """The scenario that a result says it was made of."""
    space = origin.space
    ranges = KnobRanges.model_validate(space.get("ranges") or {})
    return Scenario(
        name=origin.name,
        model=origin.model,
        hardware=origin.hardware,
        devices=origin.devices,
        recipe=origin.recipe,
        axes=axes_of(origin.model, origin.hardware, origin.devices, origin.recipe, ranges),
        constraints=tuple(space.get("constraints") or ()),
        memory_headroom=float(space.get("memory_headroom", 0.0)),
        custom_split=tuple(space.get("custom_split") or ()) or None,
    )


def sensitivity_of(origin: ScenarioOrigin, best: Mapping[str, Any], *, most_plans: int = MOST_PLANS) -> Sensitivity:
    """What more of each quantity would give the scenario of ``origin``, whose fastest plan is the row ``best``."""
    began = time.perf_counter()
    scenario = scenario_of(origin)
    is_searched = scenario.n_plans <= most_plans
    knobs = knobs_of(best)
    rows = tuple(_what_if(scenario, change, knobs, is_searched=is_searched) for change in _changes(origin))
    return Sensitivity(
        factor=FACTOR,
        plan=PlanPoint(knobs, best["step_time_s"], best["mfu"], best["memory_bytes"]),
        rows=rows,
        n_plans=scenario.n_plans if is_searched else 1,
        seconds=time.perf_counter() - began,
        is_searched=is_searched,
    )


@dataclass(frozen=True)
class _Change:
    """One quantity and how to have more of it."""

    what: str
    unit: str
    value: float
    """In the unit that people quote."""
    change: Callable[[HardwareSpec], HardwareSpec]


def _changes(origin: ScenarioOrigin) -> Iterator[_Change]:
    hardware, precision = origin.hardware, origin.recipe.precision
    device, node, fabric = hardware.device, hardware.node, hardware.fabric
    yield _Change(
        "HBM size", "GiB", (device.usable_hbm_gib or device.hbm_gib).value, _of_device("usable_hbm_gib", "hbm_gib")
    )
    yield _Change("HBM bandwidth", "TB/s", device.hbm_tb_per_s.value, _of_device("hbm_tb_per_s"))
    yield _Change("matmul and attention rate", "TFLOP/s", device.peak_tflops[precision].value, _faster_arithmetic)
    yield _Change("links in a node", "GB/s", node.link_gb_per_s.value, _of_node)
    yield _Change("links between nodes", "Gbit/s", fabric.nic_gbit_per_s_per_device.value, _of_fabric)


def _more(quoted: Quoted) -> Quoted:
    return quoted.model_copy(update={"value": quoted.value * FACTOR})


def _of_device(*names: str) -> Callable[[HardwareSpec], HardwareSpec]:
    def change(hardware: HardwareSpec) -> HardwareSpec:
        device = hardware.device
        given = {name: getattr(device, name) for name in names}
        larger = {name: _more(quoted) for name, quoted in given.items() if quoted is not None}
        return hardware.model_copy(update={"device": device.model_copy(update=larger)})

    return change


def _faster_arithmetic(hardware: HardwareSpec) -> HardwareSpec:
    peaks = {precision: _more(peak) for precision, peak in hardware.device.peak_tflops.items()}
    return hardware.model_copy(update={"device": hardware.device.model_copy(update={"peak_tflops": peaks})})


def _of_node(hardware: HardwareSpec) -> HardwareSpec:
    node = hardware.node
    groups = tuple(group.model_copy(update={"link_gb_per_s": _more(group.link_gb_per_s)}) for group in node.groups)
    faster = node.model_copy(update={"link_gb_per_s": _more(node.link_gb_per_s), "groups": groups})
    return hardware.model_copy(update={"node": faster})


def _of_fabric(hardware: HardwareSpec) -> HardwareSpec:
    rate = _more(hardware.fabric.nic_gbit_per_s_per_device)
    fabric = hardware.fabric.model_copy(update={"nic_gbit_per_s_per_device": rate})
    return hardware.model_copy(update={"fabric": fabric})


def _fastest(scenario: Scenario) -> Found:
    found = Found()
    for start, stop in scenario.blocks(BLOCK_PLANS):
        bound = found.bound(1, "step_time")
        part = search_block(scenario, start, stop, keep=1, bound=bound, fastest=found.fastest)
        found.add(part, keep=1, key="step_time")
    return found


def _what_if(scenario: Scenario, change: _Change, knobs: Mapping[str, Any], *, is_searched: bool) -> WhatIf:
    changed = replace(scenario, hardware=change.change(scenario.hardware))
    same = estimate(
        changed.model,
        changed.hardware,
        changed.recipe,
        Plans.point(**knobs),
        custom_split=changed.custom_split,
        memory_headroom=changed.memory_headroom,
    )
    best, n_fit = None, None
    if is_searched:
        found = _fastest(changed)
        n_fit = found.n_fit
        best = _point(changed, found) if n_fit else None
    return WhatIf(
        what=change.what,
        unit=change.unit,
        before=change.value,
        after=change.value * FACTOR,
        same_plan_step_s=float(same.step_time_s),
        best=best,
        is_same_plan=best is not None and all(best.plan[knob] == knobs[knob] for knob in KNOBS),
        n_fit=n_fit,
    )


def _point(scenario: Scenario, found: Found) -> PlanPoint:
    columns = rows_of(scenario, found.leaders.index[:1])
    plan = {knob: value_of(knob, float(columns[knob][0])) for knob in KNOBS}
    return PlanPoint(plan, *(float(columns[name][0]) for name in ("step_time_s", "mfu", "memory_bytes")))
