"""What a sublayer exposes of its communication: tensor-parallel, context-parallel, expert-parallel, between stages.

Exposed is what no matmul or attention of the same sublayer hides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from dlcalc.calculators import context_parallel as context
from dlcalc.calculators.communication import (
    GroupLink,
    all_gather_time_s,
    all_reduce_time_s,
    all_to_all_time_s,
    distinct_places_count,
    reduce_scatter_time_s,
    send_time_s,
)
from dlcalc.calculators.traffic import CAST_BYTES
from dlcalc.costmodel.layer_matmuls import ZERO, MatmulTime, sum_of
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import Array, Plans
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.hardware import HardwareSpec
from dlcalc.specs.model import ModelSpec

DISPATCH_SETUP_US = 150.0
"""Of a dispatch or a combine by a dispatcher that knows nodes and ranks, beside its kernel: who sends what to whom is
exchanged and laid out. Published times of calls less those of kernels, on 8 ranks of a B200 or GB200: 120 to 160 us."""


def sequence_shards(plans: Plans) -> Array:
    """Over how many ranks norms, residuals and stage boundaries are sharded: tp with sequence parallelism, else 1."""
    return 1.0 + plans.sequence_parallel * (plans.tp - 1.0)


def tp_collectives_count(plans: Plans) -> Array:
    """Collectives of a sublayer's forward pass: an all-reduce, or a gather and a scatter."""
    return (plans.tp > 1) * (1.0 + plans.sequence_parallel)


