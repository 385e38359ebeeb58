"""Bytes that memory-bound operations move through device memory, and how many kernels do it.

Each function counts reads and writes of whole tensors, operand by operand, in the precision the trainer uses. Elements
are per device and per micro-batch. Time is bytes over achieved bandwidth (``kernels.memory_bound_time_s``); caches
between kernels are ignored, which overstates the time of tensors much smaller than the last-level cache.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.hardware import Precision
from dlcalc.specs.recipe import Scaling

Array = NDArray[np.float64]


class Traffic(NamedTuple):
    """Bytes per element of a forward and a backward pass."""

    forward: float
    backward: float


NORM = {True: Traffic(4, 8), False: Traffic(36, 92)}
"""Fused: read x, write y; backward reads x and dy, writes dx, and reads x once more for the weight's gradient. Unfused
(PyTorch operations on an fp32 copy): cast (6), square (8), mean (4), scale (8), cast (6), weight (4). Backward: weight
(4) and its gradient (8), cast (6), scale (8) and its gradient (16), mean (4), square (28: a power, a product with the
exponent, one with the gradient), both branches added (12), cast (6)."""
CAST_AGAIN_BYTES = 6.0
"""Per element of an unfused norm, forward, where the input is cast once for the mean square and once for the scaling;
backward two casts and a sum in 16 bits take what one cast and a sum in fp32 do."""
RESIDUAL = {True: Traffic(6, 6), False: Traffic(10, 10)}
"""bias + dropout + add in one kernel: two reads, one write; unfused adds one more pass. Backward: one add of two
gradients."""
ROPE = {True: Traffic(4, 4), False: Traffic(18, 18)}
"""One pass, or rotate-half (4), two products (4 each) and a sum (6)."""
COMPLEX_ROPE = Traffic(20, 20)
"""A cast to fp32 (6), a product of complex numbers (8), a cast back (6)."""
LATENT_SPLIT = {True: (0.0, 4.0), False: (4.0, 4.0)}
"""Latent attention, per element of Q and of K and V: what comes out of the up-projections is cut apart, rotated in part
and joined to operands of attention, a read and a write; one fused kernel leaves Q where it is."""
GATED = {True: Traffic(6, 10), False: Traffic(10, 16)}
"""SwiGLU per element of the intermediate: read gate and up, write one; backward reads three, writes two."""
UNGATED = {True: Traffic(4, 6), False: Traffic(8, 10)}
"""bias + GELU."""
DROPOUT_MASK_BYTES = 1.0
UNVECTORIZED_COST = 2.0
"""A byte of a kernel that reads a part of each row, broadcasts or mixes precisions, over one of a contiguous pass: it
works on one element at a time. Not measured: between 1 and 3 the runs of gpt-oss, which alone have such kernels, do
not tell."""
CLAMP = Traffic(8 * UNVECTORIZED_COST + 8, 22 * UNVECTORIZED_COST + 8)
"""What a clamped gate moves before its fused activation: two clamps of half a row each (8) and their concatenation (8);
backward the mask of two bounds (14), of one (8), and the concatenation (8)."""
EXPERT_BIAS = Traffic(14 * UNVECTORIZED_COST + 14, 16 * UNVECTORIZED_COST + 24)
"""Per element that an expert puts out, its bias times the token's weight in fp32, expert by expert: the product (4) and
the sum (10), both of mixed precisions, a concatenation (8), a cast (6); backward two casts (12), a concatenation (4),
and for the gradients of bias and weight a broadcast product (8) and a sum (4) each."""
ACCUMULATE_BYTES = {2: 8.0, 4: 12.0}
"""Per weight, where its gradient is added to its buffer (of so many bytes) in a pass of its own: written, read,
added."""
WIDEN_BYTES = 6.0
"""Per weight, where a 16-bit gradient is first copied to fp32: the copy written and read, for the 16-bit read."""
GATHER_COPY_BYTES, SCATTER_COPY_BYTES = 4.0, 8.0
"""Per weight, where ZeRO 3 copies gathered weights out of (or gradients into) its buffers."""
PERMUTE = {False: Traffic(14, 14), True: Traffic(6, 6)}
"""Routed tokens are gathered (4), sorted by local expert on arrival (4), sorted back (4), and summed with their weights
(2 and a share). With a dispatcher that knows nodes and ranks they are copied for the experts of a rank as they arrive
(4), and summed before they leave (2 and a share)."""
PAD = Traffic(8, 8)
"""Transformer Engine copies each expert's tokens into a buffer padded for 8 or 4 bits (4) and its outputs back (4), but
where the dispatcher pads."""
GATHERED_COST = 4.0 / 3.0
"""A byte of rows gathered by index over one of a contiguous pass: 0.50 and 0.51 of the peak bandwidth against 0.67 in
[moorethreads2025]. One device's kernels; taken for all."""
ROUTER = Traffic(24, 24)
"""Scores in fp32: cast, softmax or sigmoid, top-k, mask, auxiliary loss."""
LOSS = {
    "fused": Traffic(6, 4),
    "parallel": Traffic(38, 14),
    **dict.fromkeys(("gathered", "sharded", "chunked"), Traffic(26, 18)),
}
"""Per logit. fused: read for the softmax (2), read and overwritten with the gradient (4); backward the gradient times
that of the loss (4). parallel: cast to fp32 (6), maximum (4), subtract (8), exponential (8), sum (4), divide (8);
backward product (8) and cast (6). the others: cast (6), log-softmax (12), gather (8); backward (12) and cast (6)."""
EMBEDDING = Traffic(4, 10)

