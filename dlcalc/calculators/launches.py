"""How many kernels a sublayer launches in its forward pass: what the host has to do, however small the work.

A layer is never faster than its launches, unless they are replayed from a graph. Counts are of PyTorch operations that
reach the device, from reading the trainers' layers; a collective counts once. The backward pass launches twice as many.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.model import ModelSpec

Numeric = float | NDArray[np.float64]

BACKWARD_FACTOR = 2.0
"""Launches of a backward pass over those of the forward pass: two matmuls for one, a gradient for each operand."""

CORE = {"unfused": 10.0, "megatron_fused": 6.0}
"""Of the attention core where scores are stored: two matmuls, transposes, scale, mask, softmax, dropout; fused kernels
3 with their reshapes."""
CLAMPED = 5.0
"""Of experts with biases and a clamped gate, however many: two clamps, two concatenations, a cast."""
ROUTER, COUNTS = 6.0, 2.0
ROUTING = ROUTER + COUNTS + 8.0
"""Router, counts and offsets, permutation and its inverse (4), sorting by local expert and back (4)."""


def attention_launches_count(
    model: ModelSpec,
    profile: FrameworkProfile,
    *,
    n_matmuls: float,
    collectives: Numeric,
    casts: float,
) -> Numeric:
    """Of an attention sublayer: projections, norms, rotary embedding, core, residual, reshapes, collectives.

    ``casts`` is the number of quantizing kernels per matmul.
    Source: [derived] operations of each trainer's layer, one by one.
    """
    norm = 1.0 if profile.fused_norm else 6.0
    norms = norm * (model.norms_per_layer / 2 + 2 * model.qk_norm)
    rotation = 6.0 if profile.rotates_complex_numbers else 2.0 if profile.fused_rope else 10.0
    rope = 0.0 if model.learned_positions or model.alibi else rotation
    residual = 1.0 if profile.fused_residual else 3.0
    reshapes = 3.0
    return (
        n_matmuls * (1.0 + casts) + norms + rope + CORE.get(profile.attention, 3.0) + residual + reshapes + collectives
    )


def mlp_launches_count(model: ModelSpec, profile: FrameworkProfile, *, collectives: Numeric, casts: float) -> Numeric:
    """Of a dense MLP sublayer: two matmuls, activation, norm, residual, a reshape, collectives.

    Source: [derived] operations of each trainer's layer, one by one.
    """
    norms = (1.0 if profile.fused_norm else 6.0) * model.norms_per_layer / 2
    activation = 1.0 if profile.fused_activation else 3.0
    residual = 1.0 if profile.fused_residual else 3.0
    return 2.0 * (1.0 + casts) + activation + norms + residual + 1.0 + collectives


def moe_launches_count(
    model: ModelSpec,
    profile: FrameworkProfile,
    *,
    local_experts: Numeric,
    collectives: Numeric,
    casts: float,
) -> Numeric:
    """Of a mixture of experts: routing, two matmuls per local expert, activation, norm, residual, the rest.

    The rest is shared experts and collectives. A grouped matmul of a training library issues one matmul per expert on
    a few streams, and quantizes each expert's tokens apart; so it adds each expert's bias.

    Source: [derived] operations of each trainer's layer, one by one.
    """
    norms = (1.0 if profile.fused_norm else 6.0) * model.norms_per_layer / 2
    residual = 1.0 if profile.fused_residual else 3.0
    shared = 4.0 * bool(model.shared_ffn_hidden_size)
    biases = (CLAMPED + 2.0 * local_experts) * bool(model.expert_bias)
    experts = 2.0 * local_experts * (1.0 + casts) + biases
    return ROUTING + experts + 1.0 + norms + residual + shared + collectives


def replayed_launches_fraction(
    model: ModelSpec, profile: FrameworkProfile, modules: Collection[str], *, local_experts: float, casts: float
) -> float:
    """Share of a layer's launches that belong to ``modules`` (attn, mlp, moe_router, moe_preprocess), never all of it.

    A graph that holds only these leaves the rest to the host: of a layer with many local experts, most.

    Assumes: without tensor parallelism; a model with experts has them in every layer.
    Source: [derived] the counts above.
    """
    attention = float(attention_launches_count(model, profile, n_matmuls=2.0, collectives=0.0, casts=casts))
    if model.is_moe:
        exchanges = 2.0 * (local_experts < model.n_experts)
        experts = float(
            moe_launches_count(model, profile, local_experts=local_experts, collectives=exchanges, casts=casts)
        )
        own = {"attn": attention, "moe_router": ROUTER, "moe_preprocess": COUNTS}
    else:
        experts = float(mlp_launches_count(model, profile, collectives=0.0, casts=casts))
        own = {"attn": attention, "mlp": experts}
    found = experts if "moe" in modules and model.is_moe else 0.0
    found += sum(own.get(module, 0.0) for module in modules if not (found and module.startswith("moe")))
    return min(0.99, found / (attention + experts))
