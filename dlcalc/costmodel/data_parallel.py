"""What data-parallel ranks exchange in a step, and what of it runs behind the passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlcalc.calculators.communication import (
    GroupLink,
    Numeric,
    all_gather_time_s,
    all_reduce_time_s,
    reduce_scatter_time_s,
)
from dlcalc.calculators.schedule import INTERLEAVED
from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import Array, Plans
from dlcalc.costmodel.quantized_weights import GATHERED_BYTES, gathered_weight_bytes
from dlcalc.costmodel.stage_params import StageParams
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe

EDGE_UNITS = 2.0
"""Embedding and head, which trainers that gather a layer at a time gather on their own."""


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
    model: ModelSpec,
    plans: Plans,
    links: Links,
    params: StageParams,
    machine: Machine,
    micro_batches: Array,
    arithmetic_s: Array,
    forward: Array,
    backward: Array,
) -> dict[str, Any]:
    """Gradient reduction and parameter gathering: what is sent, and what of it is hidden.

    ZeRO 0 reduces once a step, 1 scatters once and gathers once, 2 scatters every micro-batch and may gather as often,
    3 gathers twice and scatters once every micro-batch; replicas add up their shards once a step. Overlapped, all but
    the last bucket hides behind the passes of the micro-batches it belongs to, and slows them. Some trainers scatter
    once a step whatever the stage (:func:`accumulates_whole`).
    """
    profile = machine.recipe.framework
    stage_3 = plans.zero_stage == 3
    sharded = (plans.zero_stage >= 1).astype(np.float64)
    scattered = sharded * ~reduces_whole(plans, profile)
    reduce_bytes = float(profile.grad_reduce_bytes)

    reduced = across = gathered = np.zeros(())
    dense_bytes, expert_bytes = gathered_bytes(plans, params, machine.recipe)
    held = [(params.dense, links.shard, dense_bytes)]
    if np.any(params.expert):
        held.append((params.expert, links.expert_shard, expert_bytes))
    for elements, link, sent_bytes in held:  # mesh x pipe x data
        calls = collectives_count(model, plans, elements, profile)
        size = elements * reduce_bytes
        reduced = reduced + calls * _group_comm(link, size / calls, machine, scattered)
        gathered = gathered + calls * _gather_comm(link, sent_bytes / calls, machine)
        shard = size / link.n_ranks / calls
        across = across + calls * _group_comm(links.replicate, shard, machine, np.zeros_like(plans.zero_stage))
    whole = accumulates_whole(plans, profile, micro_batches)
    reduces = np.where((plans.zero_stage >= 2) & ~whole, micro_batches, 1.0)  # mesh x batch x data
    gathers = sharded * np.where(stage_3 | gathers_again(plans, profile), micro_batches, 1.0)
    per_gather = np.where(stage_3, 2.0, 1.0) * gathered  # mesh x pipe x data

    tail = last_piece_fraction(model, plans, params.dense + params.expert, profile)  # mesh x pipe x data
    kept = 1.0 - profile.overlap_slowdown
    gather_share = stage_3 * (GATHERED_BYTES / (GATHERED_BYTES + reduce_bytes))  # of the backward pass, data
    overlapped = plans.overlap_grad * ~exchanged_after_passes(plans, profile)
    hides_grad = (kept * overlapped) * reduces  # mesh x data x batch
    hides_gather = (kept * plans.overlap_param) * gathers
    if profile.gathers_after_step:
        hides_gather = hides_gather * stage_3
    # a forward pass lasts no less than its arithmetic, the last micro-batch's backward pass no less than twice that
    met = np.minimum(across, 2.0 * arithmetic_s) if np.any(plans.dp_replicate > 1) else across
    longer = chunk_windows_count(plans)  # mesh x pipe x data
    return {
        "grad_reduce_sent_s": reduces * reduced + across,
        "param_gather_sent_s": gathers * per_gather,
        "overlap": Overlap(
            grad_limit_s=hides_grad * (behind_chunks_s(reduced, 2.0 * arithmetic_s, plans) * (1.0 - tail))
            + (kept * overlapped) * met,
            grad_factor=hides_grad * longer * (1.0 - gather_share),
            gather_limit_s=hides_gather * (behind_chunks_s(per_gather, arithmetic_s, plans) * (1.0 - tail)),
            gather_forward_s=forward * (hides_gather * longer),
            gather_factor=hides_gather * gather_share,
            backward_s=backward,
        ),
    }


def gathered_bytes(plans: Plans, params: StageParams, recipe: Recipe) -> tuple[Array, Array]:
    """Of the weights of a stage, dense ones and experts, as they are gathered; embeddings and heads in 16 bits."""
    linear = gathered_weight_bytes(recipe, zero_stage=plans.zero_stage, offload_optimizer=plans.offload_optimizer)
    unquantized = np.minimum(np.max(params.stage_unquantized, axis=0), params.dense)
    dense = params.dense * linear + unquantized * (GATHERED_BYTES - linear)
    return np.asarray(dense), np.asarray(params.expert * linear)


def chunk_windows_count(plans: Plans) -> Array:
    """Passes of a micro-batch behind which what is exchanged once a step runs; 1 without interleaving.

    The chunks of an interleaved stage end their last backward passes ``pp`` micro-batches apart (and begin their first
    forward passes so), and each exchanges its part as soon as it may.

    Source: [narayanan2021] section 2.2 for the order; [megatron_lm] ``forward_backward_pipelining_with_interleaving``.
    """
    chunks = _chunks_count(plans)
    return np.where(plans.zero_stage < 2, ((chunks - 1.0) * plans.pp + 1.0) / chunks, 1.0)


def behind_chunks_s(sent_s: Array, pass_s: Array, plans: Plans) -> Array:
    """What of ``sent_s`` chunks can hide: of the last one no more than its own pass."""
    apart = (plans.schedule == INTERLEAVED) & (plans.zero_stage < 2)
    if not np.any(apart):
        return sent_s
    return np.asarray(sent_s - apart * (np.maximum(sent_s - pass_s, 0.0) / plans.vpp))


def bucket_params(n_ranks: Numeric, profile: FrameworkProfile) -> Array:
    """Parameters of one bucket between ``n_ranks``, where layers are not exchanged one by one.

    Source: [megatron_lm] ``DistributedDataParallel``: no less than 40 M, or 1 M for each rank.
    """
    return np.asarray(np.maximum(profile.bucket_elements, profile.bucket_elements_per_rank * n_ranks))


def collectives_count(model: ModelSpec, plans: Plans, elements: Array, profile: FrameworkProfile) -> Array:
    """Into how many collectives ``elements`` parameters of a stage are cut, each with a latency of its own.

    Under FSDP a layer is one, and so are embedding and head. Elsewhere every chunk of a stage has a buffer of its own,
    cut into buckets; Megatron cuts that of the first stage's first chunk, which is done last, where gradients are
    overlapped, and exchanges others whole. Never less than one.

    Ignores: trainers that prefetch several layers in one (DeepSpeed), compilers that join what is small.
    Source: [zhao2023fsdp] section 3.2.1; [megatron_lm] ``DistributedDataParallel``.
    """
    layers = (model.n_layers + EDGE_UNITS) / plans.pp
    chunks = _chunks_count(plans)
    of_chunk = np.maximum(elements / (chunks * bucket_params(plans.dp * plans.cp, profile)), 1.0)
    if profile.buckets_first_chunk:
        pieces = chunks - 1.0 + np.where(plans.overlap_grad == 1, of_chunk, 1.0)
    else:
        pieces = chunks * of_chunk
    return np.asarray(np.where(by_layer(plans, profile), np.maximum(layers, 1.0), pieces))


def last_piece_fraction(model: ModelSpec, plans: Plans, elements: Array, profile: FrameworkProfile) -> Array:
    """Share of ``elements`` that is exchanged last, with nothing left to hide behind: a layer, or a bucket."""
    bucket = bucket_params(plans.dp * plans.cp, profile) / np.maximum(elements, 1.0)
    layer = 1.0 / collectives_count(model, plans, elements, profile)
    return np.where(by_layer(plans, profile), layer, np.minimum(bucket, 1.0 / _chunks_count(plans)))


def by_layer(plans: Plans, profile: FrameworkProfile) -> Mask:
    """Where layers are gathered and scattered one by one: ZeRO 3, and FSDP2 at any stage."""
    return np.asarray((plans.zero_stage == 3) | (profile.gathers_again_at_stage_2 & (plans.zero_stage >= 1)))


def _chunks_count(plans: Plans) -> Array:
    """Of a stage, in which what is exchanged once a step is done at different times."""
    return np.where(plans.schedule == INTERLEAVED, plans.vpp, 1.0)


def gathers_again(plans: Plans, profile: FrameworkProfile) -> Mask:
    """Where ZeRO 2 gathers for every micro-batch; pipelines keep what they gathered."""
    return np.asarray(profile.gathers_again_at_stage_2 & (plans.zero_stage == 2) & (plans.pp == 1))


def accumulates_whole(plans: Plans, profile: FrameworkProfile, micro_batches: Array) -> Mask:
    """Where ZeRO 2 and 3 add up whole gradients over the micro-batches of a step; mesh x data x batch.

    Source: ``Accelerator.no_sync`` around all but the last micro-batch; ``_PipelineStageBase`` of PyTorch switches the
    exchange of gradients off until the last one.
    """
    if profile.accumulates_whole_gradients == "never":
        return np.zeros((), dtype=bool)
    several = (plans.zero_stage >= 2) & (micro_batches > 1)
    return np.asarray(several if profile.accumulates_whole_gradients == "always" else several & (plans.pp > 1))


def exchanged_after_passes(plans: Plans, profile: FrameworkProfile) -> Mask:
    """Where gradients are exchanged when a stage has done all its passes, with nothing to hide behind."""
    in_pipeline = profile.accumulates_whole_gradients == "in_pipeline"
    always = np.isin(plans.zero_stage, profile.exchanges_after_passes_at_stages)
    return np.asarray(always | ((plans.zero_stage >= 1) & (plans.pp > 1) & in_pipeline))


def reduces_whole(plans: Plans, profile: FrameworkProfile) -> Mask:
    """Where ranks that shard the optimizer reduce whole gradients all the same."""
    return np.isin(plans.zero_stage, profile.all_reduces_at_stages)


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
