"""topoeval: how well a running job sits on its fabric."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlcalc.errors import TopologyError
from dlcalc.report.topology_facts import Evaluation, KindHops, Shortfall
from dlcalc.topology.assign import best_on, place
from dlcalc.topology.fabric import Fabric, FabricNode
from dlcalc.topology.job import JobShape, Placement
from dlcalc.topology.rings import GroupHops, group_hops, tour_hops
from dlcalc.topology.seconds import whole_nodes
from dlcalc.topology.sources.read import read_fabric, save_fabric
from dlcalc.workflows.topology.jobs import JobChoice, degrees_of, node_devices_of, some
from dlcalc.workflows.topology.step_cost import step_cost


def evaluate_job(
    job_prefix: str,
    chosen: JobChoice,
    *,
    topology: str,
    save: Path | None = None,
    time_limit: float = 10.0,
    say: Callable[[str], None] = lambda text: None,
    **where: Any,  # noqa: ANN401 - what read_fabric alone reads, passed on by name
) -> Evaluation:
    """How a running job sits, against the best on its own nodes and on all that it could have."""
    degrees, run = degrees_of(chosen)
    fabric = read_fabric(topology, job_prefix=job_prefix, node_devices=chosen.node_devices, **where)
    if save is not None:
        save_fabric(fabric, save)
    members = _one_job(fabric, job_prefix)
    job = JobShape(**degrees, node_devices=node_devices_of(chosen.node_devices, run, members))
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
    step, why = step_cost(run, fabric, actual, own, free)
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
        raise TopologyError(f"job {name}: no topology data of {some(without)}")
    known = [node.rank for node in members]
    if None in known:
        missing = [node.name for node in members if node.rank is None]
        return (f"the ranks of {some(missing)} are not known; nodes without a rank come last, by name",)
    twice = sorted({rank for rank in known if rank is not None and known.count(rank) > 1})
    if twice:
        raise TopologyError(f"job {name}: node rank {twice[0]} is there twice")
    return ()
