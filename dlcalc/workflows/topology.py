"""Use cases behind ``topoviz``, ``topoeval`` and ``topoassign``: read a fabric, place or measure, write. Never click.

A job is given by its degrees, or by a plan of a result or run file; then what its placement costs is also said in step
time, from the same estimate as everywhere, with the links that the placed groups cross.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.node_traffic import node_traffic
from dlcalc.errors import DlcalcError, TopologyError, UnknownNameError
from dlcalc.launch import ranks
from dlcalc.report.topology_facts import (
    Assignment,
    Drawing,
    Evaluation,
    KindHops,
    Shortfall,
    StepCost,
    assignment_document,
)
from dlcalc.report.topology_page import DrawnRing, topology_page
from dlcalc.search.run import Run
from dlcalc.topology.assign import KeepTogether, best_on, place, roots_of
from dlcalc.topology.crossing import placed_rates
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.job import JobShape, Objective, Placement
from dlcalc.topology.rings import GroupHops, group_hops, tour_hops
from dlcalc.topology.seconds import Traffic, whole_nodes
from dlcalc.topology.sources.read import exclusions, read_fabric, save_fabric
from dlcalc.utils.jsontext import to_json
from dlcalc.workflows.run import open_run

USUAL_NODE_DEVICES = 8
NO_LOSS = 1e-3
"""Of a step: less is not worth another placement."""
OBJECTIVES: Mapping[str, Objective] = {"hops": "hops", "worst-ring": "worst_ring", "seconds": "seconds"}
LAUNCH_FILES = {
    "json": "placement.json",
    "nodes": "nodes.txt",
    "rankfile": "rankfile.txt",
    "slurm": "slurm_hostfile.txt",
    "torchrun": "torchrun.sh",
    "kubernetes": "kubernetes_affinity.yaml",
}
"""Name of the file of each format."""


# ---- topoassign ---------------------------------------------------------------------------------------------------


def assign_nodes(
    *,
    topology: str,
    tp: int | None = None,
    pp: int | None = None,
    dp: int | None = None,
    cp: int | None = None,
    ep: int | None = None,
    etp: int | None = None,
    node_devices: int | None = None,
    plan: Path | None = None,
    rank: int | None = None,
    scenario: str | None = None,
    exclude: Sequence[str] = (),
    save: Path | None = None,
    objective: str = "hops",
    keep_together: KeepTogether = "none",
    time_limit: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
    **where: Any,  # noqa: ANN401 - what read_fabric alone reads, passed on by name
) -> Assignment:
    """The best placement found of a job on the free nodes of a fabric."""
    degrees, run = _degrees(plan, rank, scenario, tp=tp, pp=pp, dp=dp, cp=cp, ep=ep, etp=etp)
    _may_be_minimised(objective, run)
    fabric = read_fabric(topology, exclude=exclusions(exclude), node_devices=node_devices, **where)
    if save is not None:
        save_fabric(fabric, save)
    job = JobShape(**degrees, node_devices=_node_devices(node_devices, run, fabric.candidates()))
    placement = place(
        fabric,
        job,
        objective=OBJECTIVES[objective],
        keep_together=keep_together,
        traffic=_traffic(run, job) if run and objective == "seconds" else None,
        time_limit_s=time_limit,
        say=say,
    )
    why = _why_no_seconds(run, placement, fabric) if run else ""
    before, placed = (_estimate(run, None, fabric), _estimate(run, placement, fabric)) if run else (None, None)
    if run and before and placed and placed.step_time_s > before.step_time_s * (1.0 + NO_LOSS):
        why = _other_objective(run, fabric, placement, float(placed.step_time_s), keep_together, time_limit / 4)
    return Assignment(
        fabric=fabric,
        placement=placement,
        hosts=ranks.host_names(placement, fabric),
        rank_to_node=ranks.rank_to_node(placement),
        plan=run.name if run else None,
        step_time_s=float(placed.step_time_s) if placed else None,
        unplaced_step_time_s=float(before.step_time_s) if before and placed else None,
        remarks=tuple(remark for remark in (why, _apart(fabric, placement)) if remark),
    )


def _apart(fabric: Fabric, placement: Placement) -> str:
    roots = roots_of(fabric, placement)
    if len(roots) < 2:
        return ""
    return f"pipeline stages sit below switches that nothing known joins: {_some(roots)}"


def _other_objective(
    run: Run, fabric: Fabric, placement: Placement, step_s: float, keep_together: KeepTogether, time_limit_s: float
) -> str:
    """Whether the plan is faster where another objective puts it: neither hops nor time on the links is a step."""
    other: Objective = "hops" if placement.objective == "seconds" else "seconds"
    if other == "seconds" and not all(fabric.rate_bytes_per_s_per_node(tier) for tier in range(fabric.n_tiers)):
        return ""
    job = placement.job
    traffic = _traffic(run, job) if other == "seconds" else None
    found = place(fabric, job, objective=other, keep_together=keep_together, traffic=traffic, time_limit_s=time_limit_s)
    there = _estimate(run, found, fabric)
    if there is None or there.step_time_s >= step_s * (1.0 - NO_LOSS):
        return ""
    there_s = float(there.step_time_s)
    return (
        f"--objective {other} places it where a step takes {there_s:.4g} s, {100 * (1.0 - there_s / step_s):.1f} % less"
    )


def launch_text(found: Assignment, form: str, *, rank_cores: int = 1) -> str:
    """The placement in one of the formats."""
    devices = found.placement.job.node_devices
    match form:
        case "json":
            return to_json(assignment_document(found)) + "\n"
        case "nodes":
            return ranks.node_list(found.hosts)
        case "rankfile":
            return ranks.open_mpi_rankfile(found.hosts, node_devices=devices, rank_cores=rank_cores)
        case "slurm":
            return ranks.slurm_hostfile(found.hosts, node_tasks=devices)
        case "torchrun":
            return ranks.torchrun_script(found.hosts, node_devices=devices)
        case "kubernetes":
            return ranks.kubernetes_affinities(found.hosts)
    raise UnknownNameError("format", form, LAUNCH_FILES)


def write_launch_files(found: Assignment, folder: Path, *, rank_cores: int = 1) -> None:
    """Every format into ``folder``, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DlcalcError(f"{folder}: cannot be made ({(error.strerror or str(error)).lower()})") from error
    for form, name in LAUNCH_FILES.items():
        _write(folder / name, launch_text(found, form, rank_cores=rank_cores))


