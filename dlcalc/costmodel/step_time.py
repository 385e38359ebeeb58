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

from dlcalc.calculators import schedule, traffic
from dlcalc.calculators.kernels import memory_bound_time_s
from dlcalc.calculators.params import vocabulary_matrix_params
from dlcalc.calculators.stages import StageLayers
from dlcalc.costmodel.data_parallel import Overlap, accumulates_whole, data_parallel_exchanges, gathers_again
from dlcalc.costmodel.layer_comm import between_stages_s, stage_send_s
from dlcalc.costmodel.layer_matmuls import ZERO, sum_of
from dlcalc.costmodel.layer_times import Sublayer
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import Array, Plans, number
from dlcalc.costmodel.stage_params import StageParams, embedding_copies_count
from dlcalc.costmodel.stage_times import ModelTimes, is_mtp_kind, layer_totals, stage_times
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import Recipe


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


def total_time_s(pipeline_s: Array, sent_s: Array, overlap: Overlap) -> Array:
    """The step: what the pipeline takes, and what is exposed of the exchanges. The only full-size part of time."""
    return (pipeline_s + sent_s) - (overlap.grad_hidden_s + overlap.gather_hidden_s)


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
    exchanged = data_parallel_exchanges(
        model, plans, links, params, machine, micro_batches, per_stage.arithmetic_s, forward, backward
    )
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


def _work(model: ModelSpec, times: ModelTimes, repeats: Array) -> dict[str, Any]:
    """The average stage's terms over all micro-batches."""
    n_heads = 1.0 + model.mtp_layers
    parts: list[tuple[float, Sublayer]] = [(1.0, times.embedding), (n_heads, times.head)]
    for name, sublayer in times.kinds.items():
        extra = model.mtp_layers if is_mtp_kind(model, name) else 0
        parts.append((float(layer_totals(model)[name] + extra), sublayer))

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


def _gradient_passes_s(plans: Plans, params: StageParams, machine: Machine, micro_batches: Array) -> Array:
    """Passes over weights and gradients that come with every micro-batch: accumulation, and the copies of ZeRO 3."""
    held = params.dense + params.expert  # mesh x pipe
    stage_3 = plans.zero_stage == 3
    profile = machine.recipe.framework
    again = gathers_again(plans, profile)
    whole = (stage_3 | again) & accumulates_whole(plans, profile, micro_batches)
    scatters = 1.0 - whole
    once = traffic.sharding_copy_traffic_bytes(held, profile=profile, gathers=number(1.0), scatters=scatters)
    twice = traffic.sharding_copy_traffic_bytes(held, profile=profile, gathers=number(2.0), scatters=scatters)
    adding = traffic.accumulation_traffic_bytes(held, profile=profile)
    added = (1.0 - stage_3) * (1.0 - again) + whole
    moved = micro_batches * (added * adding + stage_3 * twice + again * once)
    return np.asarray(moved / (machine.hbm_bytes_per_s * machine.memory.hbm_fraction))


def _optimizer_s(plans: Plans, params: StageParams, machine: Machine) -> Array:
    """Adam on the states this device keeps; offloaded, gradients and weights also cross the host link twice."""
    owned = params.owned(plans)  # mesh x pipe x data
    moved = traffic.optimizer_traffic_bytes(owned, profile=machine.recipe.framework)
    on_device = memory_bound_time_s(moved, rates=machine.memory, hbm_bytes_per_s=machine.hbm_bytes_per_s)
    host = machine.hardware.node.host_bytes_per_s
    on_host = (owned * (machine.recipe.framework.grad_bytes + 2.0) + moved) / host
    return np.asarray(on_device + plans.offload_optimizer * (on_host - on_device))