def stage_send_s(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Array:
    """Time to hand a micro-batch's activations to the neighbouring stage.

    Sequence-parallel ranks send their share. Where the trainer scatters whole activations, so do all tp ranks, and the
    receivers gather them over the node's links.
    """
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    whole = 2.0 * tokens * model.hidden_size
    size = whole / sequence_shards(plans)
    rates = machine.hardware.calibration
    gathered: Array = ZERO
    if machine.recipe.framework.scatters_stage_sends:
        node, fabric = rates.node_collectives["all_gather"], rates.fabric_collectives["all_gather"]
        size = whole / plans.tp
        gathered = (1.0 - plans.sequence_parallel) * all_gather_time_s(whole, links.tp, node=node, fabric=fabric)
    return (plans.pp > 1) * (between_stages_s(size, links, machine) + gathered)


def between_stages_s(size_bytes: Array, links: Links, machine: Machine) -> Array:
    """Time of ``size_bytes`` from a device to that of another stage."""
    rates = machine.hardware.calibration
    where = {"link_bytes_per_s": links.pp_bytes_per_s, "link_latency_s": links.pp_latency_s}
    inside = send_time_s(size_bytes, **where, rates=rates.node_collectives["send"])
    across = send_time_s(size_bytes, **where, rates=rates.fabric_collectives["send"])
    return np.asarray(links.pp_crosses * across + (1.0 - links.pp_crosses) * inside)


class TpExchanges(NamedTuple):
    """Seconds of the exchanges of one tensor between tensor-parallel ranks, hand-over included."""

    gather: Array
    scatter: Array
    both: Array
    """All-reduce."""


def tp_exchanges(links: Links, machine: Machine, size_bytes: Array) -> TpExchanges:
    """What exchanging ``size_bytes`` in all takes, each way; 0 for one rank."""
    rates = machine.hardware.calibration
    node, fabric = rates.node_collectives, rates.fabric_collectives
    handover = machine.recipe.framework.exchange_handover_s * (np.asarray(links.tp.n_ranks) > 1.0)
    ways = {"all_gather": all_gather_time_s, "reduce_scatter": reduce_scatter_time_s, "all_reduce": all_reduce_time_s}
    return TpExchanges(*(
        np.asarray(time_s(size_bytes, links.tp, node=node[way], fabric=fabric[way]) + handover)
        for way, time_s in ways.items()
    ))  # fmt: skip


def tp_comm_s(
    plans: Plans, links: Links, machine: Machine, elements: Array, times: Mapping[str, MatmulTime],
    edges: tuple[str | None, str | None], apart: float = 1.0,
) -> tuple[Array, Array]:  # fmt: skip
    """Exposed tensor-parallel communication of a column-parallel and a row-parallel linear layer.

    Without sequence parallelism one all-reduce a pass, that of the backward pass behind the weight gradient where the
    trainer overlaps it (``apart`` of them where as many projections exchange it on their own). With it, an all-gather
    and a reduce-scatter a pass, and the input gathered once more for its weight gradient. With ``overlap_tp`` all but
    the first of tp chunks hides behind the matmul it feeds, which it slows as hidden communication does anywhere.
    """
    size = 2.0 * elements
    gather, scatter, both = tp_exchanges(links, machine, size)
    if edges[1] and gathered_element_bytes(machine) != 2.0:  # the head's input and its gradient stay in 16 bits
        gather = tp_exchanges(links, machine, gathered_element_bytes(machine) * elements).gather
    copied = _layout_copy_s(plans, machine, size)
    column = times[edges[0]] if edges[0] else None
    row = times[edges[1]] if edges[1] else None
    sharded, overlapped = plans.sequence_parallel, plans.overlap_tp

    profile = machine.recipe.framework
    slowdown, hides = profile.overlap_slowdown, profile.overlaps_input_grad

    def exposed(comm: Array, window: Array) -> Array:
        hidden_part = np.maximum(comm / plans.tp, comm - window)
        return comm + overlapped * (1.0 - slowdown) * (hidden_part - comm) + copied

    forward_sharded = backward_sharded = forward_whole = backward_whole = ZERO
    if column is not None:
        forward_sharded = forward_sharded + exposed(gather, column.forward_s)
        # the input gathered again, behind the input gradient, unless it was kept
        gathers_again = not profile.keeps_gathered_inputs
        again = gathers_again * (np.maximum(0.0, gather - column.input_grad_s * hides) + copied)
        behind = column.weight_grad_s * hides
        backward_sharded = backward_sharded + np.maximum(0.0, scatter - behind) + copied + again
        backward_whole = backward_whole + np.maximum(0.0, apart * both - behind)
    if row is not None:
        forward_sharded = forward_sharded + exposed(scatter, row.forward_s)
        backward_sharded = backward_sharded + exposed(gather, row.input_grad_s)
        forward_whole = forward_whole + both
    return (
        sharded * forward_sharded + (1.0 - sharded) * forward_whole,
        sharded * backward_sharded + (1.0 - sharded) * backward_whole,
    )


def gathered_element_bytes(machine: Machine) -> float:
    """Of a linear layer's input, or its output's gradient, as tensor-parallel ranks gather it.

    Quantized first, but by trainers that scale rows without Transformer Engine: their scales need whole rows.

    Source: [transformer_engine] ``gather_along_first_dim`` of distributed.py; PyTorch's float8 tensor parallelism.
    """
    rows_elsewhere = machine.recipe.scaling == "block" and not machine.recipe.framework.caches_quantized_weights
    low = machine.recipe.precision in CAST_BYTES and not rows_elsewhere
    return machine.linear.input_bytes if low else 2.0


def _layout_copy_s(plans: Plans, machine: Machine, size_bytes: Array) -> Array:
    """Copying a gathered (or not yet scattered) tensor where sequences of a micro-batch lie one after the other."""
    if not machine.recipe.framework.batch_outermost:
        return ZERO
    needed = (plans.tp > 1) & (plans.micro_batch > 1)
    achieved = machine.hbm_bytes_per_s * machine.memory.hbm_fraction
    return np.asarray(needed * 2.0 * size_bytes / achieved)  # read, write


def ring_link(link: GroupLink, tp: Array, hardware: HardwareSpec) -> GroupLink:
    """The link of a ring that trainers walk themselves.

    Only ranks at a node's edge send over the fabric, each by its own port; in a collective of the library all help. A
    port that devices share is the edge's alone, but for its neighbours of other tensor-parallel ranks.
    """
    share = link.fabric_bytes_per_s / link.ranks_per_node
    sharing = np.maximum(hardware.fabric.devices_per_nic / tp, 1.0)
    return replace(link, fabric_bytes_per_s=share * np.minimum(sharing, link.ranks_per_node))


def cp_comm_s(
    model: ModelSpec, plans: Plans, links: Links, machine: Machine, core_f: Array, core_b: Array,
    heads: Array, kv_heads: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Exposed exchange of keys and values, by what the plan exchanges (mesh x batch x tensor).

    A ring hides behind attention, which it slows, twice as many bytes in the backward pass, where gradients go round as
    well. An all-gather hides behind nothing, and its backward pass gathers again and scatters gradients; no more do
    all-to-alls.
    """
    tokens = plans.micro_batch * machine.recipe.seq_len
    widths = {"qk_head_dim": float(model.qk_head_dim), "value_head_dim": float(model.value_head_dim)}
    rates = machine.hardware.calibration
    node, fabric = rates.node_collectives, rates.fabric_collectives
    size = context.key_value_bytes(tokens, kv_heads=kv_heads, **widths)
    gather, scatter = ({"node": node[what], "fabric": fabric[what]} for what in ("all_gather", "reduce_scatter"))
    around = np.asarray(all_gather_time_s(size, ring_link(links.cp, plans.tp, machine.hardware), **gather))
    slowdown = machine.recipe.framework.overlap_slowdown
    exposed_f = context.ring_exposed_s(around, core_f, cp=plans.cp, slowdown=slowdown)
    exposed_b = context.ring_exposed_s(2.0 * around, core_b, cp=plans.cp, slowdown=slowdown)
    if np.any(plans.cp_exchange == context.ALL_GATHER):
        gathers = plans.cp_exchange == context.ALL_GATHER
        gathered = np.asarray(all_gather_time_s(size, links.cp, **gather))
        scattered = np.asarray(reduce_scatter_time_s(size, links.cp, **scatter))
        exposed_f = exposed_f + gathers * (gathered - exposed_f)
        exposed_b = exposed_b + gathers * (gathered + scattered - exposed_b)
    if np.any(plans.cp_exchange == context.ALL_TO_ALL):
        parts = context.head_exchange_bytes(tokens / plans.cp, heads=heads, kv_heads=kv_heads, **widths)
        swaps = plans.cp_exchange == context.ALL_TO_ALL
        both_ways = sum_of([
            np.asarray(all_to_all_time_s(part, links.cp, node=node["all_to_all"], fabric=fabric["all_to_all"]))
            for part in parts
        ])  # fmt: skip
        exposed_f = exposed_f + swaps * (both_ways - exposed_f)
        exposed_b = exposed_b + swaps * (both_ways - exposed_b)
    return exposed_f, exposed_b


def cp_copies_bytes(
    model: ModelSpec, plans: Plans, tokens: Array, heads: Array, kv_heads: Array
) -> tuple[Array, Array]:
    """What each pass moves in memory because of what the plan exchanges over cp (mesh x batch)."""
    if not np.any(plans.cp > 1):
        return ZERO, ZERO
    return context.exchange_copies_bytes(
        tokens,
        cp=plans.cp,
        cp_exchange=plans.cp_exchange,
        heads=heads,
        kv_heads=kv_heads,
        qk_head_dim=float(model.qk_head_dim),
        value_head_dim=float(model.value_head_dim),
    )


def off_node_fraction(model: ModelSpec, links: Links, profile: FrameworkProfile) -> Array:
    """What tokens send across nodes on the way to their experts, over a copy for each expert that is elsewhere.

    Less than 1 under a dispatcher that knows nodes: it sends a token once to each node that has some of its experts.
    """
    if not profile.dispatches_once_per_node:
        return np.ones(())
    nodes = distinct_places_count(links.ep.n_nodes, n_experts=model.n_experts, top_k=model.top_k)
    return np.asarray(np.minimum(nodes, model.expert_groups_per_token or np.inf) / model.top_k)


def dispatch_link(model: ModelSpec, links: Links, profile: FrameworkProfile) -> GroupLink:
    """The links between experts' ranks, faster by what a dispatcher that knows nodes and ranks does not send twice.

    Inside a node it sends a token once to each rank that has some of its experts; what arrives from another node is
    spread from there, over the node's links, at the same time.

    Source: [zhao2025deepep] normal kernels.
    """
    if not profile.dispatches_once_per_node:
        return links.ep
    ranks = distinct_places_count(links.ep.n_ranks, n_experts=model.n_experts, top_k=model.top_k)
    return replace(
        links.ep,
        fabric_bytes_per_s=links.ep.fabric_bytes_per_s / off_node_fraction(model, links, profile),
        hops_factor=links.ep.hops_factor * (ranks / model.top_k * links.ep.n_nodes),
    )


def dispatch_setup_s(links: Links, profile: FrameworkProfile) -> Array:
    """What a dispatch takes before its first byte.

    Source: [zhao2025deepep] tables of HybridEP, calls less kernels.
    """
    return np.asarray(
        (np.asarray(links.ep.n_ranks) > 1.0) * (profile.dispatches_once_per_node * DISPATCH_SETUP_US * 1e-6)
    )


def ep_comm_s(
    model: ModelSpec, plans: Plans, links: Links, machine: Machine, own_tokens: Array, routed: Array,
    times: Mapping[str, MatmulTime],
) -> tuple[Array, Array]:  # fmt: skip
    """Exposed dispatch and combine of each pass, and the gather over expert-tensor-parallel ranks.

    With ``overlap_ep`` a micro-batch's exchange runs behind the other pass of another one: exposed is what exceeds the
    experts' matmuls.
    """
    rates = machine.hardware.calibration
    node, fabric = rates.node_collectives, rates.fabric_collectives
    size = 2.0 * own_tokens * model.top_k * model.hidden_size
    link = dispatch_link(model, links, machine.recipe.framework)
    once = all_to_all_time_s(size, link, node=node["all_to_all"], fabric=fabric["all_to_all"])
    gathered = 2.0 * routed * model.hidden_size
    spread = all_gather_time_s(gathered, links.etp, node=node["all_gather"], fabric=fabric["all_gather"])
    spread = spread + reduce_scatter_time_s(
        gathered, links.etp, node=node["reduce_scatter"], fabric=fabric["reduce_scatter"]
    )
    comm = 2.0 * (once + dispatch_setup_s(links, machine.recipe.framework)) + spread
    experts_f = times["expert up"].forward_s + times["expert down"].forward_s
    experts_b = experts_f + sum_of([times[name].weight_grad_s for name in ("expert up", "expert down")])
    exposed_f = comm - plans.overlap_ep * np.minimum(comm, experts_f)
    exposed_b = comm - plans.overlap_ep * np.minimum(comm, experts_b)
    return exposed_f, exposed_b