CAST_BYTES: dict[Precision, float] = {"fp8": 6.0, "mxfp8": 4.5, "nvfp4": 7.0}
"""Per element quantized. fp8 with current scaling: a pass for the maximum (2), read (2), write both orientations (2).
mxfp8: read (2), write both orientations with scales (2.1), swizzle scales. nvfp4: maximum (2), read (2), Hadamard
transform and both orientations (3)."""
DELAYED_CAST_BYTES = 4.0
"""fp8 with the scale of steps before: read (2), write both orientations (2), the maximum taken meanwhile."""


def norm_traffic_bytes(elements: Array, *, profile: FrameworkProfile) -> tuple[Array, Array]:
    """Forward and backward bytes of one norm.

    Source: [derived] operand by operand, see ``NORM``.
    """
    per = NORM[profile.fused_norm]
    again = 0.0 if profile.fused_norm else CAST_AGAIN_BYTES * (profile.norm_casts - 1)
    return elements * (per.forward + again), elements * per.backward


def residual_traffic_bytes(elements: Array, *, profile: FrameworkProfile) -> tuple[Array, Array]:
    """Forward and backward bytes of bias, dropout and the residual sum.

    Source: [derived] operand by operand, see ``RESIDUAL``.
    """
    per = RESIDUAL[profile.fused_residual]
    mask = DROPOUT_MASK_BYTES if profile.dropout else 0.0
    return elements * (per.forward + mask), elements * (per.backward + mask)


def rope_traffic_bytes(elements: Array, *, profile: FrameworkProfile) -> tuple[Array, Array]:
    """Forward and backward bytes of rotating queries and keys.

    Source: [derived] operand by operand, see ``ROPE`` and ``COMPLEX_ROPE``.
    """
    per = COMPLEX_ROPE if profile.rotates_complex_numbers else ROPE[profile.fused_rope]
    return elements * per.forward, elements * per.backward


def latent_split_traffic_bytes(query_elements: Array, key_value_elements: Array, *, profile: FrameworkProfile) -> Array:
    """Bytes of making Q, K and V out of the up-projections of latent attention; the backward pass moves as many.

    Source: [deepseek2024v2] section 2.1 for the parts; [derived] operand by operand, see ``LATENT_SPLIT``.
    """
    query, key_value = LATENT_SPLIT[profile.fused_rope and not profile.rotates_complex_numbers]
    return query_elements * query + key_value_elements * key_value


def activation_traffic_bytes(elements: Array, *, gated: bool, profile: FrameworkProfile) -> tuple[Array, Array]:
    """Forward and backward bytes of the MLP's non-linearity; ``elements`` of its output.

    Source: [derived] operand by operand, see ``GATED`` and ``UNGATED``.
    """
    per = (GATED if gated else UNGATED)[profile.fused_activation]
    return elements * per.forward, elements * per.backward


def clamp_traffic_bytes(elements: Array) -> tuple[Array, Array]:
    """Forward and backward bytes of clamping both halves of a gate before its activation; ``elements`` of its output.

    Source: [megatron_lm] ``weighted_bias_quick_geglu_impl``; [derived] operand by operand, see ``CLAMP``.
    """
    return elements * CLAMP.forward, elements * CLAMP.backward


