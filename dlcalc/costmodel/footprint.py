"""Peak memory of the bounding stages of a batch of plans, as named terms.

Every term has a leading axis of the stages that bound all others; the footprint of a plan is that of its
fullest stage. States depend on mesh x pipe x data, everything that a micro-batch leaves behind on mesh x batch x pipe x
redo x tensor; only their sum is full-size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, reduce
from typing import Any

import numpy as np

from dlcalc.calculators import activations, context_parallel, logits, memory, params
from dlcalc.calculators.schedule import DUALPIPE, GPIPE, in_flight_micro_batches_count
from dlcalc.calculators.stages import StageLayers
from dlcalc.costmodel.data_parallel import accumulates_whole, bucket_params
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.plans import Array, Plans, number
from dlcalc.costmodel.quantized_weights import GATHERED_BYTES, copies_share, gathered_weight_bytes
from dlcalc.costmodel.recomputation import recomputed_fraction
from dlcalc.costmodel.stage_params import StageParams, state_shards
from dlcalc.costmodel.stage_times import layer_totals
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recompute import NONE
from dlcalc.utils.units import GIB

OFFLOAD_WINDOW_LAYERS = 2.0
"""Layers whose activations are on the device while they move to or from the host."""


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak of each bounding stage, by what they hold."""

    weights_bytes: Array
    gradients_bytes: Array
    optimizer_bytes: Array
    gathered_weights_bytes: Array
    """Whole layers of ZeRO stage 3, and their gradients before they are scattered."""
    buffers_bytes: Array
    """Gradient buckets and weight gradients on their way."""
    activations_bytes: Array
    working_set_bytes: Array
    """Of the layer in its backward pass, recomputed activations included; or logits and loss, where they take more."""
    stage_buffers_bytes: Array
    overlap_buffers_bytes: Array
    """Through which tensor-parallel ranks exchange chunks while they compute, outside the allocator."""
    dispatch_buffers_bytes: Array
    """Through which experts' ranks write into each other's memory, outside the allocator."""
    context_bytes: Array
    """Driver, libraries and communicators, outside the allocator."""
    allocator_slack_factor: float
    """Reserved over used, of what passes (states are allocated once and do not fragment)."""

    @cached_property
    def _states(self) -> Array:
        return ((self.weights_bytes + self.gradients_bytes) + self.optimizer_bytes) + (
            self.gathered_weights_bytes + self.buffers_bytes
        )

    @cached_property
    def _passing(self) -> Array:
        return (self.activations_bytes + self.working_set_bytes) + self.stage_buffers_bytes

    @cached_property
    def states_bytes(self) -> Array:
        """What stays through the step, context included; stage x mesh x data x pipe."""
        return self._states + self.context_bytes

    @cached_property
    def passing_bytes(self) -> Array:
        """What micro-batches leave behind, fragmentation included; stage x mesh x pipe x batch x redo x tensor."""
        return self._reserved_passing + (self.overlap_buffers_bytes + self.dispatch_buffers_bytes)

    @cached_property
    def _reserved_passing(self) -> Array:
        return self.allocator_slack_factor * self._passing

    @property
    def peak_bytes(self) -> Array:
        """Of the fullest stage: what must fit in the device."""
        return fullest_stage_bytes(self.states_bytes, self.passing_bytes)

    @property
    def reserved_bytes(self) -> Array:
        """What the allocator reports as reserved: without the context and the buffers of exchanges."""
        return fullest_stage_bytes(self._states, self._reserved_passing)

    @property
    def allocated_bytes(self) -> Array:
        """What the allocator reports as allocated: without fragmentation, too."""
        return fullest_stage_bytes(self._states, self._passing)

    def terms_of_peak(self) -> Mapping[str, Array]:
        """Every term on the fullest stage."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name.endswith("_bytes")}
        named["allocator_bytes"] = (self.allocator_slack_factor - 1.0) * self._passing
        arrays = np.broadcast_arrays(*named.values())
        fullest = np.expand_dims(np.argmax(sum(arrays), axis=0), 0)
        return {name: np.take_along_axis(array, fullest, axis=0)[0] for name, array in zip(named, arrays, strict=True)}


def fullest_stage_bytes(states_bytes: Sequence[Array] | Array, passing_bytes: Sequence[Array] | Array) -> Array:
    """Peak over the bounding stages (leading axis): the only full-size part of memory."""
    peak: Array = states_bytes[0] + passing_bytes[0]
    for stage in range(1, len(states_bytes)):
        peak = np.maximum(peak, states_bytes[stage] + passing_bytes[stage])
    return peak


def footprint(model: ModelSpec, plans: Plans, stages: StageLayers, held: StageParams, machine: Machine) -> Footprint:
    """The named terms of every bounding stage."""
    profile = machine.recipe.framework
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp  # mesh x batch
    shards, expert_shards = state_shards(plans)  # mesh x data
    on_device = 1.0 - plans.offload_optimizer

    def states(per_element: float, from_stage: int) -> Array:
        dense = held.stage_dense * per_element * _shard_share(plans.zero_stage, from_stage, shards)
        expert = held.stage_expert * per_element * _shard_share(plans.zero_stage, from_stage, expert_shards)
        return dense + expert  # stage x mesh x pipe x data

    weights = states(2.0 * profile.keeps_16_bit_weights, 3)
    weights = weights + states(2.0, 3) * (1 - profile.keeps_16_bit_weights) * (plans.zero_stage < 3)
    weights = weights + _quantized_copies(plans, held, machine)
    gradients = states(float(profile.grad_bytes), 2)
    if profile.offloads_gradients:
        gradients = gradients * (1.0 - plans.offload_optimizer * (plans.zero_stage >= 2))
    micro_batches = machine.recipe.global_batch / (plans.dp * plans.micro_batch)  # mesh x batch
    whole = accumulates_whole(plans, profile, micro_batches)
    params_held = held.stage_dense + held.stage_expert
    if np.any(whole):
        gradients = np.where(whole, params_held * float(profile.grad_reduce_bytes), gradients)
    optimizer = states(float(profile.master_weight_bytes + profile.optimizer_state_bytes), 1) * on_device

    layer = layer_activations(model, plans, machine, tokens)
    kept = _activations(model, plans, stages, machine, tokens, layer)
    unit = held.layer_dense + held.layer_expert
    if profile.gathers_by_matrix:
        unit = np.minimum(unit, params.largest_matrix_params(model, tp=plans.tp, ep=plans.ep, etp=plans.etp))
    gathered = (plans.zero_stage == 3) * memory.fsdp_working_set_bytes(
        unit,
        gathered_bytes=gathered_weight_bytes(
            machine.recipe, zero_stage=plans.zero_stage, offload_optimizer=plans.offload_optimizer
        ),
        weight_bytes=GATHERED_BYTES,
        grad_reduce_bytes=float(profile.grad_reduce_bytes),
    )  # mesh x data
    on_their_way = params_held if profile.keeps_16_bit_gradients and profile.grad_bytes > 2 else held.layer_dense
    new_gradients = (plans.zero_stage < 3) * memory.weight_gradient_working_set_bytes(on_their_way)  # mesh x data
    buckets = memory.bucket_buffer_bytes(
        params_held,
        profile=profile,
        bucket_bytes=bucket_params(plans.dp * plans.cp, profile) * profile.grad_reduce_bytes,
        overlap=plans.overlap_grad,
        zero_stage=plans.zero_stage,
    )
    stage_buffers = memory.stage_buffer_bytes(
        model, tokens=tokens, tp=plans.tp, sequence_parallel=plans.sequence_parallel, pp=plans.pp, vpp=plans.vpp
    )
    working = _working_set(model, plans, stages, machine, tokens, layer)
    own_context = not machine.hardware.device.usable_beside_context
    return Footprint(
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        gathered_weights_bytes=gathered,
        buffers_bytes=np.asarray(new_gradients + buckets, dtype=np.float64),
        activations_bytes=kept,
        working_set_bytes=working,
        stage_buffers_bytes=np.asarray(stage_buffers),
        overlap_buffers_bytes=_overlap_buffers(model, plans, machine, tokens),
        dispatch_buffers_bytes=_dispatch_buffers(model, plans, machine, tokens),
        context_bytes=number(own_context * profile.cuda_context_gib) * GIB,
        allocator_slack_factor=1.0 + profile.allocator_slack,
    )


def _quantized_copies(plans: Plans, held: StageParams, machine: Machine) -> Array | float:
    """Weights in low precision beside those in 16 bits, where a plan keeps both; stage x mesh x pipe x data."""
    share = copies_share(machine.recipe, zero_stage=plans.zero_stage, offload_optimizer=plans.offload_optimizer)
    if not np.any(share):
        return 0.0
    linear = held.stage_dense - held.stage_unquantized + held.stage_expert
    copies = memory.quantized_weight_copy_bytes(linear, precision=machine.recipe.precision)
    return np.asarray(share * copies * (plans.zero_stage < 3))  # ZeRO 3 frees what it gathers, and what is made of it


@dataclass(frozen=True)
class LayerActivations:
    """Bytes one layer of each kind keeps of one micro-batch: under no recomputation, and under the plan's mode."""

    whole: Mapping[str, Array]  # mesh x batch x tensor
    kept: Mapping[str, Array]  # mesh x batch x redo x tensor


