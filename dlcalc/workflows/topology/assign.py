"""topoassign: nodes of a fabric for a job, and every rank its node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlcalc.errors import DlcalcError, TopologyError, UnknownNameError
from dlcalc.launch import ranks
from dlcalc.report.topology_facts import Assignment, assignment_document
from dlcalc.search.run import Run
from dlcalc.topology.assign import KeepTogether, place, roots_of
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.job import JobShape, Objective, Placement
from dlcalc.topology.sources.read import exclusions, read_fabric, save_fabric
from dlcalc.utils.jsontext import to_json
from dlcalc.workflows.topology.jobs import JobChoice, degrees_of, node_devices_of, some, write_text
from dlcalc.workflows.topology.step_cost import placed_estimate, traffic_of, why_no_seconds

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


def assign_nodes(
    chosen: JobChoice,
    *,
    topology: str,
    exclude: Sequence[str] = (),
    save: Path | None = None,
    objective: str = "hops",
    keep_together: KeepTogether = "none",
    time_limit: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
    **where: Any,  # noqa: ANN401 - what read_fabric alone reads, passed on by name
) -> Assignment:
    """The best placement found of a job on the free nodes of a fabric."""
    degrees, run = degrees_of(chosen)
    _may_be_minimised(objective, run)
    fabric = read_fabric(topology, exclude=exclusions(exclude), node_devices=chosen.node_devices, **where)
    if save is not None:
        save_fabric(fabric, save)
    job = JobShape(**degrees, node_devices=node_devices_of(chosen.node_devices, run, fabric.candidates()))
    placement = place(
        fabric,
        job,
        objective=OBJECTIVES[objective],
        keep_together=keep_together,
        traffic=traffic_of(run, job) if run and objective == "seconds" else None,
        time_limit_s=time_limit,
        say=say,
    )
    why = why_no_seconds(run, placement, fabric) if run else ""
    before, placed = (placed_estimate(run, where_to, fabric) if run else None for where_to in (None, placement))
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
    return f"pipeline stages sit below switches that nothing known joins: {some(roots)}"


def _other_objective(
    run: Run, fabric: Fabric, placement: Placement, step_s: float, keep_together: KeepTogether, time_limit_s: float
) -> str:
    """Whether the plan is faster where another objective puts it: neither hops nor time on the links is a step."""
    other: Objective = "hops" if placement.objective == "seconds" else "seconds"
    if other == "seconds" and not all(fabric.rate_bytes_per_s_per_node(tier) for tier in range(fabric.n_tiers)):
        return ""
    job = placement.job
    traffic = traffic_of(run, job) if other == "seconds" else None
    found = place(fabric, job, objective=other, keep_together=keep_together, traffic=traffic, time_limit_s=time_limit_s)
    there = placed_estimate(run, found, fabric)
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
        write_text(folder / name, launch_text(found, form, rank_cores=rank_cores))


def _may_be_minimised(objective: str, run: Run | None) -> None:
    if objective == "seconds" and run is None:
        raise TopologyError("--objective seconds weighs traffic, which only a plan says: give --plan")