def expert_bias_traffic_bytes(elements: Array) -> tuple[Array, Array]:
    """Forward and backward bytes of the bias of the experts' outputs; ``elements`` of these.

    Source: [megatron_lm] ``TEGroupedMLP._apply_bias``; [derived] operand by operand, see ``EXPERT_BIAS``.
    """
    return elements * EXPERT_BIAS.forward, elements * EXPERT_BIAS.backward


def accumulation_traffic_bytes(params: Array, *, profile: FrameworkProfile) -> Array:
    """Bytes of adding the gradients of ``params`` weights to their buffers, once a micro-batch.

    Source: [derived] operand by operand, see ``ACCUMULATE_BYTES``.
    """
    if profile.fused_grad_accumulation:
        return 0.0 * np.asarray(params)
    widens = profile.copies_widened_gradients and profile.grad_bytes >= 4
    return params * (ACCUMULATE_BYTES[min(profile.grad_bytes, 4)] + widens * WIDEN_BYTES)


def sharding_copy_traffic_bytes(params: Array, *, profile: FrameworkProfile, gathers: Array, scatters: Array) -> Array:
    """Bytes that ZeRO 3 copies between its communication buffers and ``params`` weights in a step.

    None where the program is compiled whole, and weights are used where they arrive.

    Source: [zhao2023fsdp] section 4: flat parameters and their views; [derived] a read and a write each, gradients
    widened.
    """
    copies = float(profile.copies_shards)
    return params * (copies * (gathers * GATHER_COPY_BYTES + scatters * SCATTER_COPY_BYTES))


def routing_traffic_bytes(
    tokens: Array,
    routed_elements: Array,
    *,
    n_experts: int,
    ep: Array,
    profile: FrameworkProfile,
    precision: Precision,
) -> tuple[Array, Array]:
    """Forward and backward bytes of scoring, permuting and combining; ``routed_elements`` = routed tokens x hidden.

    A dispatcher that knows nodes and ranks permutes and pads as it sends, so not where ``ep`` is 1. Rows that are
    gathered count :data:`GATHERED_COST` times.

    Ignores: the padding itself, a few per cent of the routed elements.
    Source: [derived] operand by operand, see ``PERMUTE``, ``PAD`` and ``ROUTER``; [moorethreads2025] for gathered rows.
    """
    scores, gathered = tokens * n_experts, routed_elements * GATHERED_COST
    dispatched = profile.dispatches_once_per_node & (np.asarray(ep) > 1.0)
    pads = (profile.pads_experts_apart and precision in CAST_BYTES) & ~dispatched
    permute = [np.where(dispatched, there, here) for there, here in zip(PERMUTE[True], PERMUTE[False], strict=True)]
    forward = scores * ROUTER.forward + gathered * permute[0] + routed_elements * (pads * PAD.forward)
    backward = scores * ROUTER.backward + gathered * permute[1] + routed_elements * (pads * PAD.backward)
    return forward, backward


def loss_traffic_bytes(logits: Array, *, profile: FrameworkProfile) -> tuple[Array, Array]:
    """Forward and backward bytes of the cross-entropy; ``logits`` on this device.

    Source: [derived] operand by operand, see ``LOSS``.
    """
    per = LOSS[profile.cross_entropy]
    return logits * per.forward, logits * per.backward


def embedding_traffic_bytes(elements: Array) -> tuple[Array, Array]:
    """Forward and backward bytes of looking up (and scattering the gradient of) ``elements`` = tokens x hidden.

    Source: [derived] operand by operand, see ``EMBEDDING``.
    """
    return elements * EMBEDDING.forward, elements * EMBEDDING.backward


def cast_traffic_bytes(elements: Array, *, precision: Precision, scaling: Scaling = "tensor") -> Array:
    """Bytes of quantizing ``elements`` for a low-precision matmul; zero at 16 bits and above.

    Ignores: casts fused into the norm or activation before them.
    Source: [derived] operand by operand, see ``CAST_BYTES``.
    """
    if precision == "fp8" and scaling != "tensor":  # which alone looks for the largest first
        return elements * DELAYED_CAST_BYTES
    return elements * CAST_BYTES.get(precision, 0.0)


def optimizer_traffic_bytes(params: Array, *, profile: FrameworkProfile) -> Array:
    """Bytes of one Adam step over ``params`` elements on this device.

    Gradient read (and read once more for its norm), moments and master weights read and written, 16-bit weight written.

    Source: [derived] operand by operand.
    """
    state = profile.master_weight_bytes + profile.optimizer_state_bytes
    return params * (2.0 * profile.grad_bytes + 2.0 * state + 2.0)
