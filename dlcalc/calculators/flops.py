"""Floating-point operations of a transformer, per token and per op.

A multiply-add is two operations. Only matmuls count: norms, activations, softmax, rotary embeddings and the optimizer
add well under 1 % for models of some size. Training costs three forward passes; recomputation is not model FLOPs and is
added where it happens. ``convention`` is how attention is counted, because sources differ: see ``MfuConvention``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from dlcalc.calculators.kernels import attended_pairs_count
from dlcalc.calculators.params import (
    active_params,
    attention_weight_params,
    mlp_weight_params,
    vocabulary_matrix_params,
)
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recipe import MfuConvention

Numeric = float | NDArray[np.float64]

TRAINING_PASSES = 3.0
"""Forward, gradient of the inputs, gradient of the weights."""


@dataclass(frozen=True)
class TokenFlops:
    """Forward FLOPs of one token over all layers, by op; arrays where the sequence length is one."""

    attention_projections_flops: Numeric
    attention_scores_flops: Numeric
    """Scores and values: the two matmuls that grow with the sequence."""
    dense_mlp_flops: Numeric
    router_flops: Numeric
    routed_experts_flops: Numeric
    shared_experts_flops: Numeric
    head_flops: Numeric
    mtp_flops: Numeric
    """All multi-token-prediction modules: projection, layer and a further pass through the LM head."""

    @property
    def moe_flops(self) -> Numeric:
        """Router and experts of all mixtures."""
        return self.router_flops + self.routed_experts_flops + self.shared_experts_flops

    @property
    def total_flops(self) -> Numeric:
        return sum((getattr(self, term.name) for term in fields(self)), start=0.0)


def forward_token_flops(model: ModelSpec, *, seq_len: Numeric, causal: bool) -> TokenFlops:
    """Forward FLOPs of one token at the average position of a sequence, by op.

    ``causal`` counts only the keys a causal mask leaves, half of them; otherwise every token attends to the whole
    sequence. A windowed layer attends to its window at most, in either case.

    Ignores: everything that is not a matmul.
    Source: [narayanan2021] appendix, equation 3; [chowdhery2022] appendix B.
    """
    n_windowed = sum(model.layer_is_windowed)
    full_layer = attention_scores_flops(model, seq_len=seq_len, causal=causal, window=0.0)
    windowed_layer = attention_scores_flops(model, seq_len=seq_len, causal=causal, window=float(model.sliding_window))
    projections = 2.0 * attention_weight_params(model)
    dense_mlp = 2.0 * mlp_weight_params(model, width=float(model.ffn_hidden_size))
    head = 2.0 * vocabulary_matrix_params(model)

    last_scores = windowed_layer if model.layer_is_windowed[-1] else full_layer
    last_mlp = _moe_layer_flops(model) if model.layer_is_moe[-1] else dense_mlp
    mtp_module = 4.0 * model.hidden_size**2 + projections + last_scores + last_mlp + head
    return TokenFlops(
        attention_projections_flops=model.n_layers * projections,
        attention_scores_flops=n_windowed * windowed_layer + (model.n_layers - n_windowed) * full_layer,
        dense_mlp_flops=model.n_dense_layers * dense_mlp,
        router_flops=model.n_moe_layers * router_flops(model),
        routed_experts_flops=model.n_moe_layers * routed_experts_flops(model),
        shared_experts_flops=model.n_moe_layers * shared_experts_flops(model),
        head_flops=head,
        mtp_flops=model.mtp_layers * mtp_module,
    )


def attention_scores_flops(model: ModelSpec, *, seq_len: Numeric, causal: bool, window: Numeric) -> Numeric:
    """Forward FLOPs of one layer's scores and values, per token: ``2 a (d_qk + d_v)`` for each key attended to.

    ``window = 0`` is full attention.

    Source: [chowdhery2022] appendix B; [deepseek2024v2] section 2.1 for heads whose keys and values differ in width.
    """
    keys = attended_pairs_count(seq_len, seq_len, causal=causal, window=window) / seq_len
    return 2.0 * model.n_heads * (model.qk_head_dim + model.value_head_dim) * keys


def router_flops(model: ModelSpec) -> float:
    """Forward FLOPs of one mixture of experts' router, per token: ``2 h E``.

    Source: [lepikhin2020] section 2.2.
    """
    return 2.0 * model.hidden_size * model.n_experts


def routed_experts_flops(model: ModelSpec) -> float:
    """Forward FLOPs of the experts that one token is sent to, in one layer.

    Assumes: no token is dropped, no expert padded. Source: [fedus2021] section 2.
    """
    return float(2.0 * model.top_k * mlp_weight_params(model, width=float(model.expert_ffn_hidden_size)))


def shared_experts_flops(model: ModelSpec) -> float:
    """Forward FLOPs of the shared experts and their gate, per token, in one layer.

    Source: [deepseek2024v2] section 2.2.
    """
    if not model.n_shared_experts:
        return 0.0
    gate = model.hidden_size if model.shared_expert_gate else 0.0
    return 2.0 * float(mlp_weight_params(model, width=float(model.shared_ffn_hidden_size)) + gate)


def model_flops_per_token_flops(model: ModelSpec, *, seq_len: Numeric, convention: MfuConvention) -> Numeric:
    """Model FLOPs of training on one token, by a convention of MFU.

    ``six_n``: six per active parameter, multi-token prediction not counted. The others: three times the forward
    matmuls.

    Source: [chowdhery2022] appendix B; [narayanan2021] equation 3; [kaplan2020] section 2.1.
    """
    if convention == "six_n":
        return 2.0 * TRAINING_PASSES * active_params(model) * np.ones_like(seq_len, dtype=np.float64)
    causal = convention == "causal_attention"
    return TRAINING_PASSES * forward_token_flops(model, seq_len=seq_len, causal=causal).total_flops


def _moe_layer_flops(model: ModelSpec) -> float:
    return router_flops(model) + routed_experts_flops(model) + shared_experts_flops(model)
