"""What a placement of a plan costs in step time: the estimate as everywhere, on the links that its groups cross."""

from __future__ import annotations

from dlcalc.costmodel.estimate import Estimate, estimate
from dlcalc.costmodel.node_traffic import node_traffic
from dlcalc.errors import TopologyError
from dlcalc.report.topology_facts import StepCost
from dlcalc.search.run import Run
from dlcalc.topology.crossing import placed_rates
from dlcalc.topology.fabric import Fabric
from dlcalc.topology.job import JobShape, Placement
from dlcalc.topology.seconds import Traffic


def placed_estimate(run: Run, placement: Placement | None, fabric: Fabric) -> Estimate | None:
    """Of a plan, with the links that its placed groups cross; None where they are not known."""
    if placement is not None and why_no_seconds(run, placement, fabric):
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


def traffic_of(run: Run, job: JobShape) -> Traffic:
    """What a plan sends out of a node in a step, hidden behind compute or not."""
    planned = run.hardware.node.devices_of_job(run.devices)
    if job.node_devices != planned:
        raise TopologyError(
            f"--objective seconds: the plan's nodes have {planned} devices, these {job.node_devices}, "
            f"so what leaves a node is not known"
        )
    found = node_traffic(run.estimate())
    return Traffic(dp_bytes=found.dp_bytes, cp_bytes=found.cp_bytes, ep_bytes=found.ep_bytes, pp_bytes=found.pp_bytes)


def why_no_seconds(run: Run, placement: Placement, fabric: Fabric) -> str:
    """Why a placement cannot be said in step time; empty where it can."""
    planned = run.hardware.node.devices_of_job(run.devices)
    if placement.job.node_devices != planned:
        return (
            f"no step times: the plan's nodes have {planned} devices, these {placement.job.node_devices}, "
            f"so their links are not those of the plan"
        )
    if all(fabric.rate_bytes_per_s_per_node(tier) is None for tier in range(fabric.n_tiers)):
        return "no step times: the fabric does not say the rates of its tiers"
    return ""


def step_cost(
    run: Run | None, fabric: Fabric, actual: Placement, own: Placement, free: Placement
) -> tuple[StepCost | None, tuple[str, ...]]:
    """Step times of three placements of a plan; or why they are not known."""
    if run is None:
        return None, ("in hops only; with --plan also in step time",)
    why = why_no_seconds(run, actual, fabric)
    if why:
        return None, (why,)
    times = [placed_estimate(run, placement, fabric) for placement in (actual, own, free)]
    actual_s, own_s, free_s = (float(found.step_time_s) for found in times if found is not None)
    return StepCost(actual_s=actual_s, best_on_own_s=own_s, best_on_free_s=free_s), ()
