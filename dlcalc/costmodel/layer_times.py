"""What one micro-batch costs in each sublayer: matmuls, attention, memory-bound passes, launches, communication.

A layer is one attention sublayer and one MLP sublayer; a model has at most two kinds of each (full and windowed attention, dense and
expert MLP). Every array here depends on the mesh, the micro-batch and the tensor-parallel knobs alone: depth, schedule, recomputation and
data parallelism come later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from dlcalc.calculators import kernels, launches, traffic
from dlcalc.calculators.communication import (
    GroupLink,
    all_gather_time_s,
    all_reduce_time_s,
    all_to_all_time_s,
    reduce_scatter_time_s,
    send_time_s,
)
from dlcalc.costmodel.machine import Machine, MatmulMachine
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import Array, Plans
from dlcalc.specs.model import ModelSpec

ZERO = np.float64(0.0)


@dataclass(frozen=True)
class Matmul:
    """One linear layer: (tokens, inner) x (inner, outer), ``groups`` times at once."""

    name: str
    tokens: Array
    outer: Array
    inner: Array
    groups: Array | float = 1.0
    replicated_bits: bool = False
    """Kept in 16 bits whatever the recipe."""


@dataclass(frozen=True)
class MatmulTime:
    """Of one linear layer: forward, gradient of its input, gradient of its weight."""

    forward_s: Array
    input_grad_s: Array
    weight_grad_s: Array


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass of one micro-batch through one sublayer, by what they are spent on."""

    matmul_s: Array = ZERO
    latent_matmul_s: Array = ZERO
    """Up-projections of latent attention, apart because they can be recomputed alone."""
    attention_s: Array = ZERO
    norm_s: Array = ZERO
    activation_s: Array = ZERO
    other_memory_s: Array = ZERO
    tp_comm_s: Array = ZERO
    cp_comm_s: Array = ZERO
    ep_comm_s: Array = ZERO

    @property
    def total_s(self) -> Array:
        return sum_of(getattr(self, field.name) for field in fields(self))

    @property
    def compute_s(self) -> Array:
        return self.total_s - self.tp_comm_s - self.cp_comm_s - self.ep_comm_s


@dataclass(frozen=True)
class Sublayer:
    """Both passes of a sublayer, and the part of the backward pass that can be postponed."""

    forward: Pass
    backward: Pass
    weight_grad_s: Array
    host_s: Array
    """What the host needs to launch the forward pass, whatever the device does."""
    matmuls: Mapping[str, tuple[Matmul, MatmulTime]]


def sum_of(arrays: Iterable[Array]) -> Array:
    """Sum in the order given, which is the same for one plan and for a grid, so that both round alike."""
    first, *others = arrays
    for array in others:
        first = first + array
    return first