def layer_activations(model: ModelSpec, plans: Plans, machine: Machine, tokens: Array) -> LayerActivations:
    """Per kind of sublayer, named like the counts of StageLayers."""
    return LayerActivations(
        whole=_per_kind(model, plans, machine, tokens, number(NONE)),
        kept=_per_kind(model, plans, machine, tokens, plans.recompute),
    )


def _per_kind(model: ModelSpec, plans: Plans, machine: Machine, tokens: Array, recompute: Array) -> dict[str, Array]:
    profile, recipe = machine.recipe.framework, machine.recipe
    input_bytes = machine.linear.input_bytes if profile.keeps_low_precision_inputs else activations.ACTIVATION_BYTES
    shared: dict[str, Any] = {
        "tokens": tokens,
        "tp": plans.tp,
        "sequence_parallel": plans.sequence_parallel,
        "input_bytes": input_bytes,
    }

    found: dict[str, Array] = {}
    attention = activations.attention_activation_bytes(
        model, profile, seq_k_tokens=float(recipe.seq_len), recompute=recompute, **shared
    ).total_bytes
    if any(model.layer_is_windowed):
        found["windowed"] = attention
    if not all(model.layer_is_windowed):
        found["full"] = attention
    if any(model.layer_is_moe):
        found["moe"] = activations.moe_activation_bytes(
            model,
            profile,
            etp=plans.etp,
            ep=plans.ep,
            recompute=recompute,
            routed_factor=profile.routed_factor,
            **shared,
        ).total_bytes
    if not all(model.layer_is_moe):
        found["dense"] = activations.mlp_activation_bytes(model, profile, recompute=recompute, **shared).total_bytes
    return found


