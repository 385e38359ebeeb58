"""What one micro-batch costs in each sublayer: matmuls, attention, memory-bound passes, launches, communication.

A layer is one attention sublayer and one MLP sublayer; a model has at most two kinds of each (full and windowed
attention, dense and expert MLP). Every array here depends on the mesh, the micro-batch and the tensor-parallel knobs
alone: depth, schedule, recomputation and data parallelism come later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from dlcalc.calculators import kernels, launches, traffic
from dlcalc.costmodel.layer_comm import (
    cp_comm_s,
    cp_copies_bytes,
    ep_comm_s,
    sequence_shards,
    tp_collectives_count,
    tp_comm_s,
    tp_exchanges,
)
from dlcalc.costmodel.layer_matmuls import (
    ALIGNED_ELEMENTS,
    LATENT_UP,
    ZERO,
    Matmul,
    MatmulTime,
    attention_matmuls,
    cast_traffic,
    is_low_precision,
    matmul_times,
    slowest_device,
    sum_of,
    unaligned,
)
from dlcalc.costmodel.machine import Machine
from dlcalc.costmodel.placement import Links
from dlcalc.costmodel.plans import Array, Plans, number
from dlcalc.specs.model import ModelSpec


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


def attention_sublayer(model: ModelSpec, plans: Plans, links: Links, machine: Machine, *, window: int) -> Sublayer:
    """Norm, projections, attention core, output projection, residual."""
    profile = machine.recipe.framework
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    own_tokens = tokens / sequence_shards(plans)
    heads = model.n_heads / plans.tp
    kv_heads = np.maximum(model.n_kv_heads / plans.tp, 1.0)
    hidden = float(model.hidden_size)
    matmuls = attention_matmuls(model, plans, tokens=tokens, own_tokens=own_tokens, heads=heads, kv_heads=kv_heads)
    times = matmul_times(matmuls, plans, machine)
    core_f, core_b = _attention_core(model, plans, machine, heads=heads, kv_heads=kv_heads, window=window)

    stream = own_tokens * hidden  # elements of the residual stream
    norm = traffic.norm_traffic_bytes(stream * (model.norms_per_layer / 2), profile=profile)
    residual = traffic.residual_traffic_bytes(stream, profile=profile)
    if model.learned_positions or model.alibi:
        rope = (ZERO, ZERO)
    else:
        rotated = model.qk_rope_head_dim if model.is_mla else model.head_dim
        rope = traffic.rope_traffic_bytes(tokens * rotated * (heads + kv_heads), profile=profile)
    if model.is_mla:
        operands = heads * tokens * model.qk_head_dim
        split = traffic.latent_split_traffic_bytes(
            operands, operands + heads * tokens * model.value_head_dim, profile=profile
        )
        rope = (rope[0] + split, rope[1] + split)
    if model.qk_norm:
        qk = traffic.norm_traffic_bytes(tokens * model.head_dim * (heads + kv_heads), profile=profile)
        norm = (norm[0] + qk[0], norm[1] + qk[1])
    copied_f, copied_b = cp_copies_bytes(model, plans, tokens, heads, kv_heads)
    cast = cast_traffic(matmuls, plans, machine)
    apart = 1.0 if profile.fused_projections or model.is_mla else 3.0
    comm_f, comm_b = tp_comm_s(plans, links, machine, tokens * hidden, times, ("qkv", "out"), apart)
    cp_f, cp_b = cp_comm_s(model, plans, links, machine, core_f, core_b, heads, kv_heads)
    n_launches = launches.attention_launches_count(
        model, profile, n_matmuls=len(matmuls), collectives=tp_collectives_count(plans), casts=_casts(machine)
    )
    return _sublayer(
        machine,
        matmuls,
        times,
        n_launches,
        Pass(
            attention_s=core_f + _copied_s(machine, copied_f),
            norm_s=_moved_s(machine, norm[0]),
            tp_comm_s=comm_f,
            cp_comm_s=cp_f,
            other_memory_s=_moved_s(machine, residual[0] + rope[0], cast[0]),
        ),
        Pass(
            attention_s=core_b + _copied_s(machine, copied_b),
            norm_s=_moved_s(machine, norm[1]),
            tp_comm_s=comm_b,
            cp_comm_s=cp_b,
            other_memory_s=_moved_s(machine, residual[1] + rope[1], cast[1]),
        ),
    )


def dense_mlp_sublayer(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Sublayer:
    """Norm, up (and gate), activation, down, residual."""
    profile = machine.recipe.framework
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    own_tokens = tokens / sequence_shards(plans)
    hidden = number(model.hidden_size)
    width = model.ffn_hidden_size / plans.tp
    matmuls = [
        Matmul("up", tokens, (1 + model.gated_mlp) * width, hidden),
        Matmul("down", tokens, hidden, width),
    ]
    times = matmul_times(matmuls, plans, machine)
    stream = own_tokens * hidden  # elements of the residual stream
    norm = traffic.norm_traffic_bytes(stream * (model.norms_per_layer / 2), profile=profile)
    residual = traffic.residual_traffic_bytes(stream, profile=profile)
    activation = traffic.activation_traffic_bytes(tokens * width, gated=model.gated_mlp, profile=profile)
    cast = cast_traffic(matmuls, plans, machine)
    apart = 1.0 if profile.fused_projections else 1.0 + model.gated_mlp
    comm_f, comm_b = tp_comm_s(plans, links, machine, tokens * hidden, times, ("up", "down"), apart)
    n_launches = launches.mlp_launches_count(
        model, profile, collectives=tp_collectives_count(plans), casts=_casts(machine)
    )
    return _sublayer(
        machine,
        matmuls,
        times,
        n_launches,
        Pass(
            norm_s=_moved_s(machine, norm[0]),
            activation_s=_moved_s(machine, activation[0]),
            tp_comm_s=comm_f,
            other_memory_s=_moved_s(machine, residual[0], cast[0]),
        ),
        Pass(
            norm_s=_moved_s(machine, norm[1]),
            activation_s=_moved_s(machine, activation[1]),
            tp_comm_s=comm_b,
            other_memory_s=_moved_s(machine, residual[1], cast[1]),
        ),
    )


def moe_sublayer(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Sublayer:
    """Norm, router, dispatch, grouped expert matmuls, combine, shared expert, residual.

    Assumes: balanced routing, no token dropped; every device of an ep x etp group holds equally many routed tokens.
    """
    profile = machine.recipe.framework
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    own_tokens = tokens / sequence_shards(plans)
    hidden = number(model.hidden_size)
    # token copies that this device's experts work on
    routed = tokens * (model.top_k * profile.routed_factor) * plans.etp / plans.tp
    local_experts = model.n_experts / plans.ep
    width = model.expert_ffn_hidden_size / plans.etp
    gates = 1 + model.gated_mlp
    per_expert = routed / local_experts
    matmuls = [
        Matmul("router", own_tokens, number(model.n_experts), hidden, replicated_bits=True),
        Matmul("expert up", per_expert, gates * width, hidden, groups=local_experts),
        Matmul("expert down", per_expert, hidden, width, groups=local_experts),
    ]
    activated = routed * width
    if model.shared_ffn_hidden_size:
        shared = model.shared_ffn_hidden_size / plans.tp
        matmuls += [Matmul("shared up", tokens, gates * shared, hidden), Matmul("shared down", tokens, hidden, shared)]
        activated = activated + tokens * shared
    times = matmul_times(matmuls, plans, machine)

    stream = own_tokens * hidden  # elements of the residual stream
    norm = traffic.norm_traffic_bytes(stream * (model.norms_per_layer / 2), profile=profile)
    residual = traffic.residual_traffic_bytes(stream, profile=profile)
    activation = traffic.activation_traffic_bytes(activated, gated=model.gated_mlp, profile=profile)
    clamp = traffic.clamp_traffic_bytes(routed * width * model.expert_bias)
    bias = traffic.expert_bias_traffic_bytes(routed * hidden * model.expert_bias)
    routing = traffic.routing_traffic_bytes(
        own_tokens,
        routed * hidden,
        n_experts=model.n_experts,
        ep=plans.ep,
        profile=profile,
        precision=machine.recipe.precision,
    )
    cast = cast_traffic(matmuls, plans, machine)
    more = profile.expert_pass_ratio
    floors = (launches.ROUTING - 2.0) * machine.memory.launch_s  # but for those of the router's matmul and the traffic
    exchange_f, exchange_b = ep_comm_s(model, plans, links, machine, own_tokens, routed, times)
    if model.shared_ffn_hidden_size:
        comm_f, comm_b = tp_comm_s(plans, links, machine, tokens * hidden, times, ("shared up", "shared down"))
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
        machine,
        matmuls,
        times,
        n_launches,
        Pass(
            norm_s=_moved_s(machine, norm[0]),
            activation_s=_moved_s(machine, more * (activation[0] + clamp[0])),
            tp_comm_s=comm_f,
            ep_comm_s=exchange_f,
            other_memory_s=_moved_s(machine, residual[0] + more * (routing[0] + bias[0]), cast[0]) + floors,
        ),
        Pass(
            norm_s=_moved_s(machine, norm[1]),
            activation_s=_moved_s(machine, more * (activation[1] + clamp[1])),
            tp_comm_s=comm_b,
            ep_comm_s=exchange_b,
            other_memory_s=_moved_s(machine, residual[1] + more * (routing[1] + bias[1]), cast[1])
            + launches.BACKWARD_FACTOR * floors,
        ),
    )


def embedding_sublayer(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Sublayer:
    """Token lookup on the first stage: a gather, and a reduction over the ranks that hold the vocabulary's shards."""
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    moved = traffic.embedding_traffic_bytes(tokens * model.hidden_size)
    gathered, reduced, both = tp_exchanges(links, machine, 2.0 * tokens * model.hidden_size)
    sharded = plans.sequence_parallel
    return Sublayer(
        forward=Pass(
            other_memory_s=_moved_s(machine, moved[0]),
            tp_comm_s=sharded * reduced + (1 - sharded) * both,
        ),
        backward=Pass(other_memory_s=_moved_s(machine, moved[1]), tp_comm_s=sharded * gathered),
        weight_grad_s=ZERO,
        host_s=ZERO,
        matmuls={},
    )