# ---- topoeval -----------------------------------------------------------------------------------------------------


def evaluate_job(
    job_prefix: str,
    *,
    topology: str,
    tp: int | None = None,
    pp: int | None = None,
    dp: int | None = None,
    cp: int | None = None,
    ep: int | None = None,
    etp: int | None = None,
    node_devices: int | None = None,
    plan: Path | None = None,
    rank: int | None = None,
    scenario: str | None = None,
    save: Path | None = None,
    time_limit: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
    **where: Any,  # noqa: ANN401 - what read_fabric alone reads, passed on by name
) -> Evaluation:
    """How a running job sits, against the best on its own nodes and on all that it could have."""
    degrees, run = _degrees(plan, rank, scenario, tp=tp, pp=pp, dp=dp, cp=cp, ep=ep, etp=etp)
    fabric = read_fabric(topology, job_prefix=job_prefix, node_devices=node_devices, **where)
    if save is not None:
        save_fabric(fabric, save)
    members = _one_job(fabric, job_prefix)
    job = JobShape(**degrees, node_devices=_node_devices(node_devices, run, members))
    remarks = _check_members(members, job)
    order = [node.name for node in members]
    actual = _as_placed(fabric, order, job)
    shape = job
    if _tears_domains(fabric, order, job):
        shape = replace(job, tp=1, cp=1, dp=job.stage_devices)  # the same rings, free to do so too
        remarks = (
            *remarks,
            "tensor-parallel groups span nodes that share no known NVLink domain; so may the best ones",
        )
    own = replace(best_on(fabric, order, shape, time_limit_s=time_limit, say=say), job=job)
    freed = _freed(fabric, set(order))
    free = replace(place(freed, shape, time_limit_s=time_limit, say=say), job=job)
    hops = {
        name: group_hops(fabric, job, placement.node_order)
        for name, placement in (("actual", actual), ("own", own), ("free", free))
    }
    has_experts = job.ep * job.etp > 1
    kinds = tuple(
        KindHops(
            kind=kind,
            groups=tuple(sorted(groups, key=lambda group: -group.hops)),
            best_on_own_hops=_total_hops(hops["own"][kind]),
            best_on_free_hops=_total_hops(hops["free"][kind]),
        )
        for kind, groups in hops["actual"].items()
        if any(len(group.nodes) > 1 for group in groups) and (has_experts or kind not in ("ep", "expert_dp"))
    )
    step, why = _step_cost(run, fabric, actual, own, free)
    return Evaluation(
        fabric=fabric,
        job_name=members[0].job,
        job=job,
        kinds=kinds,
        actual=actual,
        best_on_own=Shortfall.of(actual, own),
        best_on_free=Shortfall.of(actual, free),
        n_moved=len(set(free.node_order) - set(order)),
        plan=run.name if run else None,
        step=step,
        remarks=(*remarks, *why),
    )