def offloaded_layer_bytes(model: ModelSpec, plans: Plans, machine: Machine) -> Array:
    """Activations of one layer that move to the host and back: an average layer, nothing recomputed."""
    if not np.any(plans.offload_layers):
        return number(0.0)
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    return _mean_layer(model, _per_kind(model, plans, machine, tokens, number(NONE)))


def _overlap_buffers(model: ModelSpec, plans: Plans, machine: Machine, tokens: Array) -> Array:
    """Of tensor-parallel exchanges behind matmuls; mesh x batch x tensor, nothing where no plan overlaps them."""
    if not machine.recipe.framework.buffers_overlapped_tp or not np.any(plans.overlap_tp):
        return number(0.0)
    gathered = 1.0 if machine.linear.input_bytes <= 1.125 else activations.ACTIVATION_BYTES
    return np.asarray(
        memory.tp_overlap_buffer_bytes(
            model, tokens=tokens, overlap_tp=plans.overlap_tp, gathered_element_bytes=gathered
        )
    )


def _dispatch_buffers(model: ModelSpec, plans: Plans, machine: Machine, tokens: Array) -> Array:
    """Of the dispatcher that racks have, where a domain of fast links is several hosts; mesh x batch x tensor.

    Ignores: DeepEP's, whose chunks take 0.3 GB inside a node and as much again between nodes.
    """
    node = machine.hardware.node
    if not (machine.recipe.framework.dispatches_once_per_node and node.n_host_devices and np.any(plans.ep > 1)):
        return number(0.0)
    between = activations.between_matmuls_fraction(plans.tp, plans.sequence_parallel)
    return np.asarray(
        memory.dispatch_buffer_bytes(
            tokens=tokens * between,
            hidden_size=float(model.hidden_size),
            n_experts=float(model.n_experts),
            ep=plans.ep,
            domain_ranks=np.floor(node.n_devices / plans.etp),
        )
    )


def _mean_layer(model: ModelSpec, per_kind: Mapping[str, Array]) -> Array:
    counts = layer_totals(model)
    return np.asarray(sum(counts[kind] / model.n_layers * array for kind, array in per_kind.items()))