HEAD_LAUNCHES = 20.0
"""Norm, matmul, the passes of the cross-entropy, averaging and scaling the loss, the schedule around them."""


def head_sublayer(model: ModelSpec, plans: Plans, links: Links, machine: Machine) -> Sublayer:
    """Final norm, LM head and cross-entropy on the last stage, in 16 bits."""
    profile = machine.recipe.framework
    tokens = plans.micro_batch * machine.recipe.seq_len / plans.cp
    hidden = number(model.hidden_size)
    matmuls = [Matmul("head", tokens, model.vocab_size / plans.tp, hidden, replicated_bits=True)]
    times = matmul_times(matmuls, plans, machine)
    if model.vocab_size % ALIGNED_ELEMENTS:  # divided over tp it is padded
        times = {"head": unaligned(times["head"], plans)}
    stream = tokens / sequence_shards(plans) * hidden  # elements of the residual stream
    norm = traffic.norm_traffic_bytes(stream, profile=profile)
    gathered = profile.cross_entropy == "gathered"
    logits = tokens * model.vocab_size / (1.0 if gathered else plans.tp)
    loss = traffic.loss_traffic_bytes(logits, profile=profile)
    comm_f, comm_b = tp_comm_s(plans, links, machine, tokens * hidden, times, ("head", None))
    if gathered:
        comm_f = comm_f + tp_exchanges(links, machine, 2.0 * logits).gather
    return _sublayer(
        machine,
        matmuls,
        times,
        HEAD_LAUNCHES,
        Pass(
            norm_s=_moved_s(machine, norm[0]),
            other_memory_s=_moved_s(machine, ZERO, loss[0]),
            tp_comm_s=comm_f,
        ),
        Pass(
            norm_s=_moved_s(machine, norm[1]),
            other_memory_s=_moved_s(machine, ZERO, loss[1]),
            tp_comm_s=comm_b,
        ),
    )


