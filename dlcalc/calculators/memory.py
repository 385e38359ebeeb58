"""Device memory of training beside activations, in bytes per device: states, working sets, buffers.

A device's peak is ``states + activations in flight + gradients of a layer's weights + buffers + max(loss, layer)``,
where ``loss`` is logits, loss and the gradient of the LM head's weights, on the last stage (``logits.py``), and
``layer`` the backward working set, with what recomputation brings back. Activations are counted in ``activations.py``.
How parameters are counted is not known here.

Left out everywhere: gradients of biases, less than 0.1% of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.activations import (
    ACTIVATION_BYTES,
    SCORE_BYTES,
    between_matmuls_fraction,
    query_key_value_count,
)
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.model import ModelSpec

Numeric = float | NDArray[np.float64]
Array = NDArray[np.float64]

QUANTIZED_WEIGHT_BYTES: Mapping[str, float] = {"fp8": 2.0, "mxfp8": 2.0 * (1 + 1 / 32), "nvfp4": 2.0 * (0.5 + 1 / 16)}
"""Of one weight of a linear layer, as it is and transposed, scales included."""

# --- states ----------------------------------------------------------------------------------------------------------


def weights_bytes(params: Numeric, *, weight_bytes: float, zero_stage: Numeric = 0.0, shards: Numeric = 1.0) -> Numeric:
    """Weights that the passes compute with; ZeRO stage 3 keeps only this rank's shard between uses.

    ``shards`` is the number of ranks states are split over: dp x cp for dense weights, fewer for experts.
    Source: [rajbhandari2020] section 5.3.
    """
    return params * weight_bytes * _shard_share(zero_stage, 3, shards)


def quantized_weight_copy_bytes(params: Numeric, *, precision: str) -> Numeric:
    """Quantized weights of linear layers beside the 16-bit ones: once for the forward pass, once transposed.

    ``params`` are those of linear layers alone: embeddings and the LM head stay in 16 bits. In fp8 with a scale per
    tensor 1 byte each; mxfp8 adds a byte per 32 elements, nvfp4 has half a byte and one per 16.

    Assumes: both are kept between micro-batches, as Transformer Engine does unless its cache is switched off.
    Ignores: fp8 on Blackwell, whose matmuls need no transpose: half of it.
    Source: [derived].
    """
    return QUANTIZED_WEIGHT_BYTES[precision] * params


def gradient_bytes(params: Numeric, *, grad_bytes: float, zero_stage: Numeric = 0.0, shards: Numeric = 1.0) -> Numeric:
    """Gradients that live through the step; ZeRO stage 2 keeps only this rank's shard.

    Source: [rajbhandari2020] section 5.2.
    """
    return params * grad_bytes * _shard_share(zero_stage, 2, shards)


def optimizer_bytes(
    params: Numeric,
    *,
    master_weight_bytes: float,
    optimizer_state_bytes: float,
    zero_stage: Numeric = 0.0,
    shards: Numeric = 1.0,
) -> Numeric:
    """Master weights and both Adam moments; ZeRO stage 1 keeps only this rank's shard.

    Source: [rajbhandari2020] sections 3.1 and 5.1.
    """
    return params * (master_weight_bytes + optimizer_state_bytes) * _shard_share(zero_stage, 1, shards)


# --- working sets and buffers ----------------------------------------------------------------------------------------


def fsdp_working_set_bytes(
    layer_params: Numeric,
    *,
    gathered_bytes: Numeric,
    weight_bytes: float,
    grad_reduce_bytes: float,
    prefetched_layers: float = 1.0,
) -> Numeric:
    """What ZeRO stage 3 has of whole layers, at most: this layer's and the prefetched weights, and gradients.

    In the backward pass: ``(1 + prefetched)`` layers of gathered weights, of ``gathered_bytes`` each, the layer's
    gradients as they come out of the matmuls, and the layer before's in the dtype they are reduced in. Where matrices
    are gathered one by one, the same of matrices.

    Assumes: ``layer_params`` is of the largest layer (or matrix), per tp rank.
    Source: [zhao2023fsdp] sections 3.3 and 4.
    """
    return layer_params * ((1.0 + prefetched_layers) * gathered_bytes + weight_bytes + grad_reduce_bytes)


def backward_working_set_bytes(
    model: ModelSpec,
    profile: FrameworkProfile,
    *,
    tokens: Numeric,
    seq_k_tokens: Numeric,
    tp: Numeric,
    sequence_parallel: Numeric,
    etp: Numeric = 1.0,
    routed_factor: float = 1.0,
) -> Numeric:
    """The most that gradients inside one layer take at a time, beyond what its backward pass has freed by then.

    MLP: the gradient of gate and up, that of the residual stream, and the layer's input gathered over tp with its
    gradient; the gradient of the activation's output is outweighed by the kept input just freed. Experts: the same for
    routed tokens, whose input's gradient exists before and after the exchange. Attention: gradients of output, Q, K
    and V, and Q's in fp32; or, where scores are stored, their gradient and the copy it is made from.

    Source: [derived] operands of each backward op, less those that it frees; [dao2023] section 3.1 for Q's gradient.
    """
    between = between_matmuls_fraction(tp, sequence_parallel)
    h = float(model.hidden_size)
    gates = 2.0 if model.gated_mlp else 1.0
    residual = h * between
    gathered = 2.0 * h * np.asarray(sequence_parallel)
    mlp = gates * model.ffn_hidden_size / tp + residual + gathered
    if model.is_moe:
        routed = model.top_k * routed_factor * between
        shared = gates * model.shared_ffn_hidden_size / tp
        experts = routed * (gates * model.expert_ffn_hidden_size + 2.0 * h * etp)
        mlp = np.maximum(mlp * (not all(model.layer_is_moe)), experts + shared + residual)
    out_width = model.n_heads * model.value_head_dim / tp
    attention = query_key_value_count(model, tp) + out_width + residual + 2.0 * model.n_heads * model.qk_head_dim / tp
    if profile.attention in SCORE_BYTES:
        attention = attention + 2.0 * model.n_heads / tp * seq_k_tokens
    return tokens * ACTIVATION_BYTES * np.maximum(mlp, attention)


def recompute_working_set_bytes(whole_layer_bytes: Numeric, kept_layer_bytes: Numeric) -> Numeric:
    """What recomputation brings back of one layer before its backward pass: all it would have kept, less what it did.

    Source: [korthikanti2022] section 5.
    """
    return np.asarray(whole_layer_bytes - kept_layer_bytes)


def weight_gradient_working_set_bytes(params: Numeric) -> Numeric:
    """Gradients of weights on their way into the gradient buffer: those of one layer, and at the loss the LM head's.

    Even trainers that add them inside the matmul hand autograd a tensor of the weight's shape, one per shape. Experts,
    all of one shape, share theirs: count one.

    Assumes: no ZeRO stage 3, whose gradients ``fsdp_working_set_bytes`` counts.
    Source: [megatron_lm] tensor_parallel/layers.py, and what seven measured runs leave unexplained without it.
    """
    return ACTIVATION_BYTES * params


def stage_buffer_bytes(
    model: ModelSpec, *, tokens: Numeric, tp: Numeric, sequence_parallel: Numeric, pp: Numeric, vpp: Numeric
) -> Numeric:
    """Tensors received from the neighbouring stages: activations and gradients, twice where sends overlap (vpp > 1).

    Source: [megatron_lm] p2p_communication.py.
    """
    buffers = 2.0 * (1.0 + (np.asarray(vpp) > 1)) * (np.asarray(pp) > 1)
    return buffers * tokens * ACTIVATION_BYTES * model.hidden_size * between_matmuls_fraction(tp, sequence_parallel)


def tp_overlap_buffer_bytes(
    model: ModelSpec, *, tokens: Numeric, overlap_tp: Numeric, gathered_element_bytes: float
) -> Numeric:
    """Buffers through which linear layers exchange chunks with their neighbours while they compute.

    Each is as large as the gathered activations of a micro-batch: six hold what is gathered (inputs of Q, K, V and of
    up, and gradients), in 8 bits where linear layers take such inputs, and four what is scattered, in 16. All layers
    of a kind share them, and they stay through the step.

    Assumes: the default methods of all four layers; ignores that a scatter in a ring would take almost twice as much.
    Source: [transformer_engine] initialize_ub of module/base.py.
    """
    per_element = 6.0 * gathered_element_bytes + 4.0 * ACTIVATION_BYTES
    return overlap_tp * tokens * model.hidden_size * per_element


def dispatch_buffer_bytes(
    *, tokens: Numeric, hidden_size: float, n_experts: float, ep: Numeric, domain_ranks: Numeric
) -> Numeric:
    """Buffers of a dispatcher that writes into the memory of other ranks, sized for all tokens going to one of them.

    ``tokens`` of a rank, times the ``ep`` ranks, each with its hidden states in 16 bits and an fp32 weight for every
    expert of the ``domain_ranks`` ranks that share a domain of fast links. Both ways share them inside one domain;
    across several each way has its own.

    Source: [zhao2025deepep] HybridEP: ``max_num_of_tokens`` of csrc/hybrid_ep/buffer/intranode.cu.
    """
    ep, domain_ranks = np.asarray(ep, dtype=float), np.asarray(domain_ranks, dtype=float)
    within = np.minimum(ep, domain_ranks)
    each = ACTIVATION_BYTES * hidden_size + 4.0 * n_experts * within / ep
    return np.asarray((ep > 1) * (1.0 + (ep > domain_ranks)) * tokens * ep * each)


def bucket_buffer_bytes(
    params: Numeric,
    *,
    profile: FrameworkProfile,
    bucket_bytes: Numeric,
    overlap: Numeric,
    zero_stage: Numeric = 0.0,
) -> Numeric:
    """Copies of gradients on their way: one bucket, or two where one fills while the other is reduced.

    None where the gradient buffer has the dtype of the reduction and is reduced in place. At ZeRO stage 3 one, of
    trainers that copy anyway; what others have there is in ``fsdp_working_set_bytes``.

    Source: [rajbhandari2020] section 6.2; ``ipg_buffer`` of DeepSpeed's stage_1_and_2.py and stage3.py.
    """
    stage_3 = np.asarray(zero_stage) == 3
    copied = np.where(stage_3, profile.copies_into_buckets, _copies_gradients(profile))
    buckets = 1.0 + np.asarray(overlap) * ~stage_3
    return np.asarray(copied * np.minimum(buckets * bucket_bytes, params * float(profile.grad_reduce_bytes)))


def _copies_gradients(profile: FrameworkProfile) -> bool:
    return profile.copies_into_buckets or profile.grad_bytes != profile.grad_reduce_bytes


def _shard_share(zero_stage: Numeric, from_stage: int, shards: Numeric) -> Array:
    """1, or 1 / shards from ``from_stage`` on."""
    sharded = np.asarray(zero_stage) >= from_stage
    return np.asarray(1.0 - sharded * (1.0 - 1.0 / np.asarray(shards)))
