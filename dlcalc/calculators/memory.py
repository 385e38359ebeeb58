"""Device memory of training, in bytes per device: states, activations, logits, working sets, buffers.

Activations are counted op by op as what autograd keeps of one micro-batch until its backward pass, per token that the
device works on (``tokens`` = micro-batch x sequence / cp). Inside the matmuls of attention and MLP a tensor is split
over ``tp``; between them (norms, residuals, dropout) it is whole on every rank, unless sequence parallelism splits it.

A device's peak is ``states + activations in flight + gradients of a layer's weights + buffers + max(loss, layer)``,
where ``loss`` is logits, loss and the gradient of the LM head's weights, on the last stage, and ``layer`` the backward
working set, with what recomputation brings back. How many micro-batches are in flight, which layers a stage holds and
how parameters are counted is not known here.

Left out everywhere: statistics of norms (4 or 8 bytes a token) and gradients of biases, less than 0.1% of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dlcalc.specs.framework import CrossEntropy, FrameworkProfile
from dlcalc.specs.model import ModelSpec
from dlcalc.specs.recompute import NONE, for_every_mode

Numeric = float | NDArray[np.float64]
Array = NDArray[np.float64]

QUANTIZED_WEIGHT_BYTES: Mapping[str, float] = {"fp8": 2.0, "mxfp8": 2.0 * (1 + 1 / 32), "nvfp4": 2.0 * (0.5 + 1 / 16)}
"""Of one weight of a linear layer, as it is and transposed, scales included."""

ACTIVATION_BYTES = 2.0
"""Of an element of bf16 or fp16."""

KEPT: Mapping[str, tuple[float, ...]] = {
    # recompute mode:        none selec full norm mla sac mlp moe
    "layer_input": (1, 1, 1, 1, 1, 1, 1, 1),
    "norm_input": (1, 1, 0, 1, 1, 0, 1, 1),
    "norm_intermediates": (1, 1, 0, 0, 1, 0, 1, 1),
    "linear_input": (1, 1, 0, 0, 1, 0, 1, 1),
    "latents": (1, 1, 0, 1, 1, 0, 1, 1),
    "query_key_value": (1, 1, 0, 1, 1, 0, 1, 1),
    "latent_query_key_value": (1, 1, 0, 1, 0, 0, 1, 1),
    "scores": (1, 0, 0, 1, 1, 0, 1, 1),
    "core_output": (1, 1, 0, 1, 1, 1, 1, 1),
    "core_output_beside_copy": (1, 0, 0, 1, 1, 1, 1, 1),
    "logsumexp": (1, 0, 0, 1, 1, 1, 1, 1),
    "projection_input": (1, 1, 0, 1, 1, 0, 1, 1),
    "mlp_norm_input": (1, 1, 0, 1, 1, 0, 1, 1),
    "mlp_norm_intermediates": (1, 1, 0, 0, 1, 0, 0, 1),
    "mlp_input": (1, 1, 0, 0, 1, 0, 0, 1),
    "gate_up": (1, 1, 0, 1, 1, 0, 0, 1),
    "activation": (1, 1, 0, 0, 1, 0, 0, 1),
    "routing": (1, 1, 0, 1, 1, 0, 1, 0),
    "shared_input": (1, 1, 0, 0, 1, 0, 1, 0),
    "expert_input": (1, 1, 0, 1, 1, 0, 1, 0),
    "expert_gate_up": (1, 1, 0, 1, 1, 0, 1, 0),
    "expert_activation": (1, 1, 0, 0, 1, 0, 1, 0),
    "expert_output": (1, 1, 0, 1, 1, 0, 1, 0),
    "dropout_mask": (1, 1, 0, 1, 1, 0, 1, 1),
    "every_other_matmul": (0, 0, 0, 0, 0, 1, 0, 0),
}
"""Share of each op's bytes that is still there when the backward pass begins, by simple recompute mode. A dense MLP
that runs again begins at its norm, a mixture of experts after it, as in Megatron."""

KEPT_UNFUSED_NORM: Mapping[str, tuple[float, ...]] = {
    "layer_input": (0, 0, 1, 1, 0, 1, 0, 0),
    "norm_input": (0, 0, 0, 1, 0, 0, 0, 0),
    "mlp_norm_input": (0, 0, 0, 1, 0, 0, 1, 0),
}
"""A norm in PyTorch operations keeps what it made of its input; the input itself only where it must run again."""

KEPT_BY_MODE = {op: np.array(for_every_mode(shares, min)) for op, shares in KEPT.items()}
UNFUSED_NORM_BY_MODE = {op: np.array(for_every_mode(shares, max)) for op, shares in KEPT_UNFUSED_NORM.items()}

GATHERED_LOGIT_COPY_BYTES = 4.0
"""Per logit where the vocabulary is gathered over tp: the parts as they arrive, and the copy that joins them."""

SCORE_BYTES: Mapping[str, float] = {"unfused": 6.0, "megatron_fused": 2.0}
"""Per element of the attention matrix: the softmax's output in bf16, or in fp32 beside the bf16 copy that is multiplied
with V. Fused (flash) kernels keep none."""
SCORE_DROPOUT_BYTES: Mapping[str, float] = {"unfused": 1.0, "megatron_fused": 3.0}
"""A mask, and for the fused softmax its masked copy; unfused, that takes the place of the bf16 copy."""

LOSS_CHUNKS = 8.0
"""Into which a chunked loss cuts the tokens of a micro-batch."""

LOGIT_BYTES: Mapping[CrossEntropy, float] = {
    "gathered": 14.0,
    "sharded": 14.0,
    "chunked": 14.0 / LOSS_CHUNKS,
    "parallel": 6.0,
    "fused": 2.0,
}
"""Per logit, where the loss turns around. gathered, sharded, a part of chunked: bf16 logits, log-probabilities, their
gradient and that of the fp32 logits; parallel: bf16 logits and one fp32 copy, worked on in place; fused: bf16 logits
that become their gradient."""

WAITING_LOGIT_BYTES: Mapping[CrossEntropy, float] = {
    "gathered": 4.0,
    "sharded": 4.0,
    "chunked": 0.0,
    "parallel": 4.0,
    "fused": 2.0,
}
"""Per logit, from its loss to its backward pass."""


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


# --- activations -----------------------------------------------------------------------------------------------------


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
    between = _between(tp, sequence_parallel)
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
            query_key_value: ACTIVATION_BYTES * _head_widths(model, tp) + _qk_norm_bytes(model, profile, tp),
            "scores": _score_bytes(profile) * heads / tp * seq_k_tokens,
            core_output: ACTIVATION_BYTES * out_width * (flash or not copies),
            "logsumexp": 4.0 * heads / tp * flash,
            "projection_input": input_bytes * out_width * copies,
            "dropout_mask": h * between * profile.dropout,
            "every_other_matmul": _saved_matmul_bytes(_attention_matmuls(model), 0, tp)
            + _scattered_bytes(h, tp, sequence_parallel),
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
    between = _between(tp, sequence_parallel)
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
            "every_other_matmul": _saved_matmul_bytes(_mlp_matmuls(model, model.ffn_hidden_size), first, tp)
            + _scattered_bytes(h, tp, sequence_parallel),
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
    between = _between(tp, sequence_parallel)
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
            "every_other_matmul": _scattered_bytes(h, tp, sequence_parallel)
            + 2.0 * ACTIVATION_BYTES * h * routed * (np.asarray(ep) > 1),
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
    per_token = 8.0 + (profile.dropout + norm) * model.hidden_size * _between(tp, sequence_parallel)
    return tokens * per_token


def head_activation_bytes(
    model: ModelSpec, profile: FrameworkProfile, *, tokens: Numeric, tp: Numeric, sequence_parallel: Numeric
) -> Numeric:
    """What the final norm and the LM head keep of each micro-batch: their inputs. Logits are counted apart.

    Source: [korthikanti2022] section 4.3.
    """
    between = _between(tp, sequence_parallel)
    norm_bytes = _norm_bytes(profile)
    return tokens * model.hidden_size * (norm_bytes * between + ACTIVATION_BYTES * _linear_input(profile, between))


def logits_loss_bytes(*, tokens: Numeric, vocab_size: float, tp: Numeric, cross_entropy: CrossEntropy) -> Numeric:
    """Logits, loss and their gradients at the moment they take most, on the stage that has the LM head.

    Per token and word: gathered 14 bytes, on every rank; parallel 6 and fused 2, divided over tp. One micro-batch's
    suffices where the last stage turns around at once; ``waiting_logits_bytes`` is of others. The gathered loss adds
    the rank's own part of the logits and two copies of what arrives from the others.

    Ignores: labels, maxima and sums per token.
    Source: [derived] PyTorch's log-softmax keeps its output, its backward pass needs two more; [megatron_lm]
    cross_entropy.py works in place on one fp32 copy.
    """
    per_logit = LOGIT_BYTES[cross_entropy]
    if cross_entropy == "gathered":
        arriving = (ACTIVATION_BYTES / np.asarray(tp) + GATHERED_LOGIT_COPY_BYTES) * (np.asarray(tp) > 1)
        return np.asarray(tokens * vocab_size * (per_logit + arriving))
    return tokens * vocab_size * per_logit / tp


def chunked_loss_bytes(*, tokens: Numeric, hidden_size: float, head_params: Numeric) -> Numeric:
    """What a loss in chunks has besides: inputs' gradients in fp32 and a 16-bit copy; the head's gradient in fp32.

    Source: [derived] ``ChunkedLossWrapper`` of torchtitan's components/loss.py; gradients add up before they are sent.
    """
    return tokens * hidden_size * 6.0 + head_params * 4.0


def waiting_logits_bytes(*, tokens: Numeric, vocab_size: float, tp: Numeric, cross_entropy: CrossEntropy) -> Numeric:
    """What the loss of one micro-batch keeps until its backward pass, where those of others come in between.

    Log-probabilities in fp32; of the fused loss the gradient in 16 bits, written over the logits.

    Source: [derived] as ``logits_loss_bytes``.
    """
    parts = 1.0 if cross_entropy == "gathered" else tp
    return tokens * vocab_size * WAITING_LOGIT_BYTES[cross_entropy] / parts


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
    layer_params: Numeric, *, weight_bytes: float, grad_reduce_bytes: float, prefetched_layers: float = 1.0
) -> Numeric:
    """What ZeRO stage 3 has of whole layers, at most: this layer's and the prefetched weights, and gradients.

    In the backward pass: ``(1 + prefetched)`` layers of gathered weights, the layer's gradients as they come out of the
    matmuls, and the layer before's in the dtype they are reduced in.

    Assumes: a layer is the unit that is gathered; ``layer_params`` is of the largest, per tp rank.
    Source: [zhao2023fsdp] sections 3.3 and 4.
    """
    return layer_params * ((1.0 + prefetched_layers) * weight_bytes + weight_bytes + grad_reduce_bytes)


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
    between = _between(tp, sequence_parallel)
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
    attention = _head_widths(model, tp) + out_width + residual + 2.0 * model.n_heads * model.qk_head_dim / tp
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
    return buffers * tokens * ACTIVATION_BYTES * model.hidden_size * _between(tp, sequence_parallel)


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


def _between(tp: Numeric, sequence_parallel: Numeric) -> Array:
    """Share of the tokens that a rank has between the matmuls: all of them, or 1 / tp."""
    return np.asarray(1.0 - sequence_parallel * (1.0 - 1.0 / np.asarray(tp)))


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


def _head_widths(model: ModelSpec, tp: Numeric) -> Numeric:
    """Elements per token of Q, K and V on one rank; ranks beyond the number of KV heads hold copies."""
    query = model.n_heads * model.qk_head_dim / tp
    if model.is_mla:
        return query + model.n_heads * (model.qk_head_dim + model.value_head_dim) / tp
    return query + model.n_kv_heads * 2.0 * model.head_dim / np.minimum(tp, model.n_kv_heads)


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


def _shard_share(zero_stage: Numeric, from_stage: int, shards: Numeric) -> Array:
    """1, or 1 / shards from ``from_stage`` on."""
    sharded = np.asarray(zero_stage) >= from_stage
    return np.asarray(1.0 - sharded * (1.0 - 1.0 / np.asarray(shards)))