def _as_placed(fabric: Fabric, order: Sequence[str], job: JobShape) -> Placement:
    """The placement that a running job has: its nodes by rank, whatever that costs."""
    size = job.ring_nodes
    rings = tuple(tuple(order[at : at + size]) for at in range(0, len(order), size))
    hops = float(sum(tour_hops(fabric, ring) for ring in rings))
    return Placement(job, rings, "hops", hops, None, hops, 0.0, proved_optimal=False, method="as it runs")


def _tears_domains(fabric: Fabric, order: Sequence[str], job: JobShape) -> bool:
    """Whether a tensor-parallel group of a running job spans nodes of several NVLink domains, or of none known."""
    if job.tp_nodes == 1:
        return False
    size = whole_nodes(job.tp, job)
    domains = [fabric.by_name[name].domain or f" {name}" for name in order]
    return any(len(set(domains[at : at + size])) > 1 for at in range(0, len(domains), size))


def _freed(fabric: Fabric, names: Collection[str]) -> Fabric:
    """The fabric as it would be without the job on ``names``."""
    return fabric.only(replace(node, state="free") if node.name in names else node for node in fabric.nodes)


def _total_hops(groups: Sequence[GroupHops]) -> int:
    return sum(group.hops * group.n_groups for group in groups)


def _one_job(fabric: Fabric, prefix: str) -> tuple[FabricNode, ...]:
    """Nodes of the only job whose name begins so, or is exactly that."""
    members = fabric.of_job(prefix)
    jobs = sorted({node.job for node in members})
    if len(jobs) > 1 and prefix in jobs:
        jobs, members = [prefix], tuple(node for node in members if node.job == prefix)
    if len(jobs) > 1:
        shown = ", ".join(jobs[:5]) + (f" and {len(jobs) - 5:,} more" if len(jobs) > 5 else "")
        raise TopologyError(f"{len(jobs)} jobs begin with {prefix}: {shown}; give more of the name")
    return members


def _check_members(members: Sequence[FabricNode], job: JobShape) -> tuple[str, ...]:
    """What is wrong with the nodes of a job: an error if it cannot be measured, remarks if it is measured in part."""
    name = members[0].job
    if len(members) != job.n_nodes:
        raise TopologyError(
            f"job {name} runs on {len(members):,} nodes, but tp x cp x dp x pp = {job.n_devices:,} devices need "
            f"{job.n_nodes:,} of {job.node_devices}"
        )
    without = [node.name for node in members if not node.switches]
    if without:
        raise TopologyError(f"job {name}: no topology data of {_some(without)}")
    known = [node.rank for node in members]
    if None in known:
        missing = [node.name for node in members if node.rank is None]
        return (f"the ranks of {_some(missing)} are not known; nodes without a rank come last, by name",)
    twice = sorted({rank for rank in known if rank is not None and known.count(rank) > 1})
    if twice:
        raise TopologyError(f"job {name}: node rank {twice[0]} is there twice")
    return ()


