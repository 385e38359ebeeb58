"""The parts of a study's report: plans, cells of the heat map, other scenarios, where everything comes from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from pydantic import BaseModel

from dlcalc import __version__
from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.plans import Plans
from dlcalc.costmodel.prediction import Prediction, budget_days, budget_usd
from dlcalc.report.study_facts import (
    MeshCell,
    PlanFacts,
    PlanPoint,
    Provenance,
    ScenarioBest,
    Source,
    TermDifference,
    Why,
)
from dlcalc.results.manifest import ScenarioOrigin
from dlcalc.results.reader import Result, Row
from dlcalc.search.result_row import ResultRow
from dlcalc.specs.base import Quoted
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.uncertainty import Uncertainty
from dlcalc.workflows.citations import citations
from dlcalc.workflows.search_summary import breakdown
from dlcalc.workflows.survey import (
    MESH,
    Leaders,
    MeshBest,
    Survey,
    knobs_of,
    leaders,
    rows_at,
)


def capacity_bytes(origin: ScenarioOrigin) -> float:
    """What a plan may take of a device."""
    return origin.hardware.device.hbm_bytes * (1.0 - float(origin.space.get("memory_headroom", 0.0)))


def point_of(row: Mapping[str, Any]) -> PlanPoint:
    """A row as a point of a chart."""
    return PlanPoint(knobs_of(row), row["step_time_s"], row["mfu"], row["memory_bytes"])


def cells_of(seen: Survey, rows: Mapping[int, Row]) -> Iterator[MeshCell]:
    """The best of every tp and pp over all other degrees."""
    cells: dict[tuple[int, int], list[MeshBest]] = {}
    for mesh, found in seen.by_speed():
        cells.setdefault((mesh[MESH.index("tp")], mesh[MESH.index("pp")]), []).append(found)
    for (tp, pp), found_here in sorted(cells.items()):
        n_rows = sum(found.n_rows for found in found_here)
        yield MeshCell(tp, pp, n_rows, point_of(rows[found_here[0].index]))


def estimate_of(origin: ScenarioOrigin, row: Mapping[str, Any]) -> Estimate:
    """The row estimated anew, term by term."""
    return estimate(
        origin.model,
        origin.hardware,
        origin.recipe,
        Plans.point(**knobs_of(row)),
        custom_split=tuple(origin.space.get("custom_split") or ()) or None,
        memory_headroom=float(origin.space.get("memory_headroom", 0.0)),
    )


def as_placed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A placed row with what it takes on its nodes in place of what it would take on paper."""
    return {**row, **{name.removeprefix("placed_"): value for name, value in row.items() if name.startswith("placed_")}}


def plan_facts(origin: ScenarioOrigin, row: Mapping[str, Any], rank: int, found: Estimate) -> PlanFacts:
    """A row and its terms."""
    terms = breakdown(found)
    quantities = (*(quantity.name for quantity in fields(Prediction)), "hfu", "headroom_bytes")
    return PlanFacts(
        rank=rank,
        plan=knobs_of(row),
        days=budget_days(origin.recipe, row["step_time_s"]),
        cost_usd=budget_usd(origin.recipe, origin.hardware, origin.devices, row["step_time_s"]),
        time_s=terms["time_s"],
        memory_terms_bytes=terms["memory_bytes"],
        **{name: row[name] for name in quantities},
    )


def mesh_of(row: Mapping[str, Any]) -> tuple[int, ...]:
    """The parallel degrees of a plan."""
    return tuple(row[knob] for knob in MESH)


def why_of(plan: PlanFacts, top: Sequence[PlanFacts]) -> Why | None:
    """Against the best plan; the best one against the best of another mesh."""
    if plan.rank != 1:
        return _against(plan, top[0], is_runner_up=False)
    others = [one for one in top if mesh_of(one.plan) != mesh_of(plan.plan)]
    return _against(plan, others[0], is_runner_up=True) if others else None


