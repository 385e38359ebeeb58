"""What data-parallel ranks exchange in a step, and what of it runs behind the passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcalc.calculators.communication import GroupLink, all_gather_time_s, all_reduce_time_s, reduce_scatter_time_s
from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import Array, Plans
from dlcalc.costmodel.stage_params import StageParams
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.recipe import Recipe


@dataclass(frozen=True)
class Overlap:
    """What of the exchanges between data-parallel ranks runs behind a pass.

    No more than is sent, and no more than the pass lasts: hidden is ``min(sent, window)``, both less what the exchange
    slows the pass down.
    """

    grad_limit_s: Array  # mesh x data x pipe x batch
    grad_factor: Array
    """Share of the backward pass, times micro-batches, that hides gradients; mesh x data x batch."""
    gather_limit_s: Array
    gather_forward_s: Array
    """Forward passes that hide parameters; mesh x data x pipe x batch x tensor."""
    gather_factor: Array
    """Share of the backward pass, times micro-batches, that hides parameters."""
    backward_s: Array
    """One micro-batch's backward pass on the slowest stage; mesh x pipe x batch x redo x tensor."""

    @property
    def grad_hidden_s(self) -> Array:
        return np.minimum(self.grad_limit_s, self.backward_s * self.grad_factor)

    @property
    def gather_hidden_s(self) -> Array:
        return np.minimum(self.gather_limit_s, self.gather_forward_s + self.backward_s * self.gather_factor)


def data_parallel_exchanges(
    plans: Plans,
    links: Links,
    params: StageParams,
    machine: Machine,
    micro_batches: Array,
    forward: Array,
    backward: Array,
) -> dict[str, Any]:
    """Gradient reduction and parameter gathering: what is sent, and what of it is hidden.

    ZeRO 0 reduces once a step, 1 scatters once and gathers once, 2 scatters every micro-batch and may gather as often,
    3 gathers twice and scatters once every micro-batch. Overlapped, all but the last bucket hides behind the passes of
    the micro-batches it belongs to, and slows them.
    """
    profile = machine.recipe.framework
    stage_3 = plans.zero_stage == 3
    sharded = (plans.zero_stage >= 1).astype(np.float64)
    scattered = sharded * ~reduces_whole(plans, machine.recipe)
    reduce_bytes, gather_bytes = float(profile.grad_reduce_bytes), 2.0

    reduced = _group_comm(links.shard, params.dense * reduce_bytes, machine, scattered)  # mesh x pipe x data
    across = _group_comm(
        links.replicate, params.dense * reduce_bytes / links.shard.n_ranks, machine, np.zeros_like(plans.zero_stage)
    )
    gathered = _gather_comm(links.shard, params.dense * gather_bytes, machine)
    if np.any(params.expert):
        reduced = reduced + _group_comm(links.expert_shard, params.expert * reduce_bytes, machine, scattered)
        gathered = gathered + _gather_comm(links.expert_shard, params.expert * gather_bytes, machine)
    reduces = np.where(plans.zero_stage >= 2, micro_batches, 1.0)  # mesh x batch x data
    gathers = sharded * np.where(stage_3 | gathers_again(plans, profile), micro_batches, 1.0)
    per_gather = np.where(stage_3, 2.0, 1.0) * gathered  # mesh x pipe x data

    total_bytes = (params.dense + params.expert) * reduce_bytes
    tail = np.minimum(1.0, profile.bucket_bytes / np.maximum(total_bytes, 1.0))  # mesh x pipe
    kept = 1.0 - profile.overlap_slowdown
    gather_share = stage_3 * (gather_bytes / (gather_bytes + reduce_bytes))  # of the backward pass, data
    hides_grad = (kept * plans.overlap_grad) * reduces  # mesh x data x batch
    hides_gather = (kept * plans.overlap_param) * gathers
    return {
        "grad_reduce_sent_s": reduces * reduced + across,
        "param_gather_sent_s": gathers * per_gather,
        "overlap": Overlap(
            grad_limit_s=hides_grad * (reduced * (1.0 - tail)) + (kept * plans.overlap_grad) * across,
            grad_factor=hides_grad * (1.0 - gather_share),
            gather_limit_s=hides_gather * (per_gather * (1.0 - tail)),
            gather_forward_s=forward * hides_gather,
            gather_factor=hides_gather * gather_share,
            backward_s=backward,
        ),
    }


def gathers_again(plans: Plans, profile: FrameworkProfile) -> Mask:
    """Where ZeRO 2 gathers for every micro-batch; pipelines keep what they gathered."""
    return np.asarray(profile.gathers_again_at_stage_2 & (plans.zero_stage == 2) & (plans.pp == 1))


def reduces_whole(plans: Plans, recipe: Recipe) -> Mask:
    """Where ranks that shard the optimizer reduce whole gradients all the same."""
    return np.asarray(
        (recipe.framework.all_reduces_for_shards and recipe.precision == "bf16") & (plans.zero_stage == 1)
    )


def _group_comm(link: GroupLink, size_bytes: Array, machine: Machine, sharded: Array) -> Array:
    """Reduce-scatter where the states are sharded, all-reduce where they are not."""
    rates = machine.hardware.calibration
    node, fabric = rates.node_collectives, rates.fabric_collectives
    scatter = reduce_scatter_time_s(size_bytes, link, node=node["reduce_scatter"], fabric=fabric["reduce_scatter"])
    whole = all_reduce_time_s(size_bytes, link, node=node["all_reduce"], fabric=fabric["all_reduce"])
    return sharded * scatter + (1.0 - sharded) * whole


def _gather_comm(link: GroupLink, size_bytes: Array, machine: Machine) -> Array:
    rates = machine.hardware.calibration
    return np.asarray(
        all_gather_time_s(
            size_bytes,
            link,
            node=rates.node_collectives["all_gather"],
            fabric=rates.fabric_collectives["all_gather"],
        )
    )
