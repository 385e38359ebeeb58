"""Time of one optimizer step of a batch of plans, as named terms.

Comments at the end of a line name the axes of the result on a grid: mesh, data (sharding and overlaps over
data-parallel ranks), pipe (schedule, vpp, split), batch (micro-batch), redo (recomputation), tensor (sequence
parallelism and overlaps in a layer). Only what is hidden of data-parallel communication, and the total, are full-size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from dlcalc.calculators import launches, schedule, traffic
from dlcalc.calculators.communication import GroupLink, all_gather_time_s, all_reduce_time_s, reduce_scatter_time_s
from dlcalc.calculators.kernels import memory_bound_time_s
from dlcalc.calculators.params import vocabulary_matrix_params
from dlcalc.calculators.stages import StageLayers
from dlcalc.costmodel.constraints import Mask
from dlcalc.costmodel.layer_comm import between_stages_s, stage_send_s
from dlcalc.costmodel.layer_matmuls import ZERO, sum_of
from dlcalc.costmodel.layer_times import (
    Pass,
    Sublayer,
    attention_sublayer,
    dense_mlp_sublayer,
    embedding_sublayer,
    head_sublayer,
    moe_sublayer,
)
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import ALL_LAYERS, PER_STAGE, Array, Plans, number
from dlcalc.costmodel.stage_params import StageParams, embedding_copies_count
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe
from dlcalc.specs.recompute import FULL, MLP, OP_SAC, codes_with, for_every_mode


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, on the slowest device, by what they are spent on. The step is their sum.

    The first eight are an average stage's work on all micro-batches; ``imbalance_s`` is what the slowest stage has
    beyond the average, ``bubble_s`` what it waits. Communication terms are what is exposed, not what is sent.
    """

    matmul_s: Array
    attention_s: Array
    memory_bound_s: Array
    launch_s: Array
    tp_comm_s: Array
    cp_comm_s: Array
    ep_comm_s: Array
    pp_comm_s: Array
    recompute_s: Array
    offload_s: Array
    imbalance_s: Array
    bubble_s: Array
    optimizer_s: Array
    overhead_s: Array
    grad_reduce_sent_s: Array
    """Gradient reduction over data-parallel ranks, hidden or not, and between two stages that hold one embedding."""
    param_gather_sent_s: Array
    """Parameters gathered for the forward (and, ZeRO 3, the backward) pass, hidden or not."""
    overlap: Overlap

    @cached_property
    def pipeline_s(self) -> Array:
        """All but what data-parallel ranks exchange and update; grouped by axes, so that additions stay small."""
        work = (self.matmul_s + self.attention_s + self.memory_bound_s) + (
            self.tp_comm_s + self.cp_comm_s + self.ep_comm_s + self.launch_s
        )  # mesh x batch x tensor
        return (work + self.pp_comm_s) + (
            self.recompute_s + self.offload_s + self.imbalance_s + self.bubble_s
        )  # mesh x pipe x batch x redo x tensor

    @cached_property
    def sent_s(self) -> Array:
        """What data-parallel ranks exchange and update, and what comes with every step and micro-batch."""
        exchanged = self.param_gather_sent_s + self.grad_reduce_sent_s  # mesh x data x pipe x batch
        return (self.optimizer_s + self.overhead_s) + exchanged

    @property
    def total_s(self) -> Array:
        """The step."""
        return total_time_s(self.pipeline_s, self.sent_s, self.overlap)

    def terms(self) -> Mapping[str, Array]:
        """What a report shows: every term, exchanges over data-parallel ranks as what is exposed of them."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name.endswith("_s")}
        named["grad_reduce_s"] = named.pop("grad_reduce_sent_s") - self.overlap.grad_hidden_s
        named["param_gather_s"] = named.pop("param_gather_sent_s") - self.overlap.gather_hidden_s
        return named


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


def total_time_s(pipeline_s: Array, sent_s: Array, overlap: Overlap) -> Array:
    """The step: what the pipeline takes, and what is exposed of the exchanges. The only full-size part of time."""
    return (pipeline_s + sent_s) - (overlap.grad_hidden_s + overlap.gather_hidden_s)


@dataclass(frozen=True)
class StageTimes:
    """One micro-batch's passes: on the bounding stages (leading axis), and summed over the pipeline.

    ``backward`` includes what is recomputed, and both passes what the host needs beyond the device.
    """

    forward_s: Array
    backward_s: Array
    sum_forward_s: Array
    sum_backward_s: Array
    sum_recompute_s: Array
    """Part of ``sum_backward_s``."""
    sum_offload_s: Array
    """Part of ``sum_backward_s``."""
    sum_launch_s: Array
    """Part of both sums: the launch floor without recomputation."""
    weight_grad_s: Array


REPLAYED: Mapping[str, tuple[float, ...]] = {
    # recompute mode:    none selective full norm_act mla_up op_sac
    "matmul_s": (0.0, 0.0, 1.0, 0.0, 0.0, 0.5),
    "latent_matmul_s": (0.0, 0.0, 1.0, 0.0, 1.0, 0.5),
    "attention_s": (0.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    "norm_s": (0.0, 0.0, 1.0, 1.0, 0.0, 1.0),
    "activation_s": (0.0, 0.0, 1.0, 1.0, 0.0, 1.0),
    "other_memory_s": (0.0, 0.0, 1.0, 0.0, 0.0, 1.0),
    "tp_comm_s": (0.0, 0.0, 1.0, 0.0, 0.0, 0.5),
    "cp_comm_s": (0.0, 1.0, 1.0, 0.0, 0.0, 0.0),
    "ep_comm_s": (0.0, 0.0, 1.0, 0.0, 0.0, 1.0),
}
"""Share of each part of the forward pass that a simple recompute mode runs again."""
LAUNCHED_AGAIN = (0.0, 0.2, 1.0, 0.15, 0.1, 0.6)
"""Share of a layer's launches that each simple mode repeats, but for those below."""
REPLAYED_WHOLE = {"dense": (1.0, 0.0), "moe": (0.0, 1.0)}
"""Of a kind of sublayer, in modes mlp and moe; those of attention not at all."""
NOT_AGAIN = {"moe": ("norm_s",)}
"""What of these is kept even so: experts that run again begin after their norm."""