def attention_sublayer(
    model: ModelSpec, plans: Plans, links: Links, machine: Machine, *, window: int
) -> Sublayer:
    """Norm, projections, attention core, output projection, residual."""
    profile = machine.recipe.framework
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    own_tokens = tokens / _sequence_shards(plans)
    heads = model.n_heads / plans.tp
    kv_heads = np.maximum(model.n_kv_heads / plans.tp, 1.0)
    hidden = float(model.hidden_size)
    matmuls = _attention_matmuls(model, plans, tokens=tokens, own_tokens=own_tokens, heads=heads, kv_heads=kv_heads)
    times = _matmul_times(matmuls, machine)
    core_f, core_b = _attention_core(model, plans, machine, heads=heads, kv_heads=kv_heads, window=window)

    norm = traffic.norm_traffic_bytes(own_tokens * hidden * (model.norms_per_layer / 2), profile=profile)
    residual = traffic.residual_traffic_bytes(own_tokens * hidden, profile=profile)
    if model.learned_positions or model.alibi:
        rope = (ZERO, ZERO)
    else:
        rotated = model.qk_rope_head_dim if model.is_mla else model.head_dim
        rope = traffic.rope_traffic_bytes(tokens * rotated * (heads + kv_heads), profile=profile)
    if model.qk_norm:
        qk = traffic.norm_traffic_bytes(tokens * model.head_dim * (heads + kv_heads), profile=profile)
        norm = (norm[0] + qk[0], norm[1] + qk[1])
    cast = _cast_traffic(matmuls, machine)
    apart = 1.0 if profile.fused_projections or model.is_mla else 3.0
    comm_f, comm_b = _tp_comm(plans, links, machine, tokens * hidden, times, ("qkv", "out"), apart)
    cp_f, cp_b = _cp_comm(model, plans, links, machine, core_f, core_b, kv_heads)
    n_launches = launches.attention_launches_count(
        model, profile, n_matmuls=len(matmuls), collectives=_tp_collectives(plans), casts=_casts(machine)
    )
    return _sublayer(
        machine, matmuls, times, n_launches,
        Pass(
            attention_s=core_f, norm_s=_moved_s(machine, norm[0]), tp_comm_s=comm_f, cp_comm_s=cp_f,
            other_memory_s=_moved_s(machine, residual[0] + rope[0], cast[0]),
        ),
        Pass(
            attention_s=core_b, norm_s=_moved_s(machine, norm[1]), tp_comm_s=comm_b, cp_comm_s=cp_b,
            other_memory_s=_moved_s(machine, residual[1] + rope[1], cast[1]),
        ),
    )  # fmt: skip