# ---- topoviz ------------------------------------------------------------------------------------------------------


def draw_fabric(
    job_prefix: str | None,
    *,
    topology: str,
    out: Path,
    pp: int | None = None,
    placement: Path | None = None,
    save: Path | None = None,
    **where: Any,  # noqa: ANN401 - what read_fabric alone reads, passed on by name
) -> Drawing:
    """The page of a fabric, with the rings of running or of planned jobs."""
    if pp is not None and job_prefix is None:
        raise TopologyError("--pp splits a job into rings: give JOB_PREFIX")
    fabric = read_fabric(topology, job_prefix=job_prefix, **where)
    if save is not None:
        save_fabric(fabric, save)
    remarks = list(fabric.remarks)
    if placement is not None:
        rings = _planned_rings(placement, fabric)
        title = f"{placement.name} on {fabric.source or topology}"
    elif job_prefix is not None:
        rings = _running_rings(fabric, job_prefix, pp or 1)
        title = f"{job_prefix} on {fabric.source or topology}"
    else:
        rings, title = [], fabric.source or topology
    without = [node.name for node in fabric.nodes if not node.switches]
    if without:
        remarks.append(f"no topology data: {_some(without)}")
    _write(out, topology_page(fabric, rings, title=title, remarks=remarks))
    return Drawing(fabric=fabric, rings=tuple(rings), page=out, remarks=tuple(remarks))


def _running_rings(fabric: Fabric, prefix: str, n_rings: int) -> list[DrawnRing]:
    members = fabric.of_job(prefix)
    jobs = list(dict.fromkeys(node.job for node in members))
    found = []
    for job in jobs:
        nodes = [node.name for node in members if node.job == job]
        if len(nodes) % n_rings:
            raise TopologyError(f"job {job} runs on {len(nodes):,} nodes, which are not {n_rings:,} equal stages")
        size = len(nodes) // n_rings
        for stage in range(n_rings):
            label = f"{job if len(jobs) > 1 or n_rings == 1 else ''} {f'stage {stage}' if n_rings > 1 else ''}".strip()
            found.append(DrawnRing(label, tuple(nodes[stage * size : (stage + 1) * size]), stage * size))
    return found


def _planned_rings(file: Path, fabric: Fabric) -> list[DrawnRing]:
    """Rings of what ``topoassign --json`` printed."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TopologyError(f"{file}: cannot be read ({(error.strerror or str(error)).lower()})") from error
    except (ValueError, RecursionError) as error:
        raise TopologyError(f"{file}: not what topoassign --json prints ({error})") from error
    rings = document.get("rings") if isinstance(document, dict) else None
    if not isinstance(rings, list) or not all(
        isinstance(ring, list) and ring and all(isinstance(name, str) for name in ring) for ring in rings
    ):
        raise TopologyError(f"{file}: not what topoassign --json prints: rings is no list of lists of nodes")
    found, first, seen = [], 0, set[str]()
    for stage, ring in enumerate(rings):
        for name in ring:
            if name not in fabric.by_name:
                raise TopologyError(f"{file}: {UnknownNameError('node', name, fabric.by_name)}")
            if name in seen:
                raise TopologyError(f"{file}: node {name} is in two places")
            seen.add(name)
        found.append(DrawnRing(f"stage {stage}", tuple(ring), first))
        first += len(ring)
    return found


# ---- jobs and plans -----------------------------------------------------------------------------------------------


def _degrees(
    plan: Path | None, rank: int | None, scenario: str | None, **given: int | None
) -> tuple[dict[str, int], Run | None]:
    """Degrees from options, or from a plan."""
    said = {name: degree for name, degree in given.items() if degree is not None}
    if plan is None:
        for option, value in (("--rank", rank), ("--scenario", scenario)):
            if value is not None:
                raise TopologyError(f"{option} picks a plan: give --plan as well")
        missing = [f"--{name}" for name in ("tp", "pp", "dp") if name not in said]
        if missing:
            raise TopologyError(f"{' and '.join(missing)} missing: give --tp, --pp and --dp, or --plan")
        return said, None
    if said:
        raise TopologyError(f"--{next(iter(said))} and --plan both say the degrees; give one of them")
    run = open_run(plan, rank=rank, scenario=scenario).resolve({})
    return {name: int(getattr(run.plan, name)) for name in ("tp", "pp", "dp", "cp", "ep", "etp")}, run


def _node_devices(given: int | None, run: Run | None, nodes: Sequence[FabricNode]) -> int:
    """Devices of a node: as told, else the plan's where nodes have so many, else what all nodes have."""
    if given is not None:
        return given
    sizes = {node.n_devices for node in nodes}
    planned = run.hardware.node.n_devices if run else USUAL_NODE_DEVICES
    if planned in sizes or len(sizes) != 1:
        return planned
    return sizes.pop()


