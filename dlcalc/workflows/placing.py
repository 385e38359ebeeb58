"""The second stage of a search: the best meshes on real nodes, their plans estimated again, and ranked anew.

Where ranks sit depends on the mesh alone, so meshes are placed, best first by their best plan; and since what is placed
are rings, meshes whose rings are alike share a placement by hops. Where rates are known, one that loses by it is placed
by the time of its best plan's traffic as well, and keeps what its estimate says is faster. Of a placed mesh every plan
is estimated again on the links that its groups cross: the plan that is best on paper need not be the best of its mesh
there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from dlcalc.costmodel.node_traffic import node_traffic
from dlcalc.costmodel.plans import Array
from dlcalc.errors import DlcalcError, NoPlacementError, SpecError, TopologyError
from dlcalc.results.placed import PlacedTables
from dlcalc.results.reader import Result
from dlcalc.search.exhaustive import search_block
from dlcalc.search.found import Found
from dlcalc.search.space import DEGREES, Scenario
from dlcalc.specs.load import load_yaml, spec_error
from dlcalc.specs.space import TopologySpec
from dlcalc.topology.assign import place
from dlcalc.topology.domains import Machines, with_node_devices
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.job import JobShape, Placement
from dlcalc.topology.seconds import Traffic
from dlcalc.topology.sources.read import exclusions, read_fabric
from dlcalc.workflows.placed_mesh import PLACED_PLANS, PlacedMesh, PlacedScenario, Placing, plans_per_mesh
from dlcalc.workflows.placed_rows import placed_rows, ranks_of
from dlcalc.workflows.sweep import Index, Progress, estimate_rows

SHOWN_REASONS = 3
NO_LOSS = 1e-3
"""Of a step: less is no reason to place a mesh another way."""


# ---- what is asked ------------------------------------------------------------------------------------------------


def placing_of(
    spec: TopologySpec | None, space_file: Path, *, topology: str | None, place: bool | None, meshes: int | None
) -> Placing | None:
    """What a space file and the options of a search ask for; None where nothing is to be placed."""
    if place is False:
        return None
    if topology is None and spec is None:
        if place or meshes is not None:
            option = "--place" if place else "--place-meshes"
            raise DlcalcError(f"{option}: give the fabric, with --topology FILE or topology: in {space_file}")
        return None
    if topology is not None:
        limits = spec or TopologySpec(source=topology)
        return Placing(_fabric_of(limits, topology), topology, meshes or limits.meshes, limits.time_limit_s)
    assert spec is not None
    source = _source_of(spec, space_file)
    try:
        return Placing(_fabric_of(spec, source), source, meshes or spec.meshes, spec.time_limit_s)
    except (TopologyError, SpecError) as error:
        raise _placed_in(space_file, error) from error


def _fabric_of(spec: TopologySpec, source: str) -> Fabric:
    return read_fabric(
        source,
        region=spec.region,
        zone=spec.zone,
        instance_type=spec.instance_type,
        exclude=exclusions(spec.exclude),
    )


def _source_of(spec: TopologySpec, space_file: Path) -> str:
    """The service, or the file beside the space file, that it names."""
    file = space_file.parent / os.path.expanduser(spec.source)
    return str(file) if os.path.exists(file) or "/" in spec.source or "." in spec.source else spec.source


def _placed_in(space_file: Path, error: DlcalcError) -> DlcalcError:
    """``error`` at the line of the space file that it is about; a mistake in the fabric's own file stays there."""
    if isinstance(error, SpecError) and any(problem.line for problem in error.problems):
        return error
    data, marks = load_yaml(space_file)
    text, path = str(error), ["topology"]
    for key, prefix in (("exclude", "--exclude "), ("source", "--topology ")):
        if isinstance(data["topology"], dict) and (text.startswith(prefix) or key == "source"):
            path = ["topology", key]
            break
    return spec_error(space_file, marks, tuple(path), text.removeprefix("--exclude ").removeprefix("--topology "))