def dense_mlp_sublayer(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Sublayer:
    """Norm, up (and gate), activation, down, residual."""
    profile = machine.recipe.framework
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    own_tokens = tokens / _sequence_shards(plans)
    hidden = np.float64(model.hidden_size)
    width = model.ffn_hidden_size / plans.tp
    matmuls = [
        Matmul("up", tokens, (1 + model.gated_mlp) * width, hidden),
        Matmul("down", tokens, hidden, width),
    ]
    times = _matmul_times(matmuls, machine)
    norm = traffic.norm_traffic_bytes(own_tokens * hidden * (model.norms_per_layer / 2), profile=profile)
    residual = traffic.residual_traffic_bytes(own_tokens * hidden, profile=profile)
    activation = traffic.activation_traffic_bytes(tokens * width, gated=model.gated_mlp, profile=profile)
    cast = _cast_traffic(matmuls, machine)
    apart = 1.0 if profile.fused_projections else 1.0 + model.gated_mlp
    comm_f, comm_b = _tp_comm(plans, links, machine, tokens * hidden, times, ("up", "down"), apart)
    n_launches = launches.mlp_launches_count(
        model, profile, collectives=_tp_collectives(plans), casts=_casts(machine)
    )
    return _sublayer(
        machine, matmuls, times, n_launches,
        Pass(
            norm_s=_moved_s(machine, norm[0]), activation_s=_moved_s(machine, activation[0]), tp_comm_s=comm_f,
            other_memory_s=_moved_s(machine, residual[0], cast[0]),
        ),
        Pass(
            norm_s=_moved_s(machine, norm[1]), activation_s=_moved_s(machine, activation[1]), tp_comm_s=comm_b,
            other_memory_s=_moved_s(machine, residual[1], cast[1]),
        ),
    )  # fmt: skip


def moe_sublayer(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Sublayer:
    """Norm, router, dispatch, grouped expert matmuls, combine, shared expert, residual.

    Assumes: balanced routing, no token dropped; every device of an ep x etp group holds equally many routed tokens.
    """
    profile = machine.recipe.framework
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    own_tokens = tokens / _sequence_shards(plans)
    hidden = np.float64(model.hidden_size)
    routed = tokens * model.top_k * plans.etp / plans.tp  # token copies that this device's experts work on
    local_experts = model.n_experts / plans.ep
    width = model.expert_ffn_hidden_size / plans.etp
    gates = 1 + model.gated_mlp
    per_expert = routed / local_experts
    matmuls = [
        Matmul("router", own_tokens, np.float64(model.n_experts), hidden, replicated_bits=True),
        Matmul("expert up", per_expert, gates * width, hidden, groups=local_experts),
        Matmul("expert down", per_expert, hidden, width, groups=local_experts),
    ]
    activated = routed * width
    if model.shared_ffn_hidden_size:
        shared = model.shared_ffn_hidden_size / plans.tp
        matmuls += [Matmul("shared up", tokens, gates * shared, hidden), Matmul("shared down", tokens, hidden, shared)]
        activated = activated + tokens * shared
    times = _matmul_times(matmuls, machine)

    norm = traffic.norm_traffic_bytes(own_tokens * hidden * (model.norms_per_layer / 2), profile=profile)
    residual = traffic.residual_traffic_bytes(own_tokens * hidden, profile=profile)
    activation = traffic.expert_activation_traffic_bytes(
        activated, gated=model.gated_mlp, has_bias=model.expert_bias, profile=profile
    )
    routing = traffic.routing_traffic_bytes(own_tokens, routed * hidden, n_experts=model.n_experts)
    cast = _cast_traffic(matmuls, machine)
    exchange_f, exchange_b = _ep_comm(model, plans, links, machine, own_tokens, routed, times)
    if model.shared_ffn_hidden_size:
        comm_f, comm_b = _tp_comm(plans, links, machine, tokens * hidden, times, ("shared up", "shared down"))
    else:
        comm_f, comm_b = ZERO, ZERO
    n_launches = launches.moe_launches_count(
        model,
        profile,
        local_experts=local_experts,
        collectives=2.0 * (plans.ep > 1) + 2.0 * (plans.etp > 1),
        casts=_casts(machine),
    )
    return _sublayer(
        machine, matmuls, times, n_launches,
        Pass(
            norm_s=_moved_s(machine, norm[0]), activation_s=_moved_s(machine, activation[0]), tp_comm_s=comm_f,
            ep_comm_s=exchange_f, other_memory_s=_moved_s(machine, residual[0] + routing[0], cast[0]),
        ),
        Pass(
            norm_s=_moved_s(machine, norm[1]), activation_s=_moved_s(machine, activation[1]), tp_comm_s=comm_b,
            ep_comm_s=exchange_b, other_memory_s=_moved_s(machine, residual[1] + routing[1], cast[1]),
        ),
    )  # fmt: skip


def embedding_sublayer(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Sublayer:
    """Token lookup on the first stage: a gather, and a reduction over tensor-parallel ranks of the vocabulary's shards."""
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    moved = traffic.embedding_traffic_bytes(tokens * model.hidden_size)
    size = 2.0 * tokens * model.hidden_size
    rates = machine.hardware.calibration
    node, fabric = rates.node_collectives, rates.fabric_collectives
    gathered = all_gather_time_s(size, links.tp, node=node["all_gather"], fabric=fabric["all_gather"])
    reduced = reduce_scatter_time_s(size, links.tp, node=node["reduce_scatter"], fabric=fabric["reduce_scatter"])
    both = all_reduce_time_s(size, links.tp, node=node["all_reduce"], fabric=fabric["all_reduce"])
    sharded = plans.sequence_parallel
    return Sublayer(
        forward=Pass(other_memory_s=_moved_s(machine, moved[0]), tp_comm_s=sharded * reduced + (1 - sharded) * both),
        backward=Pass(other_memory_s=_moved_s(machine, moved[1]), tp_comm_s=sharded * gathered),
        weight_grad_s=ZERO,
        host_s=ZERO,
        matmuls={},
    )


HEAD_LAUNCHES = 10.0
"""Norm, matmul and the passes of the cross-entropy."""


def head_sublayer(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Sublayer:
    """Final norm, LM head and cross-entropy on the last stage, in 16 bits."""
    profile = machine.recipe.framework
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    hidden = np.float64(model.hidden_size)
    matmuls = [Matmul("head", tokens, model.vocab_size / plans.tp, hidden, replicated_bits=True)]
    times = _matmul_times(matmuls, machine)
    if model.vocab_size % ALIGNED_ELEMENTS:  # divided over tp it is padded
        times = {"head": _unaligned(times["head"], plans)}
    norm = traffic.norm_traffic_bytes(tokens / _sequence_shards(plans) * hidden, profile=profile)
    gathered = profile.cross_entropy == "gathered"
    logits = tokens * model.vocab_size / (1.0 if gathered else plans.tp)
    loss = traffic.loss_traffic_bytes(logits, profile=profile)
    rates = machine.hardware.calibration
    node, fabric = rates.node_collectives, rates.fabric_collectives
    comm_f, comm_b = _tp_comm(plans, links, machine, tokens * hidden, times, ("head", None))
    if gathered:
        size = 2.0 * logits
        comm_f = comm_f + all_gather_time_s(size, links.tp, node=node["all_gather"], fabric=fabric["all_gather"])
    return _sublayer(
        machine, matmuls, times, HEAD_LAUNCHES,
        Pass(norm_s=_moved_s(machine, norm[0]), other_memory_s=_moved_s(machine, loss[0]), tp_comm_s=comm_f),
        Pass(norm_s=_moved_s(machine, norm[1]), other_memory_s=_moved_s(machine, loss[1]), tp_comm_s=comm_b),
    )  # fmt: skip


ALIGNED_ELEMENTS = 8
"""Rows of 16-bit operands must start on 16 bytes for tensor cores to run at full rate."""
UNALIGNED_FACTOR = 2.5
"""Time of a matmul whose rows do not, over that of one whose do: 75 to 120 against 250 TFLOP/s for a vocabulary of 50,257 on an A100."""


def _unaligned(time: MatmulTime, plans: Plans) -> MatmulTime:
    factor = np.where(plans.tp == 1, UNALIGNED_FACTOR, 1.0)
    return MatmulTime(factor * time.forward_s, factor * time.input_grad_s, factor * time.weight_grad_s)


def stage_send_s(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Array:
    """Time to hand one micro-batch's activations to the neighbouring stage; sequence-parallel ranks send their share."""
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    size = 2.0 * tokens * model.hidden_size / _sequence_shards(plans)
    rates = machine.hardware.calibration
    inside = send_time_s(
        size, link_bytes_per_s=links.pp_bytes_per_s, link_latency_s=links.pp_latency_s, rates=rates.node_collectives["send"]
    )
    across = send_time_s(
        size, link_bytes_per_s=links.pp_bytes_per_s, link_latency_s=links.pp_latency_s, rates=rates.fabric_collectives["send"]
    )
    return (plans.pp > 1) * (links.pp_crosses * across + (1.0 - links.pp_crosses) * inside)


# ---- parts --------------------------------------------------------------------------------------------------------


def _sequence_shards(plans: Plans) -> Array:
    """Over how many ranks norms, residuals and stage boundaries are sharded: tp with sequence parallelism, else 1."""
    return 1.0 + plans.sequence_parallel * (plans.tp - 1.0)


def _tp_collectives(plans: Plans) -> Array:
    """Collectives of a sublayer's forward pass: an all-reduce, or a gather and a scatter."""
    return (plans.tp > 1) * (1.0 + plans.sequence_parallel)


def _casts(machine: Machine) -> float:
    """Quantizing kernels per matmul: one for the input, one for the weight."""
    return 2.0 * _is_low_precision(machine)


def _is_low_precision(machine: Machine) -> bool:
    return machine.recipe.precision in traffic.CAST_BYTES


def _moved_s(machine: Machine, traffic_bytes: Array, cast_bytes: Array = ZERO) -> Array:
    """Time of memory-bound passes; quantizing passes are counted in full, so nothing comes on top of them."""
    factor = machine.recipe.framework.memory_pass_factor
    return np.asarray(
        kernels.memory_bound_time_s(
            factor * traffic_bytes + cast_bytes, rates=machine.memory, hbm_bytes_per_s=machine.hbm_bytes_per_s
        )
    )


def _attention_matmuls(
    model: ModelSpec, plans: Plans, *, tokens: Array, own_tokens: Array, heads: Array, kv_heads: Array
) -> list[Matmul]:
    hidden = np.float64(model.hidden_size)
    out = Matmul("out", tokens, hidden, heads * model.value_head_dim)
    if not model.is_mla:
        return [Matmul("qkv", tokens, (heads + 2.0 * kv_heads) * model.head_dim, hidden), out]
    latent = np.float64(model.kv_lora_rank)
    kv_up = Matmul("kv up", tokens, heads * (model.qk_nope_head_dim + model.v_head_dim), latent)
    query = heads * model.qk_head_dim
    if not model.q_lora_rank:
        down = Matmul("qkv", own_tokens, query + latent + model.qk_rope_head_dim, hidden)
        return [down, kv_up, out]
    rank = np.float64(model.q_lora_rank)
    down = Matmul("qkv", own_tokens, rank + latent + model.qk_rope_head_dim, hidden)
    return [down, Matmul("q up", tokens, query, rank), kv_up, out]


LATENT_UP = ("q up", "kv up")


def _matmul_times(matmuls: list[Matmul], machine: Machine) -> dict[str, MatmulTime]:
    """Every matmul of a sublayer, its three passes evaluated together: one call of the equation per precision."""
    times: dict[str, MatmulTime] = {}
    for kept in (False, True):
        chosen = [matmul for matmul in matmuls if matmul.replicated_bits is kept]
        if chosen:
            times |= _matmul_times_in(chosen, machine.sixteen_bit if kept else machine.linear, machine)
    return times


def _matmul_times_in(matmuls: list[Matmul], unit: MatmulMachine, machine: Machine) -> dict[str, MatmulTime]:
    forward = [(matmul.tokens, matmul.outer, matmul.inner) for matmul in matmuls]
    input_grad = [(m, k, n) for m, n, k in forward]
    weight_grad = [(n, k, m) for m, n, k in forward]
    groups = [matmul.groups for matmul in matmuls]
    outputs = [2.0] * (2 * len(matmuls)) + [2.0 * machine.recipe.framework.grad_bytes] * len(matmuls)  # reads, adds, writes
    shape = np.broadcast_shapes(*(np.shape(x) for triple in [*forward, groups] for x in triple))
    stacked = np.empty((5, 3 * len(matmuls), *shape))
    for row, (triple, group, output) in enumerate(
        zip(forward + input_grad + weight_grad, groups * 3, outputs, strict=True)
    ):
        for column, value in enumerate((*triple, group, output)):
            stacked[column, row] = value
    m, n, k, group_counts, output_bytes = stacked
    seconds = np.asarray(
        kernels.matmul_time_s(
            m, n, k,
            groups=group_counts,
            rates=unit.rates,
            peak_flops_per_s=unit.peak_flops_per_s,
            hbm_bytes_per_s=unit.hbm_bytes_per_s,
            n_sms=unit.n_sms,
            input_bytes=unit.input_bytes,
            l2_bytes=unit.l2_bytes,
            output_bytes=output_bytes.reshape(len(output_bytes), -1)[:, 0].reshape(-1, *[1] * len(shape)),
        )
    )  # fmt: skip
    seconds = seconds * unit.training_factor
    count = len(matmuls)
    return {
        matmul.name: MatmulTime(seconds[i], seconds[count + i], seconds[2 * count + i])
        for i, matmul in enumerate(matmuls)
    }


def _cast_traffic(matmuls: list[Matmul], machine: Machine) -> tuple[Array, Array]:
    """Bytes of quantizing inputs and weights (forward) and output gradients (backward) of low-precision matmuls."""
    if not _is_low_precision(machine):
        return ZERO, ZERO
    forward = backward = ZERO
    for matmul in matmuls:
        if not matmul.replicated_bits:
            inputs = matmul.groups * matmul.tokens * matmul.inner
            weights = matmul.groups * matmul.outer * matmul.inner
            forward = forward + inputs + weights
            backward = backward + matmul.groups * matmul.tokens * matmul.outer
    precision = machine.recipe.precision
    return (
        traffic.cast_traffic_bytes(forward, precision=precision),
        traffic.cast_traffic_bytes(backward, precision=precision),
    )


def _attention_core(
    model: ModelSpec, plans: Plans, machine: Machine, *, heads: Array, kv_heads: Array, window: int
) -> tuple[Array, Array]:
    """Scores, softmax and values of both passes; context parallelism splits the queries, balanced over the causal mask."""
    seq = float(machine.recipe.seq_len)
    profile = machine.recipe.framework
    shape = {
        "batch": plans.micro_batch,
        "n_heads": heads,
        "qk_head_dim": float(model.qk_head_dim),
        "v_head_dim": float(model.value_head_dim),
        "peak_flops_per_s": machine.sixteen_bit.peak_flops_per_s,
        "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        "n_sms": machine.n_sms,
    }
    if profile.attention in STORES_SCORES:
        shape |= {
            "fused_softmax": profile.attention == "megatron_fused",
            "dropout": profile.dropout,
            "matmul": machine.sixteen_bit.rates,
            "memory": machine.memory,
        }
        return (
            np.asarray(kernels.unfused_attention_forward_time_s(seq / plans.cp, seq, **shape)),
            np.asarray(kernels.unfused_attention_backward_time_s(seq / plans.cp, seq, **shape)),
        )
    shape |= {
        "n_kv_heads": kv_heads,
        "window": float(window),
        "causal": True,
        "rates": machine.attention,
        "kernel": profile.attention,
    }
    slower = machine.sixteen_bit.training_factor
    return (
        slower * np.asarray(kernels.attention_forward_time_s(seq / plans.cp, seq, **shape)),
        slower * np.asarray(kernels.attention_backward_time_s(seq / plans.cp, seq, **shape)),
    )


STORES_SCORES = ("unfused", "megatron_fused")
"""Attention kernels that keep the score matrix in memory."""


def _tp_comm(
    plans: Plans, links: Links, machine: Machine, elements: Array, times: Mapping[str, MatmulTime],
    edges: tuple[str | None, str | None], apart: float = 1.0,
) -> tuple[Array, Array]:  # fmt: skip
    """Exposed tensor-parallel communication of a column-parallel and a row-parallel linear layer.

    Without sequence parallelism one all-reduce a pass, that of the backward pass behind the weight gradient where the trainer
    overlaps it (``apart`` of them where as many projections exchange it on their own). With it, an all-gather and a reduce-scatter a pass, and the input gathered once more for its weight gradient.
    With ``overlap_tp`` all but the first of tp chunks hides behind the matmul it feeds.
    """
    size = 2.0 * elements
    rates = machine.hardware.calibration
    node, fabric = rates.node_collectives, rates.fabric_collectives
    gather = all_gather_time_s(size, links.tp, node=node["all_gather"], fabric=fabric["all_gather"])
    scatter = reduce_scatter_time_s(size, links.tp, node=node["reduce_scatter"], fabric=fabric["reduce_scatter"])
    both = all_reduce_time_s(size, links.tp, node=node["all_reduce"], fabric=fabric["all_reduce"])
    column = times[edges[0]] if edges[0] else None
    row = times[edges[1]] if edges[1] else None
    sharded, overlapped = plans.sequence_parallel, plans.overlap_tp

    def exposed(comm: Array, window: Array) -> Array:
        hidden_part = np.maximum(comm / plans.tp, comm - window)
        return comm + overlapped * (hidden_part - comm)

    forward_sharded = backward_sharded = forward_whole = backward_whole = ZERO
    if column is not None:
        forward_sharded = forward_sharded + exposed(gather, column.forward_s)
        again = np.maximum(0.0, gather - column.input_grad_s)  # the input gathered again, behind the input gradient
        behind = column.weight_grad_s * machine.recipe.framework.overlaps_input_grad
        backward_sharded = backward_sharded + np.maximum(0.0, scatter - behind) + again
        backward_whole = backward_whole + np.maximum(0.0, apart * both - behind)
    if row is not None:
        forward_sharded = forward_sharded + exposed(scatter, row.forward_s)
        backward_sharded = backward_sharded + exposed(gather, row.input_grad_s)
        forward_whole = forward_whole + both
    return (
        sharded * forward_sharded + (1.0 - sharded) * forward_whole,
        sharded * backward_sharded + (1.0 - sharded) * backward_whole,
    )


def _cp_comm(
    model: ModelSpec, plans: Plans, links: Links, machine: Machine, core_f: Array, core_b: Array, kv_heads: Array
) -> tuple[Array, Array]:
    """Exposed ring exchange of keys and values; each of cp steps of attention hides the next block's transfer."""
    tokens = plans.micro_batch * machine.recipe.seq_len
    width = kv_heads * (model.qk_head_dim + model.value_head_dim)
    rates = machine.hardware.calibration
    size = 2.0 * tokens * width  # the whole sequence's keys and values, in 16 bits
    node, fabric = rates.node_collectives["all_gather"], rates.fabric_collectives["all_gather"]
    ring = all_gather_time_s(size, links.cp, node=node, fabric=fabric)
    around = (plans.cp - 1.0) / plans.cp
    return np.maximum(0.0, ring - core_f * around), np.maximum(0.0, 2.0 * ring - core_b * around)


def _ep_comm(
    model: ModelSpec, plans: Plans, links: Links, machine: Machine, own_tokens: Array, routed: Array,
    times: Mapping[str, MatmulTime],
) -> tuple[Array, Array]:  # fmt: skip
    """Exposed dispatch and combine of each pass, and the gather over expert-tensor-parallel ranks.

    With ``overlap_ep`` a micro-batch's exchange runs behind the other pass of another one: exposed is what exceeds the experts' matmuls.
    """
    rates = machine.hardware.calibration
    node, fabric = rates.node_collectives, rates.fabric_collectives
    copies = own_tokens * model.top_k
    size = 2.0 * copies * model.hidden_size
    once = all_to_all_time_s(size, links.ep, node=node["all_to_all"], fabric=fabric["all_to_all"])
    gathered = 2.0 * routed * model.hidden_size
    spread = all_gather_time_s(gathered, links.etp, node=node["all_gather"], fabric=fabric["all_gather"])
    spread = spread + reduce_scatter_time_s(
        gathered, links.etp, node=node["reduce_scatter"], fabric=fabric["reduce_scatter"]
    )
    comm = 2.0 * once + spread
    experts_f = times["expert up"].forward_s + times["expert down"].forward_s
    experts_b = experts_f + sum_of(
        [times[name].weight_grad_s for name in ("expert up", "expert down")]
    )
    exposed_f = comm - plans.overlap_ep * np.minimum(comm, experts_f)
    exposed_b = comm - plans.overlap_ep * np.minimum(comm, experts_b)
    return exposed_f, exposed_b


def _sublayer(
    machine: Machine, matmuls: list[Matmul], times: Mapping[str, MatmulTime], n_launches: Array | float,
    forward: Pass, backward: Pass,
) -> Sublayer:  # fmt: skip
    """Add the matmuls to both passes, and the launch floor."""
    latent = [matmul.name for matmul in matmuls if matmul.name in LATENT_UP]
    plain = [matmul.name for matmul in matmuls if matmul.name not in LATENT_UP]
    forward = replace(
        forward,
        matmul_s=sum_of(times[name].forward_s for name in plain),
        latent_matmul_s=sum_of([times[name].forward_s for name in latent] or [ZERO]),
    )
    weight_grad = sum_of(time.weight_grad_s for time in times.values())
    input_grad = sum_of(time.input_grad_s for time in times.values())
    backward = replace(backward, matmul_s=input_grad + weight_grad)
    host_s = 0.0 if machine.recipe.cuda_graphs else machine.recipe.framework.host_launch_s
    return Sublayer(
        forward=forward,
        backward=backward,
        weight_grad_s=weight_grad,
        host_s=np.asarray(host_s * n_launches),
        matmuls={matmul.name: (matmul, times[matmul.name]) for matmul in matmuls},
    )