def _against(plan: PlanFacts, other: PlanFacts, *, is_runner_up: bool) -> Why:
    names = {**plan.time_s, **other.time_s}
    terms = [TermDifference(name, plan.time_s.get(name, 0.0), other.time_s.get(name, 0.0)) for name in names]
    return Why(other, is_runner_up, tuple(sorted(terms, key=lambda term: -abs(term.more_s))))


# ---- the other scenarios ------------------------------------------------------------------------------------------


def scenario_bests(result: Result, by: str) -> Iterator[ScenarioBest]:
    """The best of every scenario of which something is finished, as the search ranked it."""
    for name in result.scenarios:
        if result.shards(name):
            yield _scenario_best(result, name, by)


def _scenario_best(result: Result, name: str, by: str) -> ScenarioBest:
    shards, origin = result.shards(name), result.origin(name)
    recipe = origin.recipe
    found: Leaders = leaders(result, name, 1, by=by, capacity_bytes=capacity_bytes(origin))
    best: dict[str, Any] = {}
    if found.n_fit:
        row = rows_at(result, name, found.index)[int(found.index[0])]
        days = budget_days(origin.recipe, row["step_time_s"])
        cost_usd = budget_usd(origin.recipe, origin.hardware, origin.devices, row["step_time_s"])
        copied = ("step_time_s", "step_time_low_s", "step_time_high_s", "mfu", "memory_bytes")
        best = {key: row[key] for key in copied} | {"days": days, "cost_usd": cost_usd}
        best["tokens_per_s"] = recipe.tokens_per_step / row["step_time_s"]
    return ScenarioBest(
        name=name,
        model=origin.model.name,
        hardware=origin.hardware.name,
        devices=origin.devices,
        precision=recipe.precision,
        framework=recipe.framework.name,
        seq_len=recipe.seq_len,
        global_batch=recipe.global_batch,
        n_plans=sum(shard.n_plans for shard in shards),
        n_fit=sum(shard.n_fit for shard in shards),
        plan=knobs_of(row) if found.n_fit else None,
        **best,
    )


# ---- where it comes from ------------------------------------------------------------------------------------------


def provenance_of(
    result: Result, origin: ScenarioOrigin, uncertainty: Uncertainty, source: ResultRow | None
) -> Provenance:
    """What made the result and its numbers."""
    manifest, calibration = result.manifest, origin.hardware.calibration
    return Provenance(
        result=str(result.directory),
        status=manifest.status,
        result_version=manifest.dlcalc_version,
        report_version=__version__,
        space_text=manifest.space_text,
        space_sha256=manifest.space_sha256,
        settings=manifest.settings,
        hardware=tuple(_sources(origin.hardware)),
        calibration=calibration.provenance,
        is_measured=calibration.measured,
        uncertainty=uncertainty.provenance,
        framework=f"{origin.recipe.framework.name}: {origin.recipe.framework.description}",
        citations=citations(source) if source is not None else (),
    )


def _sources(hardware: HardwareSpec) -> Iterator[Source]:
    """Every number of the machine with where it was read."""
    for part in (hardware.device, hardware.node, hardware.fabric):
        for name, value in _quoted(part):
            yield Source(name.replace("_", " "), f"{value.value:g}", value.source)
    for group in hardware.node.groups:
        quoted = group.link_gb_per_s
        yield Source(f"link gb per s of {group.n_devices} neighbours", f"{quoted.value:g}", quoted.source)
    if hardware.price:
        price = hardware.price
        yield Source("usd per device hour", f"{price.usd_per_device_hour:g} ({price.date})", price.source)


def _quoted(part: BaseModel) -> Iterator[tuple[str, Quoted]]:
    for name in type(part).model_fields:
        value = getattr(part, name)
        if isinstance(value, Quoted):
            yield name, value
        elif isinstance(value, Mapping):
            yield from ((f"{name} {key}", item) for key, item in value.items() if isinstance(item, Quoted))
