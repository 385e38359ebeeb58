"""What a plan sends out of a node in a step, by axis: the weights of links, where a placement is chosen for them.

Counted from the same exchanges that the estimate takes its time for. A ring enters and leaves each of its nodes once,
however many of its ranks sit there; in an all-to-all every rank sends to all that are elsewhere, once
to a node where the dispatcher knows nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlcalc.costmodel.anatomy.traffic import CollectiveFacts, axis_facts
from dlcalc.costmodel.estimate import Estimate


@dataclass(frozen=True)
class NodeTraffic:
    """Bytes that leave an average node in a step, hidden behind compute or not; 0 of groups that stay in a node."""

    tp_bytes: float = 0.0
    cp_bytes: float = 0.0
    ep_bytes: float = 0.0
    pp_bytes: float = 0.0
    """To both neighbouring stages together."""
    dp_bytes: float = 0.0
    """Gradients and parameters, of experts too."""


def node_traffic(found: Estimate) -> NodeTraffic:
    """Of the plan of a point."""
    node_devices = float(found.machine.hardware.node.devices_of_job(int(found.n_devices)))
    return NodeTraffic(
        **{
            f"{axis.axis.lower()}_bytes": sum(_leaving_bytes(call, node_devices) for call in axis.collectives)
            for axis in axis_facts(found)
        }
    )


def _leaving_bytes(call: CollectiveFacts, node_devices: float) -> float:
    """Of all groups that have ranks on a node, what one kind of call sends out of it in a step."""
    if call.link == "node":
        return 0.0
    n, here = call.n_ranks, call.ranks_per_node
    sent = call.size_bytes * call.calls_per_step
    groups = node_devices / here
    match call.operation:
        case "send":
            return sent * node_devices
        case "all_to_all":
            return sent * node_devices * (n - here) / n * call.off_node_fraction
        case "all_reduce":
            return 2.0 * sent * groups * (n - 1.0) / n
        case _:
            return sent * groups * (n - 1.0) / n