def tables_of(placing: Placing, scenarios: Sequence[Scenario], placed: Sequence[PlacedScenario]) -> PlacedTables:
    """What is written of placed scenarios."""
    placements = [
        {
            "scenario": scenario.name,
            "placement": number,
            "n_rings": mesh.placement.job.n_rings,
            "ring_nodes": len(mesh.rings[0]),
            "node_devices": _machine_devices(mesh),
            **{
                name: getattr(mesh.placement, name)
                for name in ("objective", "cost_hops", "lower_bound_hops", "proved_optimal", "method")
            },
            "rings": mesh.rings,
        }
        for scenario, found in zip(scenarios, placed, strict=True)
        for number, mesh in sorted(found.placements.items())
    ]
    return PlacedTables(
        plans=[row for found in placed for row in found.plans],
        placements=placements,
        topology=placing.topology,
        fabric_sha256=fabric_sha256(placing.fabric),
        settings={"meshes": placing.meshes, "time_limit_s": placing.time_limit_s},
    )


def _machine_devices(mesh: PlacedMesh) -> int:
    job = mesh.placement.job
    return job.ring_nodes * job.node_devices // len(mesh.rings[0])


def fabric_sha256(fabric: Fabric) -> str:
    """Hash of what a placement depends on."""
    held = {"nodes": [asdict(node) for node in fabric.nodes], "rates": fabric.tier_bytes_per_s_per_node}
    return hashlib.sha256(json.dumps(held, sort_keys=True).encode()).hexdigest()


# ---- a scenario ---------------------------------------------------------------------------------------------------