def _replayed_by_mode(kind: str) -> dict[str, Array]:
    whole, kept = REPLAYED_WHOLE.get(kind, (0.0, 0.0)), NOT_AGAIN.get(kind, ())
    return {
        term: np.array(for_every_mode((*shares, *((0.0, 0.0) if term in kept else whole)), max))
        for term, shares in REPLAYED.items()
    }


KINDS = ("windowed", "full", "dense", "moe")
REPLAYED_OF_KIND = {kind: _replayed_by_mode(kind) for kind in KINDS}
LAUNCHED_AGAIN_OF_KIND = {
    kind: np.minimum(for_every_mode((*LAUNCHED_AGAIN, *REPLAYED_WHOLE.get(kind, (0.0, 0.0))), sum), 1.0)
    for kind in KINDS
}
HOST_LINK_FRACTION = 0.8
"""Achieved over datasheet rate of the link to the host: an assumption, not measured here."""


@dataclass(frozen=True)
class ModelTimes:
    """Sublayers of a model under a batch of plans: ``kinds`` pairs a StageLayers count with its sublayer."""

    kinds: Mapping[str, Sublayer]
    embedding: Sublayer
    head: Sublayer


def model_times(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> ModelTimes:
    """Times of every kind of sublayer the model has."""  # mesh x batch x tensor
    kinds: dict[str, Sublayer] = {}
    if any(model.layer_is_windowed):
        kinds["windowed"] = attention_sublayer(model, plans, links, machine, window=model.sliding_window)
    if not all(model.layer_is_windowed):
        kinds["full"] = attention_sublayer(model, plans, links, machine, window=0)
    if any(model.layer_is_moe):
        kinds["moe"] = moe_sublayer(model, plans, links, machine)
    if not all(model.layer_is_moe):
        kinds["dense"] = dense_mlp_sublayer(model, plans, links, machine)
    return ModelTimes(
        kinds=kinds,
        embedding=embedding_sublayer(model, plans, links, machine),
        head=head_sublayer(model, plans, links, machine),
    )


def replay_s(forward: Pass, recompute: Array, kind: str) -> Array:
    """Time of running again what ``recompute`` did not keep of a sublayer of ``kind``."""
    code = recompute.astype(np.int64)
    return sum_of(
        np.take(shares, code) * getattr(forward, term)
        for term, shares in REPLAYED_OF_KIND[kind].items()
        if np.any(getattr(forward, term))
    ) + np.zeros_like(recompute)


def _layer_end_s(plans: Plans, dense: Sublayer) -> Array:
    """What is not run again of a dense MLP where recomputation stops early.

    Of a whole layer its last matmul, and the exchange after it: of two, or the only one where tp ranks hold whole
    activations. Where every other matmul is kept the last one is (half of it was counted), and so is what it exchanges.
    """
    _, down = dense.matmuls["down"]
    closing = (1.0 - 0.5 * plans.sequence_parallel) * dense.forward.tp_comm_s
    whole = np.isin(plans.recompute, (FULL, *codes_with(MLP))) * (down.forward_s + closing)
    return np.asarray(whole + (plans.recompute == OP_SAC) * (0.5 * down.forward_s))


def recomputed_fraction(plans: Plans, layers: Array, per_stage: Array | None = None) -> Array:
    """Share of a device's ``layers`` that are recomputed: ``recompute_layers`` of each of its chunks, or all.

    Trainers count per chunk: a device with vpp chunks recomputes vpp times as many. ``per_stage`` is what its stage
    recomputes of all its chunks where stages have numbers of their own.
    """
    chunks = plans.vpp * (1.0 + (plans.schedule == schedule.DUALPIPE))
    told = plans.recompute_layers * chunks
    if per_stage is not None:
        told = np.where(plans.recompute_layers == PER_STAGE, per_stage, told)
    counted = np.minimum(told, layers) / np.maximum(layers, 1.0)
    return np.where(plans.recompute_layers == ALL_LAYERS, 1.0, counted)


def mean_recomputed_fraction(model: ModelSpec, plans: Plans, stages: StageLayers) -> Array:
    """Share of an average device's layers that are recomputed."""
    per_stage = None if stages.recomputed_of_all is None else stages.recomputed_of_all / plans.pp
    return recomputed_fraction(plans, mean_layers(model, plans), per_stage)


def mean_layers(model: ModelSpec, plans: Plans) -> Array:
    """Layers of an average device; under dualpipe it holds two stages."""
    return np.asarray(model.n_layers / plans.pp * (1.0 + (plans.schedule == schedule.DUALPIPE)))


def stage_times(
    model: ModelSpec, plans: Plans, stages: StageLayers, times: ModelTimes, machine: Machine, layer_offload_bytes: Array
) -> StageTimes:
    """Passes of one micro-batch on the bounding stages.

    Layers offloaded to the host move out behind the forward pass and back behind the backward pass; what the link does
    not manage meanwhile shows.
    """
    # under dualpipe a device sees every micro-batch on one of its two stages
    share = 1.0 - 0.5 * (plans.schedule == schedule.DUALPIPE)
    totals = {name: float(count) for name, count in _layer_totals(model).items()}
    code = plans.recompute.astype(np.int64)
    device_f, device_b, replayed, host, launched_again = (_Sum() for _ in range(5))
    weight_grad: Array = ZERO
    for name, sublayer in times.kinds.items():
        extra = float(model.mtp_layers) if _is_mtp_kind(model, name) else 0.0
        counts = (share * (getattr(stages, name) + extra * stages.heads), totals[name] + extra)  # stage x mesh x pipe
        device_f.add(counts, sublayer.forward.total_s)
        device_b.add(counts, sublayer.backward.total_s)
        replayed.add(counts, replay_s(sublayer.forward, plans.recompute, name))
        if name == "dense" and not machine.recipe.framework.recomputes_to_the_end:
            replayed.add(counts, -_layer_end_s(plans, sublayer))
        host.add(counts, sublayer.host_s)
        launched_again.add(counts, np.take(LAUNCHED_AGAIN_OF_KIND[name], code) * sublayer.host_s)
        weight_grad = weight_grad + counts[0] * sublayer.weight_grad_s
    n_heads = 1.0 + model.mtp_layers
    for counts, edge in (
        ((share * stages.embeddings, 1.0), times.embedding),
        ((share * n_heads * stages.heads, n_heads), times.head),
    ):
        device_f.add(counts, edge.forward.total_s)
        device_b.add(counts, edge.backward.total_s)
        host.add(counts, edge.host_s)

    fraction = recomputed_fraction(plans, stages.layers, stages.recomputed)  # stage x mesh x pipe x redo
    mean_fraction = mean_recomputed_fraction(model, plans, stages)
    twice = launches.BACKWARD_FACTOR
    waits = machine.recipe.framework.unhidden_launches

    def with_launches(device_s: Array, host_s: Array) -> Array:
        return np.maximum(device_s + waits * host_s, host_s)

    forward = with_launches(device_f.stage, host.stage)  # stage x mesh x pipe x batch x tensor
    backward = with_launches(
        device_b.stage + fraction * replayed.stage, twice * host.stage + fraction * launched_again.stage
    )  # stage x mesh x pipe x batch x redo x tensor
    sum_forward = with_launches(device_f.total, host.total)
    without = with_launches(device_b.total, twice * host.total)
    sum_backward = with_launches(
        device_b.total + mean_fraction * replayed.total, twice * host.total + mean_fraction * launched_again.total
    )
    exposed = mean_exposed = ZERO
    if np.any(plans.offload_layers):
        host_bytes_per_s = HOST_LINK_FRACTION * machine.hardware.node.host_bytes_per_s
        moved = share * np.minimum(plans.offload_layers, stages.layers) * layer_offload_bytes / host_bytes_per_s
        exposed = np.maximum(0.0, moved - forward) + np.maximum(0.0, moved - backward)  # out, and back
        mean_moved = share * plans.offload_layers * layer_offload_bytes / host_bytes_per_s * plans.pp
        mean_exposed = np.maximum(0.0, mean_moved - sum_forward) + np.maximum(0.0, mean_moved - sum_backward)
    return StageTimes(
        forward_s=forward,
        backward_s=backward + exposed,
        sum_forward_s=sum_forward,
        sum_backward_s=sum_backward + mean_exposed,
        sum_recompute_s=sum_backward - without,
        sum_offload_s=mean_exposed,
        sum_launch_s=(sum_forward - device_f.total) + (without - device_b.total),
        weight_grad_s=np.max(weight_grad, axis=0),
    )


class _Sum:
    """A quantity of a sublayer summed over the layers of each bounding stage, and over all layers."""

    def __init__(self) -> None:
        self.stage: Array = ZERO
        self.total: Array = ZERO

    def add(self, counts: tuple[Array, float], each: Array) -> None:
        self.stage = self.stage + counts[0] * each
        self.total = self.total + counts[1] * each


def step_time(
    model: ModelSpec,
    plans: Plans,
    links: Links,
    stages: StageLayers,
    times: ModelTimes,
    params: StageParams,
    machine: Machine,
    layer_offload_bytes: Array,
) -> StepTime:
    """The named terms of one optimizer step."""
    profile = machine.recipe.framework
    per_stage = stage_times(model, plans, stages, times, machine, layer_offload_bytes)
    micro_batches = machine.recipe.global_batch / (plans.dp * plans.micro_batch)  # mesh x batch
    share = 1.0 / plans.pp

    send = stage_send_s(model, plans, links, machine)  # mesh x batch x tensor
    forward = np.max(per_stage.forward_s, axis=0)  # mesh x pipe x batch x tensor
    backward = np.max(per_stage.backward_s, axis=0)  # mesh x pipe x batch x redo x tensor
    slowest = np.max(per_stage.forward_s + per_stage.backward_s, axis=0)
    pp_comm = micro_batches * plans.vpp * chunk_sends_s(plans, profile, send, forward / plans.vpp)
    mean = share * (per_stage.sum_forward_s + per_stage.sum_backward_s)  # mesh x batch x redo x tensor
    pipeline = schedule.pipeline_time_s(
        plans.schedule,
        pp=plans.pp,
        vpp=plans.vpp,
        n_micro_batches=micro_batches,
        slowest_forward_s=forward,
        slowest_backward_s=slowest - forward,
        sum_forward_s=per_stage.sum_forward_s,
        sum_backward_s=per_stage.sum_backward_s,
        weight_grad_s=per_stage.weight_grad_s,
        send_s=send,
    )
    exchanged = _data_parallel(plans, links, params, machine, micro_batches, forward, backward)
    exchanged["grad_reduce_sent_s"] = exchanged["grad_reduce_sent_s"] + embedding_sync_s(
        model, plans, links, stages, machine
    )
    return StepTime(
        **_work(model, times, micro_batches * share),
        pp_comm_s=pp_comm,
        launch_s=micro_batches * share * per_stage.sum_launch_s,
        recompute_s=micro_batches * share * per_stage.sum_recompute_s,
        offload_s=micro_batches * share * per_stage.sum_offload_s,
        imbalance_s=micro_batches * (slowest - mean),
        bubble_s=np.asarray(pipeline - micro_batches * slowest),
        **exchanged,
        optimizer_s=_optimizer_s(plans, params, machine),
        overhead_s=(profile.step_overhead_us + profile.micro_batch_overhead_us * micro_batches) * 1e-6
        + _gradient_passes_s(plans, params, machine, micro_batches),
    )


def chunk_sends_s(plans: Plans, profile: FrameworkProfile, send_s: Array, forward_s: Array) -> Array:
    """What a chunk waits for its output and its input's gradient to be sent, in the steady state of a pipeline.

    Where a trainer overlaps them in an interleaved schedule, each is hidden behind one pass, which it slows as hidden
    communication does elsewhere.

    Assumes: that pass takes no less than the forward pass of a chunk (``forward_s``); a backward pass hides more.
    """  # mesh x batch x pipe x tensor
    in_turn = 2.0 * (1.0 + profile.sends_and_receives_in_turn) * send_s
    if not profile.overlaps_stage_sends or not np.any(plans.vpp > 1):
        return in_turn
    beside = 2.0 * (send_s - (1.0 - profile.overlap_slowdown) * np.minimum(send_s, forward_s))
    return np.where(plans.vpp > 1, beside, in_turn)


def embedding_sync_s(model: ModelSpec, plans: Plans, links: Links, stages: StageLayers, machine: Machine) -> Array:
    """What the two stages that hold the embedding's matrix take to add up its gradients: once a step, not hidden.

    An all-reduce of two sends as many bytes as the gradient has, either way; of sharded gradients, a shard.

    Source: [megatron_lm] ``_allreduce_word_embedding_grads``.
    """  # mesh x pipe x data
    copies = np.max(embedding_copies_count(model, stages), axis=0)
    if not np.any(copies):
        return ZERO
    size = embedding_gradient_bytes(model, plans, links, machine.recipe)
    return np.asarray(copies * between_stages_s(size, links, machine))


def embedding_gradient_bytes(model: ModelSpec, plans: Plans, links: Links, recipe: Recipe) -> Array:
    """What a device has of the gradients of the embedding's matrix."""
    shards = np.where(plans.zero_stage >= 2, links.shard.n_ranks, 1.0)
    return np.asarray(vocabulary_matrix_params(model, tp=plans.tp) * float(recipe.framework.grad_bytes) / shards)


def _layer_totals(model: ModelSpec) -> dict[str, int]:
    windowed, moe = sum(model.layer_is_windowed), sum(model.layer_is_moe)
    return {"windowed": windowed, "full": model.n_layers - windowed, "moe": moe, "dense": model.n_layers - moe}


def _is_mtp_kind(model: ModelSpec, name: str) -> bool:
    """Whether a multi-token-prediction module has this kind of sublayer: those of the last layer."""
    return name in (
        "windowed" if model.layer_is_windowed[-1] else "full",
        "moe" if model.layer_is_moe[-1] else "dense",
    )


def _work(model: ModelSpec, times: ModelTimes, repeats: Array) -> dict[str, Any]:
    """The average stage's terms over all micro-batches."""
    n_heads = 1.0 + model.mtp_layers
    parts: list[tuple[float, Sublayer]] = [(1.0, times.embedding), (n_heads, times.head)]
    for name, sublayer in times.kinds.items():
        extra = model.mtp_layers if _is_mtp_kind(model, name) else 0
        parts.append((float(_layer_totals(model)[name] + extra), sublayer))

    def term(*names: str) -> Array:
        return repeats * sum_of(
            count * getattr(way, name)
            for count, sublayer in parts
            for way in (sublayer.forward, sublayer.backward)
            for name in names
        )

    return {
        "matmul_s": term("matmul_s", "latent_matmul_s"),
        "attention_s": term("attention_s"),
        "memory_bound_s": term("norm_s", "activation_s", "other_memory_s"),
        "tp_comm_s": term("tp_comm_s"),
        "cp_comm_s": term("cp_comm_s"),
        "ep_comm_s": term("ep_comm_s"),
    }


def _data_parallel(
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


def _gradient_passes_s(plans: Plans, params: StageParams, machine: Machine, micro_batches: Array) -> Array:
    """Passes over weights and gradients that come with every micro-batch: accumulation, and the copies of ZeRO 3."""
    held = params.dense + params.expert  # mesh x pipe
    stage_3 = plans.zero_stage == 3
    profile = machine.recipe.framework
    once = traffic.sharding_copy_traffic_bytes(held, profile=profile, gathers=number(1.0), scatters=number(1.0))
    twice = traffic.sharding_copy_traffic_bytes(held, profile=profile, gathers=number(2.0), scatters=number(1.0))
    again = gathers_again(plans, profile)
    adding = traffic.accumulation_traffic_bytes(held, profile=profile)
    moved = micro_batches * ((1.0 - stage_3) * (1.0 - again) * adding + stage_3 * twice + again * once)
    return np.asarray(moved / (machine.hbm_bytes_per_s * machine.memory.hbm_fraction))


def _optimizer_s(plans: Plans, params: StageParams, machine: Machine) -> Array:
    """Adam on the states this device keeps; offloaded, gradients and weights also cross the host link twice."""
    owned = params.owned(plans)  # mesh x pipe x data
    moved = traffic.optimizer_traffic_bytes(owned, profile=machine.recipe.framework)
    on_device = memory_bound_time_s(moved, rates=machine.memory, hbm_bytes_per_s=machine.hbm_bytes_per_s)
    host = machine.hardware.node.host_bytes_per_s
    on_host = (owned * (machine.recipe.framework.grad_bytes + 2.0) + moved) / host
    return np.asarray(on_device + plans.offload_optimizer * (on_host - on_device))