def _may_be_minimised(objective: str, run: Run | None) -> None:
    if objective == "seconds" and run is None:
        raise TopologyError("--objective seconds weighs traffic, which only a plan says: give --plan")


# ---- step time ----------------------------------------------------------------------------------------------------


def _estimate(run: Run, placement: Placement | None, fabric: Fabric) -> Estimate | None:
    """Of a plan, with the links that its placed groups cross; None where they are not known."""
    if placement is not None and _why_no_seconds(run, placement, fabric):
        return None
    rates = (
        placed_rates(fabric, placement, run.hardware, dp_replicate=run.plan.dp_replicate, vpp=run.plan.vpp)
        if placement is not None
        else None
    )
    return estimate(
        run.model,
        run.hardware,
        run.recipe,
        run.plan,
        custom_split=run.custom_split,
        memory_headroom=run.memory_headroom,
        placed=rates,
    )


def _traffic(run: Run, job: JobShape) -> Traffic:
    """What a plan sends out of a node in a step, hidden behind compute or not."""
    planned = run.hardware.node.n_devices
    if job.node_devices != planned:
        raise TopologyError(
            f"--objective seconds: the plan's nodes have {planned} devices, these {job.node_devices}, "
            f"so what leaves a node is not known"
        )
    found = node_traffic(run.estimate())
    return Traffic(dp_bytes=found.dp_bytes, cp_bytes=found.cp_bytes, ep_bytes=found.ep_bytes, pp_bytes=found.pp_bytes)


def _why_no_seconds(run: Run, placement: Placement, fabric: Fabric) -> str:
    """Why a placement cannot be said in step time; empty where it can."""
    planned = run.hardware.node.n_devices
    if placement.job.node_devices != planned:
        return (
            f"no step times: the plan's nodes have {planned} devices, these {placement.job.node_devices}, "
            f"so their links are not those of the plan"
        )
    if all(fabric.rate_bytes_per_s_per_node(tier) is None for tier in range(fabric.n_tiers)):
        return "no step times: the fabric does not say the rates of its tiers"
    return ""


def _step_cost(
    run: Run | None, fabric: Fabric, actual: Placement, own: Placement, free: Placement
) -> tuple[StepCost | None, tuple[str, ...]]:
    """Step times of three placements of a plan; or why they are not known."""
    if run is None:
        return None, ("in hops only; with --plan also in step time",)
    why = _why_no_seconds(run, actual, fabric)
    if why:
        return None, (why,)
    times = [_estimate(run, placement, fabric) for placement in (actual, own, free)]
    actual_s, own_s, free_s = (float(found.step_time_s) for found in times if found is not None)
    return StepCost(actual_s=actual_s, best_on_own_s=own_s, best_on_free_s=free_s), ()


# ---- files --------------------------------------------------------------------------------------------------------


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise DlcalcError(f"{file}: cannot be written ({(error.strerror or str(error)).lower()})") from error


def _some(names: Sequence[str], most: int = 8) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