def place_scenario(
    scenario: Scenario, result: Result, searched: Found, placing: Placing, progress: Progress | None = None
) -> PlacedScenario:
    """Place the best meshes of a searched scenario, and rank their plans by what they really get."""
    if scenario.devices <= scenario.hardware.node.n_devices:
        return PlacedScenario(why_none="one node holds it")
    node_devices = scenario.hardware.node.devices_of_job(scenario.devices)
    try:
        machines = with_node_devices(placing.fabric, node_devices)
    except NoPlacementError as error:
        return PlacedScenario(why_none=str(error))
    n_nodes = -(-scenario.devices // node_devices)
    n_free = len(machines.fabric.candidates())
    if n_nodes > n_free:
        return PlacedScenario(why_none=f"it needs {n_nodes:,} nodes and {n_free:,} are free")
    best_s = best_of_meshes(scenario, result, searched)
    order = [int(row) for row in np.argsort(best_s, kind="stable") if np.isfinite(best_s[row])]
    meshes, reasons = _placed_meshes(scenario, order, best_s, machines, placing, progress)
    if not meshes:
        return PlacedScenario(why_none="; ".join(list(reasons)[:SHOWN_REASONS]) or "no plan fits", not_placed=reasons)
    found = Found()
    for mesh in meshes:
        rates = mesh.rates(scenario, scenario.plans(mesh.row, mesh.row + 1))
        bound = found.bound(PLACED_PLANS, "step_time")
        part = search_block(scenario, mesh.row, mesh.row + 1, keep=PLACED_PLANS, bound=bound, placed=rates)
        found.add(part, keep=PLACED_PLANS, key="step_time")
    rank = ranks_of(scenario, searched.leaders)
    at = {mesh.row: mesh for mesh in meshes}
    on_paper = [index for index in rank if index // plans_per_mesh(scenario) in at]
    chosen = np.union1d(found.leaders.index, np.array(on_paper, dtype=np.int64))
    tried = len(meshes) + sum(reasons.values())
    return PlacedScenario(
        plans=placed_rows(scenario, chosen, at, rank),
        meshes=at,
        n_faster_on_paper=int(np.count_nonzero(best_s[order[tried:]] < found.fastest)),
        n_placements=len({mesh.number for mesh in meshes}),
        not_placed=reasons,
    )


def best_of_meshes(scenario: Scenario, result: Result, searched: Found) -> Array:
    """Step time of the best plan of every mesh; infinite where none fits.

    Where the result does not hold all plans that fit, the leaders still hold the best plan of each of their meshes,
    and the other meshes are searched again: one of them may lose least by being placed.
    """
    per_mesh, capacity = plans_per_mesh(scenario), scenario.hardware.device.hbm_bytes * (1.0 - scenario.memory_headroom)
    best = np.full(scenario.shape[0], np.inf)
    leaders = searched.leaders
    np.minimum.at(best, leaders.index // per_mesh, leaders.step_time_s)
    kept, n_kept = best.copy(), 0
    for batch in result.batches(scenario.name, columns=["plan_index", "step_time_s", "memory_bytes"]):
        index, step_s, memory = (batch.column(position).to_numpy() for position in range(3))
        fits = memory <= capacity
        n_kept += int(np.count_nonzero(fits))
        np.minimum.at(kept, index[fits] // per_mesh, step_s[fits])
    if max(n_kept, len(leaders.index)) >= searched.n_fit:
        return kept
    for row in np.flatnonzero(np.isinf(best)):
        best[row] = search_block(scenario, int(row), int(row) + 1, keep=1).fastest
    return best


def _placed_meshes(
    scenario: Scenario,
    order: Sequence[int],
    best_s: Array,
    machines: Machines,
    placing: Placing,
    progress: Progress | None,
) -> tuple[list[PlacedMesh], dict[str, int]]:
    """The first meshes of ``order`` that can be placed; and why others cannot.

    By hops, which rings alone decide; a mesh whose best plan, taking ``best_s`` on paper, could still be the fastest of
    all is placed by time too, and sits where that plan is faster.
    """
    known: dict[tuple[int, ...], Placement | str] = {}
    numbers: dict[tuple[tuple[str, ...], ...], int] = {}
    meshes: list[PlacedMesh] = []
    jobs: set[JobShape] = set()  # meshes that differ in what they exchange alone are one
    reasons: Counter[str] = Counter()
    wanted, fastest_s = min(placing.meshes, len(order)), np.inf
    by_time = _all_rates_known(machines.fabric)
    for row in order:
        if progress:
            progress(len(jobs), wanted, "placing")
        try:
            job = _job_of(scenario, row)
        except TopologyError as error:
            reasons[str(error)] += 1
            continue
        if job not in jobs and len(jobs) == wanted:
            break
        alike = (job.n_rings, job.ring_nodes, job.tp_nodes)
        if alike not in known:
            try:
                known[alike] = place(machines.fabric, job, time_limit_s=placing.time_limit_s)
            except NoPlacementError as error:
                known[alike] = str(error)
        found = known[alike]
        if isinstance(found, str):
            reasons[found] += 1
            continue
        mesh = PlacedMesh(row, 0, replace(found, job=job), machines)
        if by_time and best_s[row] < fastest_s:
            mesh, placed_s = _faster(scenario, mesh, float(best_s[row]), placing.time_limit_s)
            fastest_s = min(fastest_s, placed_s)
        number = numbers.setdefault(mesh.placement.rings, len(numbers))
        meshes.append(replace(mesh, number=number))
        jobs.add(job)
    if progress:
        progress(wanted, wanted, "placing")
    return meshes, dict(reasons.most_common())


def _all_rates_known(fabric: Fabric) -> bool:
    return all(fabric.rate_bytes_per_s_per_node(tier) for tier in range(fabric.n_tiers))


def _faster(scenario: Scenario, mesh: PlacedMesh, paper_s: float, time_limit_s: float) -> tuple[PlacedMesh, float]:
    """The mesh where its best plan is faster, of where it is and of where its traffic takes least time; and that time.

    The time that links take is no step time (what is hidden behind compute counts in full, and a ring that shares an
    uplink is not told from one that has it alone), so the estimate decides.
    """
    plan = search_block(scenario, mesh.row, mesh.row + 1, keep=1).leaders.index
    here_s = _placed_s(scenario, mesh, plan)
    if here_s <= paper_s * (1.0 + NO_LOSS):
        return mesh, here_s
    sent = node_traffic(estimate_rows(scenario, plan[0]))
    traffic = Traffic(dp_bytes=sent.dp_bytes, cp_bytes=sent.cp_bytes, ep_bytes=sent.ep_bytes, pp_bytes=sent.pp_bytes)
    job = mesh.placement.job
    found = place(mesh.machines.fabric, job, objective="seconds", traffic=traffic, time_limit_s=time_limit_s)
    other = replace(mesh, placement=found)
    there_s = _placed_s(scenario, other, plan)
    return (other, there_s) if there_s < here_s * (1.0 - NO_LOSS) else (mesh, here_s)


def _placed_s(scenario: Scenario, mesh: PlacedMesh, plan: Index) -> float:
    """Step time of a plan of a placed mesh."""
    return float(estimate_rows(scenario, plan, mesh.rates(scenario, scenario.rows(plan))).step_time_s[0])


def _job_of(scenario: Scenario, row: int) -> JobShape:
    degrees = {knob: int(scenario.axes[0][knob][row]) for knob in DEGREES}
    return JobShape(**degrees, node_devices=scenario.hardware.node.devices_of_job(scenario.devices))