def _activations(
    model: ModelSpec, plans: Plans, stages: StageLayers, machine: Machine, tokens: Array, layer: LayerActivations
) -> Array:
    """Of all micro-batches in flight; stage x mesh x batch x pipe x redo x tensor."""
    profile = machine.recipe.framework
    micro_batches = machine.recipe.global_batch / (plans.dp * plans.micro_batch)
    in_flight = in_flight_micro_batches_count(
        plans.schedule, pp=plans.pp, vpp=plans.vpp, n_micro_batches=micro_batches, stage=stages.stage
    )
    in_flight = in_flight * (1.0 - 0.5 * (plans.schedule == DUALPIPE))  # a device counts both of its stages
    fraction = recomputed_fraction(plans, stages.layers, stages.recomputed)  # stage x mesh x pipe x redo
    offloaded = np.minimum(plans.offload_layers, stages.layers)
    on_device = 1.0 - offloaded / np.maximum(stages.layers, 1.0)
    moving = np.minimum(offloaded, OFFLOAD_WINDOW_LAYERS) / in_flight
    kept_share = on_device + moving / np.maximum(stages.layers, 1.0)

    held: Array = number(0.0)
    for kind, whole in layer.whole.items():
        count = getattr(stages, kind)
        if kind == "moe" or (kind == "dense" and not model.is_moe) or kind == "full":
            count = count + model.mtp_layers * stages.heads
        per_layer = whole + fraction * (layer.kept[kind] - whole)
        held = held + count * per_layer
    held = held * kept_share
    sharded = {"tokens": tokens, "tp": plans.tp, "sequence_parallel": plans.sequence_parallel}
    edges = stages.embeddings * activations.embedding_activation_bytes(model, profile, **sharded)
    edges = edges + stages.heads * (1.0 + model.mtp_layers) * activations.head_activation_bytes(
        model, profile, **sharded
    )
    return np.asarray(in_flight * (held + edges))


def _working_set(
    model: ModelSpec, plans: Plans, stages: StageLayers, machine: Machine, tokens: Array, layer: LayerActivations
) -> Array:
    """The more of: logits and loss; one layer's gradients with what recomputation brings back of it."""
    profile, recipe = machine.recipe.framework, machine.recipe
    backward = memory.backward_working_set_bytes(
        model,
        profile,
        tokens=tokens,
        seq_k_tokens=float(recipe.seq_len),
        tp=plans.tp,
        sequence_parallel=plans.sequence_parallel,
        etp=plans.etp,
        routed_factor=profile.routed_factor,
    )
    sequence = context_parallel.key_value_bytes(
        plans.micro_batch * recipe.seq_len,
        kv_heads=np.maximum(model.n_kv_heads / plans.tp, 1.0),
        qk_head_dim=float(model.qk_head_dim),
        value_head_dim=float(model.value_head_dim),
    )
    gathered = context_parallel.gathered_key_value_bytes(sequence, cp=plans.cp, cp_exchange=plans.cp_exchange)
    again = backward + _brought_back(stages, layer) + gathered  # (stage x) mesh x batch (x pipe) x redo x tensor
    in_chunks = profile.cross_entropy == "chunked" and not model.mtp_layers  # of several tokens at once there is none
    vocabulary: dict[str, Any] = {
        "tokens": tokens,
        "vocab_size": float(model.vocab_size),
        "tp": plans.tp,
        "cross_entropy": "sharded" if profile.cross_entropy == "chunked" and not in_chunks else profile.cross_entropy,
    }
    turning = logits.logits_loss_bytes(**vocabulary)
    # predicted tokens come first, and their losses wait for that of the next one
    waiting: Array = number(float(model.mtp_layers)) * logits.waiting_logits_bytes(**vocabulary)
    if np.any(plans.schedule == GPIPE):  # every loss comes before the first backward pass
        others = recipe.global_batch / (plans.dp * plans.micro_batch) - 1.0
        kept = (1.0 + model.mtp_layers) * logits.waiting_logits_bytes(**vocabulary)
        waiting = waiting + (plans.schedule == GPIPE) * others * kept
    head = params.vocabulary_matrix_params(model, tp=plans.tp)
    at_loss = turning + waiting + memory.weight_gradient_working_set_bytes(head)
    if profile.gathers_by_matrix:  # larger than a layer's; elsewhere a layer's room is enough
        at_loss = at_loss + (plans.zero_stage == 3) * head * GATHERED_BYTES
    if in_chunks:
        at_loss = at_loss + logits.chunked_loss_bytes(
            tokens=tokens, hidden_size=float(model.hidden_size), head_params=head
        )
    return np.maximum(again, stages.heads * at_loss)


def _brought_back(stages: StageLayers, layer: LayerActivations) -> Array:
    """What recomputation brings back of one layer: the most that a stage has one of."""
    found: Array = number(0.0)
    for together in (("windowed", "full"), ("dense", "moe")):
        kinds = [kind for kind in together if kind in layer.whole]
        back = [memory.recompute_working_set_bytes(layer.whole[kind], layer.kept[kind]) for kind in kinds]
        if len(kinds) > 1:
            back = [size * (getattr(stages, kind) > 0) for kind, size in zip(kinds, back, strict=True)]
        found = found + reduce(np.maximum, back)
    return found


def _shard_share(zero_stage: Array, from_stage: int, shards: Array) -> Array:
    sharded = zero_stage >= from_stage
    return 1.0 - sharded * (1.0 - 1.0 / shards)