# ---- parts --------------------------------------------------------------------------------------------------------


def _casts(machine: Machine) -> float:
    """Quantizing calls per matmul: one for the input, one for the weight.

    The host makes the latter every time: where the weight is kept quantized it looks it up, expert by expert.
    """
    return 2.0 * is_low_precision(machine)


def _moved_s(machine: Machine, traffic_bytes: Array, exact_bytes: Array = ZERO) -> Array:
    """Time of memory-bound passes; ``exact_bytes`` (casts, loss) have nothing on top of what is counted."""
    factor = machine.recipe.framework.memory_pass_factor
    return np.asarray(
        kernels.memory_bound_time_s(
            factor * traffic_bytes + exact_bytes,
            rates=machine.memory,
            hbm_bytes_per_s=machine.hbm_bytes_per_s,
        )
    )


def _copied_s(machine: Machine, moved_bytes: Array) -> Array:
    """Time of copies beside others: no floor, so that none take none."""
    return moved_bytes / (machine.hbm_bytes_per_s * machine.memory.hbm_fraction)


def _attention_core(
    model: ModelSpec, plans: Plans, machine: Machine, *, heads: Array, kv_heads: Array, window: int
) -> tuple[Array, Array]:
    """Scores, softmax and values of both passes; context parallelism splits the queries, the causal mask evenly."""
    seq = float(machine.recipe.seq_len)
    profile = machine.recipe.framework
    shape: dict[str, Any] = {
        "batch": plans.micro_batch,
        "n_heads": heads,
        "qk_head_dim": float(model.qk_head_dim),
        "v_head_dim": float(model.value_head_dim),
        "peak_flops_per_s": machine.sixteen_bit.peak_flops_per_s,
        "hbm_bytes_per_s": machine.hbm_bytes_per_s,
        "n_sms": machine.n_sms,
    }
    pace = slowest_device(plans)
    if profile.attention in STORES_SCORES:
        shape |= {
            "arithmetic_factor": machine.sixteen_bit.training_factor * pace,
            "fused_softmax": profile.attention == "megatron_fused",
            "dropout": profile.drops_scores,
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
        "arithmetic_factor": machine.attention_training_factor * pace,
    }
    return (
        np.asarray(kernels.attention_forward_time_s(seq / plans.cp, seq, **shape)),
        np.asarray(kernels.attention_backward_time_s(seq / plans.cp, seq, **shape)),
    )


STORES_SCORES = ("unfused", "megatron_fused")
"""Attention kernels that keep the score matrix in memory."""


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
    per_launch_s = machine.recipe.framework.host_launch_s * machine.hardware.calibration.host_factor
    host_s = 0.0 if machine.recipe.cuda_graphs else per_launch_s
    return Sublayer(
        forward=forward,
        backward=backward,
        weight_grad_s=weight_grad,
        host_s=np.asarray(host_s * n_launches),
        matmuls={matmul.name: (matmul, times[matmul.name]) for matmul in matmuls},
    )
