"""Parameter counts of a transformer, exactly, in elements.

A layer is an attention sublayer and an MLP sublayer; each counts its own norms. ``tp``, ``ep`` and ``etp`` give what
one device holds of it, as whole numbers or as arrays; 1 (the default) gives the sublayer itself. Biases and norms that
every rank holds are not divided. Which layers a pipeline stage holds, how ZeRO shards them and how many bytes an
element takes is not known here.

Multi-token-prediction modules are counted by the ``mtp_*`` functions alone: no published model size includes them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dlcalc.specs.model import ModelSpec

Numeric = float | NDArray[np.float64]


# ---- attention


def attention_weight_params(model: ModelSpec, *, tp: Numeric = 1.0) -> Numeric:
    """Matmul weights of one attention sublayer: all of its projections, no bias and no norm.

    Ordinary: ``h (a d) / tp`` for Q and for the output, ``h (kv d) / min(tp, kv)`` for K and for V. Latent: what maps
    into the latent space is on every rank, what maps from it into heads, and the output, is divided by tp.

    Assumes: a KV head is never split; ranks beyond the number of KV heads hold copies.
    Source: [ainslie2023] section 2; [deepseek2024v2] section 2.1; [megatron_lm] GPTModel and MLASelfAttention.
    """
    h, heads = model.hidden_size, model.n_heads
    if not model.is_mla:
        query_and_output = 2.0 * h * heads * model.head_dim
        return query_and_output / tp + 2.0 * h * model.n_kv_heads * model.head_dim / _kv_ranks(model, tp)
    down = h * (model.q_lora_rank + model.kv_lora_rank + model.qk_rope_head_dim)
    query_up = (model.q_lora_rank or h) * heads * model.qk_head_dim
    key_value_up = model.kv_lora_rank * heads * (model.qk_nope_head_dim + model.v_head_dim)
    output = heads * model.v_head_dim * h
    return float(down) + float(query_up + key_value_up + output) / tp


def attention_bias_params(model: ModelSpec, *, tp: Numeric = 1.0) -> Numeric:
    """Biases and sink logits of one attention sublayer; the output's bias is on every rank.

    Source: [megatron_lm] row-parallel layers keep their bias whole, column-parallel ones divide it.
    """
    sinks = model.n_heads * float(model.attention_sinks) / tp
    on_output = float(model.attention_bias or model.linear_bias)
    if model.is_mla:
        latent = model.q_lora_rank + model.kv_lora_rank + model.qk_rope_head_dim
        return sinks + on_output * (latent + model.hidden_size)
    on_input = float(model.qkv_bias or model.attention_bias or model.linear_bias)
    query = model.n_heads * model.head_dim / tp
    key_value = 2.0 * model.n_kv_heads * model.head_dim / _kv_ranks(model, tp)
    return sinks + on_input * (query + key_value) + on_output * model.hidden_size


def attention_norm_params(model: ModelSpec) -> float:
    """Norms of one attention sublayer: before it, after it (where there are four a layer), of Q and K, of the latents.

    Source: [deepseek2024v2] section 2.1 for the latents' norms; [derived] one gain (and bias) per normalized element.
    """
    outer = (2 if model.norms_per_layer == 4 else 1) * norm_params(model)
    if model.is_mla:
        return outer + model.q_lora_rank + model.kv_lora_rank
    return outer + (2.0 * model.head_dim if model.qk_norm else 0.0)


def attention_sublayer_params(model: ModelSpec, *, tp: Numeric = 1.0) -> Numeric:
    """Everything of one attention sublayer that one of ``tp`` ranks holds, its norms included.

    Source: [narayanan2021] section 2.3 for the split of the heads; the parts say the rest.
    """
    weights_and_biases = attention_weight_params(model, tp=tp) + attention_bias_params(model, tp=tp)
    return weights_and_biases + attention_norm_params(model)


def _kv_ranks(model: ModelSpec, tp: Numeric) -> Numeric:
    """Ranks over which the KV heads are divided; the others hold copies."""
    return np.minimum(tp, float(model.n_kv_heads))


# ---- MLP


def mlp_weight_params(model: ModelSpec, *, width: float, tp: Numeric = 1.0) -> Numeric:
    """Matmul weights of an MLP ``width`` wide: up, down and, where it is gated, gate: ``(2 or 3) h width / tp``.

    Source: [shazeer2020] equation 6.
    """
    return (3.0 if model.gated_mlp else 2.0) * model.hidden_size * width / tp


def mlp_bias_params(model: ModelSpec, *, width: float, tp: Numeric = 1.0) -> Numeric:
    """Biases of an MLP ``width`` wide that has them: those of up and gate divided by tp, that of down whole.

    Source: [megatron_lm] row-parallel layers keep their bias whole, column-parallel ones divide it.
    """
    return (2.0 if model.gated_mlp else 1.0) * width / tp + model.hidden_size


def mlp_norm_params(model: ModelSpec) -> float:
    """Norms of one MLP sublayer, dense or not: none where the layer's one norm is shared with attention.

    Source: [derived] norms_per_layer of 1, 2 and 4 leave 0, 1 and 2 to the MLP.
    """
    return (model.norms_per_layer // 2) * norm_params(model)


def dense_mlp_sublayer_params(model: ModelSpec, *, tp: Numeric = 1.0) -> Numeric:
    """Everything of one dense MLP sublayer that one of ``tp`` ranks holds, its norms included.

    Source: [narayanan2021] section 2.3.
    """
    width = float(model.ffn_hidden_size)
    has_bias = float(model.mlp_bias or model.linear_bias)
    matmuls = mlp_weight_params(model, width=width, tp=tp) + has_bias * mlp_bias_params(model, width=width, tp=tp)
    return matmuls + mlp_norm_params(model)


def moe_router_params(model: ModelSpec) -> float:
    """Router of one mixture of experts, on every rank: ``h E`` and, if it has one, a bias per expert.

    Ignores: correction biases that balance the load (DeepSeek-V3), which no gradient trains.
    Source: [lepikhin2020] section 2.2.
    """
    return float(model.n_experts * (model.hidden_size + model.router_bias))


def moe_expert_params(model: ModelSpec, *, ep: Numeric = 1.0, etp: Numeric = 1.0) -> Numeric:
    """Routed experts of one mixture of experts that one device holds: ``E / ep`` of them, each divided by ``etp``.

    Source: [fedus2021] section 2; [megatron_lm] expert model and expert tensor parallelism.
    """
    width = float(model.expert_ffn_hidden_size)
    has_bias = float(model.expert_bias)
    one_expert = mlp_weight_params(model, width=width, tp=etp) + has_bias * mlp_bias_params(model, width=width, tp=etp)
    return model.n_experts / ep * one_expert


def moe_shared_expert_params(model: ModelSpec, *, tp: Numeric = 1.0) -> Numeric:
    """Shared experts of one mixture of experts, as one MLP as wide as all of them, and their gate.

    Source: [deepseek2024v2] section 2.2; [megatron_lm] shared experts are divided by tp, not by etp.
    """
    if not model.n_shared_experts:
        return 0.0 * np.asarray(tp)
    width = float(model.shared_ffn_hidden_size)
    has_bias = float(model.mlp_bias or model.linear_bias)
    matmuls = mlp_weight_params(model, width=width, tp=tp) + has_bias * mlp_bias_params(model, width=width, tp=tp)
    return matmuls + (model.hidden_size if model.shared_expert_gate else 0.0)


def moe_non_expert_params(model: ModelSpec, *, tp: Numeric = 1.0) -> Numeric:
    """What one device holds of a mixture of experts besides the routed experts: norms, router, shared experts.

    Source: [derived] the sum of its parts.
    """
    return mlp_norm_params(model) + moe_router_params(model) + moe_shared_expert_params(model, tp=tp)


def moe_sublayer_params(model: ModelSpec, *, tp: Numeric = 1.0, ep: Numeric = 1.0, etp: Numeric = 1.0) -> Numeric:
    """Everything of one mixture-of-experts sublayer that one device holds.

    Source: [derived] the sum of its parts.
    """
    return moe_non_expert_params(model, tp=tp) + moe_expert_params(model, ep=ep, etp=etp)


def largest_matrix_params(model: ModelSpec, *, tp: Numeric = 1.0, ep: Numeric = 1.0, etp: Numeric = 1.0) -> Numeric:
    """The largest matrix of a layer that one device computes with: of queries, an MLP, or all its experts together.

    Source: [derived] ``h a d / tp``, ``h f / tp``, ``E / ep h f / etp``.
    """
    dense = 0 if model.is_moe and all(model.layer_is_moe) else model.ffn_hidden_size
    widest = max(model.n_heads * model.qk_head_dim, dense, model.shared_ffn_hidden_size)
    experts = model.n_experts * model.expert_ffn_hidden_size / (np.asarray(ep) * np.asarray(etp))
    return np.asarray(model.hidden_size * np.maximum(widest / np.asarray(tp), experts))


# ---- outside the layers


def norm_params(model: ModelSpec) -> float:
    """One norm over the hidden size: a gain and, for most LayerNorms, a bias.

    Source: [derived] one of each per element.
    """
    has_bias = model.norm == "layernorm" if model.norm_bias is None else model.norm_bias
    return model.hidden_size * (2.0 if has_bias else 1.0)


def vocabulary_matrix_params(model: ModelSpec, *, tp: Numeric = 1.0, vocab_multiple: float = 1.0) -> Numeric:
    """One device's rows of a vocabulary x hidden matrix.

    The vocabulary is padded to a multiple of ``vocab_multiple * tp``. Megatron's default is 128; 1 pads only as far
    as tp ranks need equal shares, so that at tp = 1 the vocabulary stays what it is.

    Source: [megatron_lm] --make-vocab-size-divisible-by.
    """
    return _vocabulary_rows(model, tp, vocab_multiple) * model.hidden_size


def _vocabulary_rows(model: ModelSpec, tp: Numeric, vocab_multiple: float) -> Numeric:
    return np.ceil(model.vocab_size / (vocab_multiple * tp)) * vocab_multiple


def embedding_params(model: ModelSpec, *, tp: Numeric = 1.0, vocab_multiple: float = 1.0) -> Numeric:
    """Token embedding that one device holds; where embeddings are tied it is the LM head's matrix, too.

    Source: [megatron_lm] the vocabulary is divided by tp.
    """
    return vocabulary_matrix_params(model, tp=tp, vocab_multiple=vocab_multiple)


def position_params(model: ModelSpec) -> float:
    """Learned positions, on every rank, and the norm after the embedding where there is one.

    Source: [narayanan2021] equation 2, the term s h.
    """
    table = float(model.max_seq * model.hidden_size) if model.learned_positions else 0.0
    return table + (norm_params(model) if model.embedding_norm else 0.0)


def head_params(model: ModelSpec, *, tp: Numeric = 1.0, vocab_multiple: float = 1.0) -> Numeric:
    """LM head that one device holds beyond the embedding: no matrix of its own where embeddings are tied.

    Ignores: that a pipeline's last stage keeps a copy of a tied embedding; add ``vocabulary_matrix_params`` there.
    Source: [megatron_lm] the vocabulary is divided by tp.
    """
    elements_per_row = (0.0 if model.tied_embeddings else model.hidden_size) + (1.0 if model.head_bias else 0.0)
    return _vocabulary_rows(model, tp, vocab_multiple) * elements_per_row


def final_norm_params(model: ModelSpec) -> float:
    """The norm before the LM head.

    Source: [derived] one norm.
    """
    return norm_params(model)


def mtp_projection_params(model: ModelSpec, *, tp: Numeric = 1.0) -> Numeric:
    """What one multi-token-prediction module has beyond a layer: its ``2h x h`` projection and three norms.

    Assumes: embedding and LM head are the main model's.
    Source: [deepseek2024v3] section 2.2; [megatron_lm] the projection is column-parallel.
    """
    return 2.0 * model.hidden_size**2 / tp + 3.0 * norm_params(model)


# ---- totals


def dense_layer_params(model: ModelSpec, *, tp: Numeric = 1.0) -> Numeric:
    """One layer with a dense MLP, as one of ``tp`` ranks holds it.

    Source: [derived] the sum of its sublayers.
    """
    return attention_sublayer_params(model, tp=tp) + dense_mlp_sublayer_params(model, tp=tp)


def moe_layer_params(model: ModelSpec, *, tp: Numeric = 1.0, ep: Numeric = 1.0, etp: Numeric = 1.0) -> Numeric:
    """One layer with a mixture of experts, as one device holds it.

    Source: [derived] the sum of its sublayers.
    """
    return attention_sublayer_params(model, tp=tp) + moe_sublayer_params(model, tp=tp, ep=ep, etp=etp)


def total_params(model: ModelSpec) -> int:
    """Parameters of the model, matrices shared by several uses counted once, without multi-token prediction.

    Source: [derived] the sum of its parts.
    """
    layers = model.n_dense_layers * dense_layer_params(model) + model.n_moe_layers * moe_layer_params(model)
    outside = embedding_params(model) + position_params(model) + final_norm_params(model) + head_params(model)
    return round(float(layers + outside))


def active_params(model: ModelSpec) -> int:
    """Parameters that take part in one token's forward pass: everything but the routed experts it is not sent to.

    The embedding counts whole, although a token reads one row of it. So count DeepSeek, Qwen and Mistral; OpenAI counts
    the LM head alone, which is ``embedding_params`` less for a model with untied embeddings.

    Source: [fedus2021] section 2; [deepseek2024v3] section 4.2.
    """
    if not model.is_moe:
        return total_params(model)
    idle_fraction = 1.0 - model.top_k / model.n_experts
    return round(total_params(model) - float(model.n_moe_layers * idle_fraction * moe_expert_params(model)))


def mtp_params(model: ModelSpec) -> int:
    """Parameters of all multi-token-prediction modules, each a projection, three norms and a layer like the last one.

    Source: [deepseek2024v3] section 2.2.
    """
    layer = moe_layer_params(model) if model.layer_is_moe[-1] else dense_layer_params(model)
    return round(float(model.mtp_layers * (mtp_projection_params(model) + layer)))


def trained_params(model: ModelSpec) -> int:
    """Parameters that an optimizer updates: the model and its multi-token-prediction modules.

    Source: [derived] the sum of both.
    """
    return total_params(model) + mtp_params(model)
