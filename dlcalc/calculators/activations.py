"""Activations, op by op: what autograd keeps of one micro-batch until its backward pass, in bytes per device.

Counted per token that the device works on (``tokens`` = micro-batch x sequence / cp). Inside the matmuls of attention
and MLP a tensor is split over ``tp``; between them (norms, residuals, dropout) it is whole on every rank, unless
sequence parallelism splits it. How many micro-batches are in flight and which layers a stage holds is not known here.

Left out everywhere: statistics of norms (4 or 8 bytes a token), less than 0.1% of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlcalc.calculators.kept import KEPT_BY_MODE, UNFUSED_NORM_BY_MODE
from dlcalc.specs.framework import FrameworkProfile
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recompute import NONE

Numeric = float | NDArray[np.float64]
Array = NDArray[np.float64]

ACTIVATION_BYTES = 2.0
"""Of an element of bf16 or fp16."""

SCORE_BYTES: Mapping[str, float] = {"unfused": 6.0, "megatron_fused": 2.0}
"""Per element of the attention matrix: the softmax's output in bf16, or in fp32 beside the bf16 copy that is multiplied
with V. Fused (flash) kernels keep none."""
SCORE_DROPOUT_BYTES: Mapping[str, float] = {"unfused": 1.0, "megatron_fused": 3.0}
"""A mask, and for the fused softmax its masked copy; unfused, that takes the place of the bf16 copy."""


@dataclass(frozen=True)
class Activations:
    """What a sublayer keeps of one micro-batch, by op: bytes per token, times the tokens."""

    tokens: Array
    per_token_bytes: Mapping[str, Array]

    @property
    def total_bytes(self) -> Array:
        """All ops together."""
        return np.asarray(self.tokens * sum(self.per_token_bytes.values()))

    @property
    def terms(self) -> dict[str, Array]:
        """Bytes of each op."""
        return {op: self.tokens * per_token for op, per_token in self.per_token_bytes.items()}


def attention_activation_bytes(
    model: ModelSpec,
    profile: FrameworkProfile,
    *,
    tokens: Numeric,
    seq_k_tokens: Numeric,
    tp: Numeric,
    sequence_parallel: Numeric,
    input_bytes: float = ACTIVATION_BYTES,
    recompute: ArrayLike = NONE,
) -> Activations:
    """What one attention sublayer keeps for its backward pass.

    In units of tokens x hidden in bf16, for as many KV heads as heads and no fused kernel: norm input 2, input of Q,
    K, V 2, Q, K and V 6, input of the output projection 2, dropout mask 1, and per score 2 (softmax), 1 (mask), 2 (its
    masked output): ``13 s b h + 5 a s^2 b``. Flash attention keeps, instead of scores, its output (which is the
    projection's input) and a logarithm per head in fp32. Latent attention keeps the latents before and after their
    norms besides. An unfused RMSNorm keeps its input in fp32 and the normalized input in bf16, 6 instead of 2.

    ``seq_k_tokens`` is the number of keys a query meets, of which only kernels that store scores keep something.
    ``input_bytes`` is that of a linear layer's kept input: 1 where an fp8 copy is kept.

    Assumes: rotary embeddings keep nothing (their factors need no gradient), and scores are square, not halved by
    causality or a window.
    Ignores: keys and values received from other ranks of context parallelism, if the trainer keeps them.
    Source: [korthikanti2022] section 4.1, equations 1 to 4; [dao2022] section 3; [deepseek2024v2] section 2.1.
    """
    between = between_matmuls_fraction(tp, sequence_parallel)
    flash = profile.attention not in SCORE_BYTES
    copies = input_bytes != ACTIVATION_BYTES
    h, heads = float(model.hidden_size), float(model.n_heads)
    out_width = heads * model.value_head_dim / tp
    query_key_value = "latent_query_key_value" if model.is_mla else "query_key_value"
    core_output = "core_output_beside_copy" if copies else "core_output"
    n_norms = 2 if model.norms_per_layer == 4 else 1
    return _kept(
        profile,
        tokens,
        recompute,
        {
            "layer_input": ACTIVATION_BYTES * h * between,
            **_norms(profile, h * between, n_more=n_norms - 1, n=n_norms),
            "linear_input": input_bytes * h * _linear_input(profile, between),
            "latents": _latent_bytes(model, profile, input_bytes) * between,
            query_key_value: ACTIVATION_BYTES * query_key_value_count(model, tp) + _qk_norm_bytes(model, profile, tp),
            "scores": _score_bytes(profile) * heads / tp * seq_k_tokens,
            core_output: ACTIVATION_BYTES * out_width * (flash or not copies),
            "logsumexp": 4.0 * heads / tp * flash,
            "projection_input": input_bytes * out_width * copies,
            "dropout_mask": h * between * profile.dropout,
            "every_other_matmul": _saved_matmul_bytes(_attention_matmuls(model), 0, tp),
            "scattered_output": _scattered_bytes(h, tp, sequence_parallel),
        },
    )


def mlp_activation_bytes(
    model: ModelSpec,
    profile: FrameworkProfile,
    *,
    tokens: Numeric,
    tp: Numeric,
    sequence_parallel: Numeric,
    input_bytes: float = ACTIVATION_BYTES,
    recompute: ArrayLike = NONE,
) -> Activations:
    """What one dense MLP sublayer keeps for its backward pass.

    Norm input, input of the first matmul, its output (gate and up), input of the second matmul, dropout mask; for an
    ungated MLP of 4 h ``2 + 2 + 8 + 8 + 1 = 21 s b h``. Where the activation function is not fused, the multiplication
    of a gated MLP keeps the activated gate as well.

    Source: [korthikanti2022] section 4.1; [shazeer2020] for the gated form.
    """
    between = between_matmuls_fraction(tp, sequence_parallel)
    h = float(model.hidden_size)
    own_norms = {1: 0, 2: 1, 4: 2}.get(model.norms_per_layer, 1)
    first = len(_attention_matmuls(model)) % 2
    return _kept(
        profile,
        tokens,
        recompute,
        {
            **_norms(profile, h * between, n_more=own_norms, n=own_norms, of="mlp_"),
            "mlp_input": input_bytes * h * _linear_input(profile, between) * (own_norms > 0),
            **_mlp_bytes(model, profile, model.ffn_hidden_size / tp, input_bytes),
            "dropout_mask": h * between * profile.dropout,
            "every_other_matmul": _saved_matmul_bytes(_mlp_matmuls(model, model.ffn_hidden_size), first, tp),
            "scattered_output": _scattered_bytes(h, tp, sequence_parallel),
        },
    )


def moe_activation_bytes(
    model: ModelSpec,
    profile: FrameworkProfile,
    *,
    tokens: Numeric,
    tp: Numeric,
    etp: Numeric,
    sequence_parallel: Numeric,
    ep: Numeric = 1.0,
    input_bytes: float = ACTIVATION_BYTES,
    recompute: ArrayLike = NONE,
    routed_factor: float = 1.0,
) -> Activations:
    """What one mixture-of-experts sublayer keeps for its backward pass.

    Norm input and output, the router's scores, choice and weights (9 bytes per expert), and of each token and each of
    its ``top_k`` experts: the expert's input, gate and up, and the input of its second matmul. All ranks of ``etp``
    work on the same tokens, each on its part of the width. Where the activation is not fused (or the trainer does so
    anyway), the expert's output is kept for the gradient of its weight; fused, the weight is multiplied in there.
    Experts with biases clamp gate and up, and keep them clamped as well. Recomputation op by op keeps what ranks of
    ``ep`` exchanged, out and back.

    Assumes: routing in balance; ``routed_factor`` is the tokens really computed over that (capacity, padding,
    imbalance).
    Ignores: buffers of the exchange, which live only through it.
    Source: [derived] operand by operand, as for the dense MLP; [fedus2021] section 2.2 for the capacity.
    """
    between = between_matmuls_fraction(tp, sequence_parallel)
    h = float(model.hidden_size)
    copies = input_bytes != ACTIVATION_BYTES
    routed = model.top_k * routed_factor * between
    experts = _mlp_bytes(model, profile, model.expert_ffn_hidden_size * routed, input_bytes)
    shared = _mlp_bytes(model, profile, model.shared_ffn_hidden_size / tp, input_bytes)
    own_norms = {1: 0, 2: 1, 4: 2}.get(model.norms_per_layer, 1)
    weighted = not profile.fused_activation or profile.weights_expert_outputs
    return _kept(
        profile,
        tokens,
        recompute,
        {
            **_norms(profile, h * between, n_more=own_norms, n=own_norms),
            "linear_input": ACTIVATION_BYTES * h * between,
            "shared_input": (copies and model.n_shared_experts > 0) * input_bytes * h * between,
            "routing": 9.0 * model.n_experts * between,
            "expert_input": input_bytes * h * routed * etp,
            "expert_gate_up": experts["gate_up"] + shared["gate_up"],
            "expert_activation": experts["activation"] + shared["activation"] + model.expert_bias * experts["gate_up"],
            "expert_output": ACTIVATION_BYTES * h * routed * etp * weighted,
            "dropout_mask": h * between * profile.dropout,
            "scattered_output": _scattered_bytes(h, tp, sequence_parallel),
            "exchanged": 2.0 * ACTIVATION_BYTES * h * routed * (np.asarray(ep) > 1),
        },
    )


def embedding_activation_bytes(
    model: ModelSpec, profile: FrameworkProfile, *, tokens: Numeric, tp: Numeric, sequence_parallel: Numeric
) -> Numeric:
    """What the embedding keeps of each micro-batch: token numbers, a dropout mask, the input of its norm.

    Its output is the first layer's input and counted there.
    Source: [korthikanti2022] section 4.3.
    """
    norm = ACTIVATION_BYTES * model.embedding_norm
    per_token = 8.0 + (profile.dropout + norm) * model.hidden_size * between_matmuls_fraction(tp, sequence_parallel)
    return tokens * per_token


def head_activation_bytes(
    model: ModelSpec, profile: FrameworkProfile, *, tokens: Numeric, tp: Numeric, sequence_parallel: Numeric
) -> Numeric:
    """What the final norm and the LM head keep of each micro-batch: their inputs. Logits are counted apart.

    Source: [korthikanti2022] section 4.3.
    """
    between = between_matmuls_fraction(tp, sequence_parallel)
    norm_bytes = _norm_bytes(profile)
    return tokens * model.hidden_size * (norm_bytes * between + ACTIVATION_BYTES * _linear_input(profile, between))


# --- shapes that other terms of memory share -------------------------------------------------------------------------


def between_matmuls_fraction(tp: Numeric, sequence_parallel: Numeric) -> Array:
    """Share of the tokens that a rank has between the matmuls: all of them, or 1 / tp.

    Source: [korthikanti2022] section 4.2.2.
    """
    return np.asarray(1.0 - sequence_parallel * (1.0 - 1.0 / np.asarray(tp)))


def query_key_value_count(model: ModelSpec, tp: Numeric) -> Numeric:
    """Elements per token of Q, K and V on one rank; ranks beyond the number of KV heads hold copies.

    Source: [korthikanti2022] section 4.1; [deepseek2024v2] section 2.1 for latent attention.
    """
    query = model.n_heads * model.qk_head_dim / tp
    if model.is_mla:
        return query + model.n_heads * (model.qk_head_dim + model.value_head_dim) / tp
    return query + model.n_kv_heads * 2.0 * model.head_dim / np.minimum(tp, model.n_kv_heads)


# --- parts -----------------------------------------------------------------------------------------------------------


def _kept(
    profile: FrameworkProfile, tokens: Numeric, recompute: ArrayLike, per_token_bytes: Mapping[str, Numeric]
) -> Activations:
    """The share of each op that the recompute mode leaves; ops that the sublayer does not have are dropped."""
    code = np.asarray(recompute, dtype=np.intp)
    table = KEPT_BY_MODE if profile.fused_norm else {**KEPT_BY_MODE, **UNFUSED_NORM_BY_MODE}
    used = {op: size for op, size in per_token_bytes.items() if np.any(size)}
    kept = {op: size * np.take(table[op], code) for op, size in used.items()}
    return Activations(np.asarray(tokens), {op: np.asarray(size) for op, size in kept.items()})


def _linear_input(profile: FrameworkProfile, between: Array) -> Numeric:
    """Share of the tokens whose input a linear layer keeps: gathered again for the backward pass, or kept gathered."""
    return 1.0 if profile.keeps_gathered_inputs else between


def _norms(profile: FrameworkProfile, width: Numeric, *, n: int, n_more: int, of: str = "") -> dict[str, Numeric]:
    """Inputs of ``n_more`` norms, the layer's own input not counted, and what ``n`` unfused norms keep instead."""
    return {
        f"{of}norm_input": ACTIVATION_BYTES * width * n_more,
        f"{of}norm_intermediates": 0.0 if profile.fused_norm else _norm_bytes(profile) * width * n,
    }


def _norm_bytes(profile: FrameworkProfile) -> float:
    """Per element that goes through a norm: its input in bf16, or each fp32 copy of it beside the normalized input."""
    return ACTIVATION_BYTES if profile.fused_norm else 4.0 * profile.norm_casts + ACTIVATION_BYTES


def _latent_bytes(model: ModelSpec, profile: FrameworkProfile, input_bytes: float) -> float:
    """Both latents before and after their norms, and the shared rotary key."""
    normed = float(model.q_lora_rank + model.kv_lora_rank) * model.is_mla
    return normed * (_norm_bytes(profile) + input_bytes) + ACTIVATION_BYTES * model.qk_rope_head_dim * model.is_mla


def _qk_norm_bytes(model: ModelSpec, profile: FrameworkProfile, tp: Numeric) -> Numeric:
    """Q and K before their norms."""
    if not model.qk_norm or model.is_mla:
        return 0.0
    key = model.n_kv_heads * model.head_dim / np.minimum(tp, model.n_kv_heads)
    return _norm_bytes(profile) * (model.n_heads * model.head_dim / tp + key)


def _score_bytes(profile: FrameworkProfile) -> float:
    kernel = profile.attention
    return SCORE_BYTES.get(kernel, 0.0) + profile.drops_scores * SCORE_DROPOUT_BYTES.get(kernel, 0.0)


def _mlp_bytes(model: ModelSpec, profile: FrameworkProfile, width: Numeric, input_bytes: float) -> dict[str, Numeric]:
    """Output of the first matmul and input of the second, per token, for an MLP of ``width``."""
    gates = 2.0 if model.gated_mlp else 1.0
    activated_gate = ACTIVATION_BYTES * (model.gated_mlp and not profile.fused_activation)
    return {"gate_up": ACTIVATION_BYTES * gates * width, "activation": (input_bytes + activated_gate) * width}


def _attention_matmuls(model: ModelSpec) -> Sequence[tuple[float, bool]]:
    """Output widths of the projections in the order they run, and whether tp divides them."""
    heads, h = model.n_heads, float(model.hidden_size)
    if not model.is_mla:
        key_value = (float(model.n_kv_heads * model.head_dim), True)
        return [(float(heads * model.head_dim), True), key_value, key_value, (h, False)]
    query = (float(heads * model.qk_head_dim), True)
    down = [(float(model.q_lora_rank), False), query] if model.q_lora_rank else [query]
    key_value_up = float(heads * (model.qk_nope_head_dim + model.value_head_dim))
    return [*down, (float(model.kv_lora_rank + model.qk_rope_head_dim), False), (key_value_up, True), (h, False)]


def _mlp_matmuls(model: ModelSpec, width: float) -> Sequence[tuple[float, bool]]:
    return [(float(width), True)] * (2 if model.gated_mlp else 1) + [(float(model.hidden_size), False)]


def _saved_matmul_bytes(matmuls: Sequence[tuple[float, bool]], first: int, tp: Numeric) -> Numeric:
    """Outputs of every other matmul, beginning with the ``first``."""
    divided = sum(width for width, splits in matmuls[first::2] if splits)
    whole = sum(width for width, splits in matmuls[first::2] if not splits)
    return ACTIVATION_BYTES * (divided / np.asarray(tp) + whole)


def _scattered_bytes(h: float, tp: Numeric, sequence_parallel: Numeric) -> Array:
    """A sublayer's output after its reduce-scatter, which op_sac keeps."""
    return np.asarray(ACTIVATION_BYTES * h / np.asarray(tp) * sequence_parallel)
